"""The detector's backbone copied, moved and in half precision, windows filled up with zeros."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.compare import error, loss_of, randomize
from tests.forms import attend_plain

pytest.importorskip("detectron2", reason="install detectron2 to run: make setup")

from mvitv2_core import ops
from mvitv2_d2 import MViT

SMALL: dict[str, Any] = {
    **{"depth": 5, "last_block_indexes": (0, 1, 3, 4), "embed_dim": 16, "num_heads": 2},
    **{"adaptive_window_size": 16, "use_abs_pos": True},
}
COPIES = "lifecycle: copies, EMA copies and files equal their source"
MOVES = "lifecycle: moves between devices and dtypes, built on the meta device"
FROZEN = "lifecycle: frozen parts leave the others' gradients unchanged, checkpointing or not"
FINITE = "autocast: finite where float32 is, in outputs and gradients"
PADDED = "padded windows: zeros that fill them take part in the softmax"


def build(**options: Any) -> MViT:
    model = MViT(**SMALL, **options)
    randomize(model)
    return model


def image(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, *size, generator=generator, dtype=torch.float64).to(dtype)


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def through_file(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)  # our own, made here and now


@pytest.mark.parametrize(
    "copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), through_file]
)
@pytest.mark.parametrize("features", [("scale2",), ("scale3", "scale5")])
def test_copies(copier: Any, features: tuple[str, ...], tally: Callable[..., None]) -> None:
    model, x = build(out_features=features), image(64, 80)
    with torch.inference_mode():
        model(x)
    twin = copier(model)
    assert twin.output_shape() == model.output_shape()
    outputs = [m(x) for m in (model, twin)]
    assert_equal(*outputs)
    for output in outputs:
        loss_of(output).backward()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad) and a.data_ptr() != b.data_ptr()
    tally(COPIES)


@pytest.mark.parametrize("assign", [False, True])
def test_built_on_the_meta_device(assign: bool, tally: Callable[..., None]) -> None:
    model, x = build(), image(64, 80)
    with torch.device("meta"):
        twin = MViT(**SMALL)
    if not assign:
        twin.to_empty(device="cpu")
    twin.load_state_dict(copy.deepcopy(model.state_dict()), assign=assign)
    assert_equal(twin(x), model(x))
    tally(MOVES)


def test_dtypes_one_after_another(tally: Callable[..., None]) -> None:
    model = build()
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.float32):
        x = image(64, 80, dtype=dtype)
        twin = MViT(**SMALL).to(dtype)
        twin.load_state_dict(model.to(dtype).state_dict())
        assert_equal(model(x), twin(x))
        tally(MOVES)


@pytest.mark.parametrize("freeze_at", range(1, 5))
def test_freezing_changes_no_other_gradient(freeze_at: int, tally: Callable[..., None]) -> None:
    grads: list[dict[str, Tensor]] = []
    for frozen, act_checkpoint in ((0, False), (freeze_at, False), (freeze_at, True)):
        model = build(use_act_checkpoint=act_checkpoint, drop_path_rate=0.3).double()
        model.freeze(frozen).train()
        torch.manual_seed(0)
        loss_of(model(image(64, 80, dtype=torch.float64))).backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    expected, kept, recomputed = grads
    assert set(kept) == set(recomputed) < set(expected)
    scale = max(g.abs().max() for g in expected.values())
    for name, gradient in kept.items():
        assert (gradient - expected[name]).abs().max() < 1e-10 * scale, name
        assert torch.equal(gradient, recomputed[name]), name
    tally(FROZEN)


INPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "0 to 255": lambda x: (x.clamp(-3, 3) + 3) / 6 * 255,
    "all equal": lambda x: torch.full_like(x, 114.0),
    "all 1e4": lambda x: torch.full_like(x, 1e4),
    "zeros": torch.zeros_like,
    "thousands": lambda x: 2e3 * x,
    "one huge pixel": lambda x: x.index_put((torch.tensor(0),) * x.ndim, torch.tensor(6e4)),
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [(64, 80), (36, 132), (4, 200)])
@pytest.mark.parametrize("name", INPUTS)
def test_large_inputs(
    name: str, size: tuple[int, int], dtype: torch.dtype, tally: Callable[..., None]
) -> None:
    """Sizes whose last windows are mostly filling."""
    x = INPUTS[name](image(*size))
    for enabled in (False, True):
        model = build()
        with torch.autocast("cpu", dtype, enabled=enabled):
            outputs = model(x)
        sum(o.float().abs().mean() for o in outputs.values()).backward()  # type: ignore
        assert all(o.isfinite().all() for o in outputs.values())
        for parameter_name, p in model.named_parameters():
            assert p.grad.isfinite().all(), parameter_name
    tally(FINITE)


@pytest.mark.parametrize("hw", [(16, 16), (13, 16), (5, 21), (1, 1), (17, 33)])
def test_filling_takes_part_in_the_softmax(hw: tuple[int, int], tally: Callable[..., None]) -> None:
    """Each query against plain arithmetic over its window, whose filling are keys and values of
    zero: they weigh in, unmasked."""
    attention = build().double().blocks[0].attn
    q_window, kv_window = attention.windows
    (height, width), stride = hw, q_window[0] // kv_window[0]
    k_hw = (-(-height // stride), -(-width // stride))
    generator = torch.Generator().manual_seed(0)
    heads, dim = attention.num_heads, attention.head_dim

    def draw(grid: tuple[int, int]) -> Tensor:
        return torch.randn(1, *grid, heads, dim, generator=generator, dtype=torch.float64)

    q, k, v = draw(hw), draw(k_hw), draw(k_hw)
    tables, flat = [attention.rel_pos_h, attention.rel_pos_w], (x.flatten(1, 2) for x in (q, k, v))
    got = ops.attention(*flat, tables, hw, k_hw, windows=attention.windows).unflatten(1, hw)
    size, k_size = q_window[0], kv_window[0]
    for top in range(0, height, size):
        for left in range(0, width, size):
            window = q.new_zeros(1, size, size, heads, dim)
            keys, values = (q.new_zeros(1, k_size, k_size, heads, dim) for _ in range(2))
            rows, columns = min(size, height - top), min(size, width - left)
            window[:, :rows, :columns] = q[:, top : top + rows, left : left + columns]
            y, x = top // stride, left // stride
            for target, source in ((keys, k), (values, v)):
                part = source[:, y : y + k_size, x : x + k_size]
                target[:, : part.shape[1], : part.shape[2]] = part
            parts = [t.flatten(1, 2) for t in (window, keys, values)]
            out = attend_plain(*parts, tables, (size, size), (k_size, k_size))
            wanted = out.unflatten(1, (size, size))[:, :rows, :columns]
            assert error(got[:, top : top + rows, left : left + columns], wanted) < 1e-12
    tally(PADDED)
