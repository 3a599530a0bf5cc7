"""Layer decay, average, accumulation and bfloat16 against plain PyTorch arithmetic, in float64."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import LambdaLR

from mvitv2_core.layer_groups import layer_of, layer_scale, scale_layers
from mvitv2_core.training import (
    Accumulation,
    Average,
    average_of,
    train_deterministically,
    train_in_bfloat16,
)
from tests.compare import error
from tests.small import KINDS, small_input, small_model

KIND = "clip with class token"


class Detector(nn.Module):
    """A model of the project inside of another, as detectors have it."""

    def __init__(self, kind: str = KIND) -> None:
        super().__init__()
        self.backbone = small_model(kind).double()
        self.neck = nn.Linear(5, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.neck(self.backbone(x))


def batches(count: int) -> Iterator[tuple[Tensor, Tensor]]:
    for seed in range(count):
        yield small_input(KIND, seed=seed, dtype=torch.float64), torch.tensor([seed % 3, 1])


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def train(model: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> list[float]:
    """The loop of a trainer that knows nothing; returns its losses."""
    model.train()
    losses = []
    for batch in batches(count):
        optimizer.zero_grad()
        value = loss(model, batch)
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses


def same(ours: nn.Module, plain: nn.Module, bound: float = 1e-13) -> None:
    others = dict(plain.named_parameters())
    for name, parameter in ours.named_parameters():
        assert error(parameter.detach(), others[name].detach()) <= bound, name


def adamw(model: nn.Module) -> AdamW:
    return AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)


def pair() -> tuple[Detector, Detector]:
    torch.manual_seed(0)
    model = Detector()
    return model, copy.deepcopy(model)


def test_layers_by_name() -> None:
    layers = {
        "patch_embed.proj.weight": 0,
        "cls_token": 0,
        "pos_embed": 0,
        "pos_embed_temporal": 0,
        "blocks.0.attn.rel_pos_h": 1,
        "blocks.11.norm1.bias": 12,
        "norm.weight": 17,
        "scale2_norm.weight": 17,
        "head.projection.bias": 17,
    }
    assert {name: layer_of(name, 16) for name in layers} == layers
    assert [layer_scale(name, 2, 0.5) for name in ("head.bias", "blocks.1.x", "blocks.0.x")] == [
        1.0,
        0.5,
        0.25,
    ]
    assert layer_scale("patch_embed.proj.bias", 2, 0.5) == 0.125
    with pytest.raises(ValueError, match=r"depth must be more than 2, the block of 'blocks\.2\.x'"):
        layer_of("blocks.2.x", 2)
    for decay in (0, 1.5, True, "0.9"):
        with pytest.raises(ValueError, match=r"decay must be in \(0, 1\]"):
            layer_scale("head.bias", 2, decay)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_is_in_one_group(kind: str) -> None:
    """Rates fall from the head to the patch embedding; weight decay stays as it was."""
    model = Detector(kind)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    optimizer = SGD([{"params": matrices, "weight_decay": 0.1}, {"params": vectors}], lr=0.3)
    scale_layers(optimizer, model, 0.5)
    found = {p: group for group in optimizer.param_groups for p in group["params"]}
    assert set(found) == set(model.parameters())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(found)
    for name, parameter in model.named_parameters():
        _, _, rest = name.partition("backbone.")
        expected = 0.3 * (layer_scale(rest, 3, 0.5) if rest else 1.0)
        assert found[parameter]["lr"] == expected, name
        assert found[parameter]["weight_decay"] == (0.1 if parameter.ndim > 1 else 0), name
    with pytest.raises(ValueError, match="model must be one that holds an MViT, got 'Linear'"):
        scale_layers(optimizer, model.neck, 0.5)


@pytest.mark.parametrize("make", [SGD, AdamW])
def test_layer_decay_is_a_rate_for_each_parameter(make: type) -> None:
    """Three steps under a schedule, against one plain optimizer for every parameter."""
    ours, plain = pair()
    optimizer = make(ours.parameters(), lr=1e-2, weight_decay=0.1)
    scale_layers(optimizer, ours, 0.7)
    schedule = LambdaLR(optimizer, lambda step: 1 / (1 + step))
    singles = []
    for name, parameter in plain.named_parameters():
        scale = layer_scale(name.removeprefix("backbone."), 3, 0.7) if "backbone" in name else 1
        singles.append(make([parameter], lr=1e-2 * scale, weight_decay=0.1))
    for step, batch in enumerate(batches(3)):
        for model in (ours, plain):
            model.zero_grad()
            loss(model, batch).backward()
        optimizer.step()
        schedule.step()
        for single in singles:
            single.step()
            single.param_groups[0]["lr"] *= (1 + step) / (2 + step)
    same(ours, plain)


def test_average() -> None:
    """``decay * average + (1 - decay) * weights``, saved, resumed and evaluated."""
    ours, plain = pair()
    optimizer = adamw(ours)
    average, decay = Average(ours, optimizer, 0.6), 0.6
    assert average_of(ours) is average and average_of(nn.DataParallel(ours)) is average
    assert average_of(plain) is None
    x = small_input(KIND, dtype=torch.float64)
    assert error(ours.eval()(x), plain.eval()(x)) == 0  # no step yet: the weights themselves
    by_hand: dict[str, Tensor] = {}
    other = adamw(plain)
    for count in range(1, 5):
        plain.load_state_dict(ours.state_dict())
        train(ours, optimizer, 1)
        for name, parameter in ours.named_parameters():
            value = parameter.detach().clone()
            by_hand[name] = value if count == 1 else decay * by_hand[name] + (1 - decay) * value
        for name, value in average.state_dict().items():
            assert error(value, by_hand[name]) < 1e-14, name
    plain.load_state_dict(by_hand)
    assert error(ours.eval()(x), plain.eval()(x)) < 1e-12
    assert error(ours.eval()(x), ours.train()(x)) > 1e-3  # it is not the weights
    assert set(ours.state_dict()) == set(plain.state_dict()) == set(average.state_dict())
    assert len(list(ours.parameters())) == len(list(plain.parameters()))

    resumed = Average(plain, other, decay)
    resumed.load_state_dict(average.state_dict())
    plain.load_state_dict(ours.state_dict())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for model, steps in ((ours, optimizer), (plain, other)):
        train(model, steps, 2)
    for name, value in average.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    with pytest.raises(ValueError, match=r"EMA decay must be in \[0, 1\), got 1"):
        Average(plain, other, 1)


def test_training_does_not_see_the_average() -> None:
    ours, plain = pair()
    optimizer = adamw(ours)
    Average(ours, optimizer, 0.9)
    assert train(ours, optimizer, 3) == train(plain, adamw(plain), 3)
    same(ours, plain, 0)


@pytest.mark.parametrize("clip", [False, True])
def test_accumulation_is_a_larger_batch(clip: bool) -> None:
    """Three batches a step, six batches: as two steps on three batches together."""
    ours, plain = pair()
    optimizer, other = adamw(ours), adamw(plain)

    def clipped(model: nn.Module) -> object:
        return nn.utils.clip_grad_norm_(model.parameters(), 0.01)

    Accumulation(optimizer, 3, (lambda: clipped(ours)) if clip else None)
    LambdaLR(optimizer, lambda step: 1.0)  # which binds optimizer.step once more
    train(ours, optimizer, 5)
    first = optimizer.state[ours.neck.weight]["step"]
    assert first == 1  # two batches wait
    optimizer.zero_grad()
    *_, sixth = batches(6)
    loss(ours, sixth).backward()
    optimizer.step()
    assert optimizer.state[ours.neck.weight]["step"] == 2

    every = list(batches(6))
    for three in (every[:3], every[3:]):
        other.zero_grad()
        loss(plain, (torch.cat([x for x, _ in three]), torch.cat([y for _, y in three]))).backward()
        if clip:
            clipped(plain)
        other.step()
    same(ours, plain, 1e-9)


def test_accumulation_and_average() -> None:
    """An average of two steps, not of the four batches."""
    ours, plain = pair()
    optimizer, other = adamw(ours), adamw(plain)
    averages = Average(ours, optimizer, 0.5), Average(plain, other, 0.5)
    Accumulation(optimizer, 2)
    train(ours, optimizer, 4)
    every = list(batches(4))
    plain.train()
    for two in (every[:2], every[2:]):
        other.zero_grad()
        (sum(loss(plain, batch) for batch in two) / 2).backward()
        other.step()
    states = [average.state_dict() for average in averages]
    assert all(error(value, states[1][name]) < 1e-9 for name, value in states[0].items())
    with pytest.raises(ValueError, match="must be given to Average before Accumulation"):
        Average(ours, optimizer, 0.5)


def test_accumulation_skips_what_a_scaler_skips() -> None:
    """Scaled gradients are added unscaled, and a batch with infinite ones is left out."""
    ours, plain = pair()
    ours, plain = ours.float(), plain.float()
    optimizer, other = adamw(ours), adamw(plain)
    Accumulation(optimizer, 2)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step, (x, y) in enumerate(batches(3)):
        optimizer.zero_grad()
        value = loss(ours, (x.float(), y))
        scaler.scale(value * (float("inf") if step == 1 else 1)).backward()
        scaler.step(optimizer)
        scaler.update()
    other.zero_grad()
    first, _, third = ((x.float(), y) for x, y in batches(3))
    ((loss(plain, first) + loss(plain, third)) / 2).backward()
    other.step()
    assert optimizer.state[ours.neck.weight]["step"] == 1
    for ours_p, plain_p in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours_p, plain_p, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("steps", [0, -1, 1.5, True])
def test_accumulation_is_counted_in_batches(steps: object) -> None:
    with pytest.raises(ValueError, match="gradient accumulation must be a positive whole number"):
        Accumulation(adamw(nn.Linear(1, 1)), steps)  # type: ignore[arg-type]


def test_bfloat16() -> None:
    """PyTorch's own autocast around a plain loop, bit for bit; evaluation as without."""
    ours, plain = (model.float() for model in pair())
    reference = copy.deepcopy(plain).eval()
    train_in_bfloat16(ours)
    optimizer, other = adamw(ours), adamw(plain)
    for x, y in batches(3):
        optimizer.zero_grad()
        output = ours.train()(x.float())
        assert output.dtype == torch.bfloat16
        nn.functional.cross_entropy(output.float(), y).backward()
        optimizer.step()
        other.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            expected = plain.train()(x.float())
        nn.functional.cross_entropy(expected.float(), y).backward()
        other.step()
        assert torch.equal(output, expected)
    same(ours, plain, 0)
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in ours.parameters())
    x = small_input(KIND)
    assert torch.equal(ours.eval()(x), plain.eval()(x)) and ours.eval()(x).dtype == torch.float32
    off = reference.train()(x)
    ours.load_state_dict(reference.state_dict())
    assert 1e-4 < error(ours.train()(x).float(), off) < 0.1  # it is not float32's arithmetic
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(RuntimeError, match="trainer's own mixed precision must be off"),
    ):
        ours.train()(x)


