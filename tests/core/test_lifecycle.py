"""Copies, files, moves and freezing: a model is the same model before and after."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mvitv2_core.fast import memory
from tests.compare import error, loss_of
from tests.small import KINDS, small_input, small_model

COPIES = "lifecycle: copies, EMA copies and files equal their source"
MOVES = "lifecycle: moves between devices and dtypes, built on the meta device"


def through_file(model: nn.Module) -> nn.Module:
    """``torch.save`` of the whole model, and back: a file of our own, made here and now."""
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def through_state_file(model: nn.Module) -> nn.Module:
    """A new model of the same config with the state dict from a file, read without unpickling."""
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    twin = type(model)(model.config, act_checkpoint=model.act_checkpoint)  # type: ignore
    twin.load_state_dict(torch.load(file, weights_only=True), strict=True)
    return twin.train(model.training)


def train_step(model: nn.Module, x: Tensor) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loss_of(model(x)).backward()
    optimizer.step()
    optimizer.zero_grad()


def infer(model: nn.Module, x: Tensor) -> None:
    with torch.inference_mode():
        model(x)


COPIERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": through_file,
    "state_dict": through_state_file,
}
BEFORE: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "unused": lambda model, x: None,
    "after inference": infer,
    "after training": train_step,
}


@pytest.mark.parametrize("act_checkpoint", [False, True])
@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("copier", COPIERS)
@pytest.mark.parametrize("kind", KINDS)
def test_copies(
    kind: str, copier: str, before: str, act_checkpoint: bool, tally: Callable[..., None]
) -> None:
    """Bit-equal outputs and gradients, and nothing shared."""
    model, x = small_model(kind, act_checkpoint=act_checkpoint), small_input(kind)
    BEFORE[before](model, x)
    twin = COPIERS[copier](model)
    outputs = [m(x) for m in (model, twin)]
    assert torch.equal(*outputs)
    for output in outputs:
        loss_of(output).backward()
    for (name, a), b in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad) and a.data_ptr() != b.data_ptr(), name
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert torch.equal(twin(x), outputs[1])
    tally(COPIES)


@pytest.mark.parametrize("way", ["AveragedModel", "by state dict", "by parameters"])
@pytest.mark.parametrize("kind", KINDS)
def test_ema(kind: str, way: str, tally: Callable[..., None]) -> None:
    """PyTorch's averager, a deep copy that follows the state dict, and one that follows the
    parameters by name, as momentum encoders do: all equal averages worked out by hand."""
    model, x = small_model(kind, drop_path_rate=0.2).double(), small_input(kind).double()
    model(x)
    decay = 0.9
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    averaged.update_parameters(model)  # the first call copies
    twin = averaged.module if way == "AveragedModel" else copy.deepcopy(model)
    by_hand = {name: p.detach().clone() for name, p in model.named_parameters()}
    for _ in range(3):
        train_step(model, x)
        for name, p in model.named_parameters():
            by_hand[name] = decay * by_hand[name] + (1 - decay) * p.detach()
        with torch.no_grad():
            if way == "AveragedModel":
                averaged.update_parameters(model)
            elif way == "by state dict":
                for a, b in zip(
                    twin.state_dict().values(), model.state_dict().values(), strict=True
                ):
                    a.copy_(decay * a + (1 - decay) * b)
            else:
                online = dict(model.named_parameters())
                for name, p in twin.named_parameters():
                    p.lerp_(online[name], 1 - decay)
    expected = torch.func.functional_call(copy.deepcopy(model).eval(), by_hand, (x,))
    assert error(twin.eval()(x), expected) < 1e-12
    assert error(model.eval()(x), expected) > 1e-6
    tally(COPIES)


def test_resume_from_state_dicts(tally: Callable[..., None]) -> None:
    """Model and optimizer through a file: the next steps are bit for bit those without a stop."""
    for kind in KINDS:
        model, x = small_model(kind), small_input(kind)
        twin, losses = copy.deepcopy(model), []
        for stop in (False, True):
            m = twin if stop else model
            optimizer = torch.optim.AdamW(m.parameters(), lr=1e-3)
            for step in range(6):
                if stop and step == 3:
                    state = m.state_dict(), optimizer.state_dict()
                    file = io.BytesIO()
                    torch.save(state, file)
                    file.seek(0)
                    m = small_model(kind)
                    optimizer = torch.optim.AdamW(m.parameters(), lr=1e-3)
                    for target, value in zip((m, optimizer), torch.load(file), strict=True):
                        target.load_state_dict(value)
                loss = loss_of(m(x))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
        assert losses[:6] == losses[6:]
        tally(COPIES)


def fresh(model: nn.Module, **to: Any) -> nn.Module:
    """A new model with the weights that ``model`` has now."""
    twin = type(model)(model.config).to(**to)  # type: ignore[call-arg]
    twin.load_state_dict(model.state_dict())
    return twin.train(model.training)


@pytest.mark.parametrize("kind", KINDS)
def test_dtypes_one_after_another(kind: str, tally: Callable[..., None]) -> None:
    """What a forward pass left in caches is of no dtype, or of the right one."""
    model = small_model(kind)
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.float32):
        model.to(dtype)
        x = small_input(kind, dtype=dtype)
        got, expected = model(x), fresh(model, dtype=dtype)(x)
        assert got.dtype == dtype and torch.equal(got, expected)
        loss_of(got).backward()
        assert all(p.grad.dtype == dtype for p in model.parameters())
        model.zero_grad()
        tally(MOVES)


@pytest.mark.parametrize("kind", KINDS)
def test_meta_device_and_back(kind: str, tally: Callable[..., None]) -> None:
    """After a forward pass: shapes alone on the meta device, then real weights again."""
    model, x = small_model(kind), small_input(kind)
    expected, state = model(x), copy.deepcopy(model.state_dict())
    on_meta = copy.deepcopy(model).to("meta")
    assert on_meta(x.to("meta")).shape == expected.shape
    back = on_meta.to_empty(device="cpu")
    back.load_state_dict(state)
    assert torch.equal(back(x), expected) and torch.equal(model(x), expected)
    tally(MOVES)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_built_on_the_meta_device(kind: str, assign: bool, tally: Callable[..., None]) -> None:
    """Every tensor comes from the state dict: none is left that only building could fill."""
    model, x = small_model(kind), small_input(kind)
    with torch.device("meta"):
        twin = type(model)(model.config)  # type: ignore[call-arg]
    assert all(t.is_meta for t in (*twin.parameters(), *twin.buffers()))
    if not assign:
        twin.to_empty(device="cpu")
        for p in twin.parameters():
            p.data.fill_(float("nan"))
    twin.load_state_dict(copy.deepcopy(model.state_dict()), assign=assign)
    outputs = [m(x) for m in (model, twin)]
    assert torch.equal(*outputs)
    for output in outputs:
        loss_of(output).backward()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    tally(MOVES)


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA GPU: run the suite on a machine with one"
)
@pytest.mark.parametrize("kind", KINDS)
def test_to_the_gpu_and_back(kind: str, tally: Callable[..., None]) -> None:
    model, x = small_model(kind).double(), small_input(kind, dtype=torch.float64)
    expected = model(x)
    assert error(model.cuda()(x.cuda()).cpu(), expected) < 1e-9
    assert torch.equal(model.cpu()(x), expected)
    tally(MOVES)


@pytest.mark.parametrize("mode", ["inference", "no_grad", "autocast", "float64", "meta"])
@pytest.mark.parametrize("kind", KINDS)
def test_training_after_other_modes(kind: str, mode: str, tally: Callable[..., None]) -> None:
    """What the first forward pass leaves behind serves training, whatever mode it ran in."""
    model, x = small_model(kind), small_input(kind)
    twin = fresh(model)
    with patch.object(memory, "CACHE", memory.TensorCache()):
        if mode == "float64":
            torch.set_default_dtype(torch.float64)
        try:
            with {
                "inference": torch.inference_mode(),
                "no_grad": torch.no_grad(),
                "autocast": torch.autocast("cpu", torch.bfloat16),
                "float64": torch.enable_grad(),
                "meta": torch.device("meta"),
            }[mode]:
                model(x)
        finally:
            torch.set_default_dtype(torch.float32)
        got = model(x)
        loss_of(got).backward()
    with patch.object(memory, "CACHE", memory.TensorCache()):
        expected = twin(x)
        loss_of(expected).backward()
    assert torch.equal(got, expected)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    tally(MOVES)
