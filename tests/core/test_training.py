"""Average and accumulation against plain PyTorch arithmetic, in float64."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from mvitv2_core.training import (
    Accumulation,
    Average,
    average_of,
    train_deterministically,
)
from tests.compare import error
from tests.loops import KIND, adamw, batches, loss, pair, same, train
from tests.ranks import start
from tests.small import small_input, small_model


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


def test_the_average_has_the_models_buffers() -> None:
    """Also those that are set after the step, as trainers' PreciseBN does."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()
    optimizer, x = adamw(model), torch.randn(6, 3, dtype=torch.float64)
    average = Average(model, optimizer, 0.9)
    model(x).sum().backward()
    optimizer.step()
    before = model.eval()(x)
    model[1].running_mean = torch.full((4,), 2.0, dtype=torch.float64)
    model[1].running_var.fill_(4.0)
    scale = model[1].weight / (4.0 + model[1].eps) ** 0.5
    expected = (model[0](x) - 2.0) * scale + model[1].bias  # after one step it is the weights
    assert error(model(x), expected) < 1e-12 < error(before, expected)
    model[1].running_var.fill_(9.0)
    assert average.state_dict()["1.running_var"].tolist() == [9.0] * 4


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


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("named", [True, False])
def test_what_a_scaler_skips(fused: bool, named: bool) -> None:
    """Scaled gradients are added unscaled; a batch with infinite ones is in no sum and no average.

    Also where PyTorch no longer has the private name that fused optimizers tell the scaler.
    """
    ours, plain = pair()
    ours, plain = ours.float(), plain.float()
    optimizer, other = (
        torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1, fused=fused)
        for model in (ours, plain)
    )
    if not named:
        optimizer.__dict__.pop("_step_supports_amp_scaling", None)
    averages = Average(ours, optimizer, 0.5), Average(plain, other, 0.5)
    Accumulation(optimizer, 2)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    every = [(x.float(), y) for x, y in batches(6)]
    for step, batch in enumerate(every):
        optimizer.zero_grad()
        value = loss(ours, batch)
        scaler.scale(value * (float("inf") if step in (1, 4) else 1)).backward()
        scaler.step(optimizer)
        scaler.update()
    for two in (every[:3:2], every[3::2]):
        other.zero_grad()
        (sum(loss(plain, batch) for batch in two) / 2).backward()
        other.step()
    assert optimizer.state[ours.neck.weight]["step"] == averages[0].averaged.n_averaged == 2
    states = [average.state_dict() for average in averages]
    for found, expected in zip(*(state.values() for state in states), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    for ours_p, plain_p in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours_p, plain_p, rtol=1e-3, atol=1e-5)


def test_average_counts_no_skipped_step() -> None:
    """Of a fused optimizer neither, which the scaler steps whatever the gradients are."""
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    average = Average(model, optimizer, 0.5)
    scaler = torch.amp.GradScaler("cpu")
    for factor in (1.0, float("inf"), 1.0):
        optimizer.zero_grad()
        scaler.scale(model(torch.ones(1, 2)).sum() * factor).backward()
        scaler.step(optimizer)
        scaler.update()
    assert average.averaged.n_averaged == 2


@pytest.mark.parametrize("steps", [0, -1, 1.5, True])
def test_accumulation_is_counted_in_batches(steps: object) -> None:
    with pytest.raises(ValueError, match="gradient accumulation must be a positive whole number"):
        Accumulation(adamw(nn.Linear(1, 1)), steps)  # type: ignore[arg-type]


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
def test_on_two_ranks(tmp_path: Path) -> None:
    """Under DistributedDataParallel: all ranks keep the average that one process would."""
    (worst,) = start(tmp_path, "tests.core.training_ranks:trained:2", timeout=200)
    assert worst < 1e-9


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