def test_bfloat16_and_average() -> None:
    """In either order the average is evaluated, in float32."""
    results = []
    for first in ("average", "bfloat16"):
        model = pair()[0].float()
        optimizer = adamw(model)
        if first == "bfloat16":
            train_in_bfloat16(model)
        average = Average(model, optimizer, 0.5)
        if first == "average":
            train_in_bfloat16(model)
        for x, y in batches(2):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model.train()(x.float()).float(), y).backward()
            optimizer.step()
        plain = pair()[1].float().eval()
        plain.load_state_dict(average.state_dict())
        x = small_input(KIND)
        assert torch.equal(model.eval()(x), plain(x))
        results.append(model.eval()(x))
    assert torch.equal(*results)


def test_deterministic_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    benchmark = torch.backends.cudnn.benchmark
    try:
        train_deterministically()
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.backends.cudnn.benchmark
        runs = []
        for _ in range(2):
            model = pair()[0]
            runs.append(train(model, adamw(model), 2))
        assert runs[0] == runs[1]
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark = benchmark


@pytest.mark.slow
def test_compiled_blocks_train_alike() -> None:
    """``compile=True`` and off: the same losses, with the average copied and evaluated."""
    losses = []
    for compile in (False, True):
        torch.manual_seed(0)
        model = small_model(KIND).double()
        if compile:
            for block in model.blocks:
                block.compile(backend="eager")
        optimizer = adamw(model)
        average = Average(model, optimizer, 0.5)
        losses.append(train(model, optimizer, 2))
        plain = small_model(KIND).double().eval()
        plain.load_state_dict(average.state_dict())
        x = small_input(KIND, dtype=torch.float64)
        assert error(model.eval()(x), plain(x)) < 1e-12
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
