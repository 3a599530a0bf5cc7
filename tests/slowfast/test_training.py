"""Training keys of ``MVITV2`` around PySlowFast's own functions, in process, in float64."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mvitv2_core import load_checkpoint
from mvitv2_core.layer_groups import layer_scale
from mvitv2_core.training import average_of
from mvitv2_slowfast import MViTv2
from tests.compare import error, randomize
from tests.slowfast.launch import TINY, needs_pyslowfast

pytestmark = needs_pyslowfast


@pytest.fixture(scope="module", autouse=True)
def connected() -> Iterator[None]:
    """PySlowFast with what the launcher puts around it."""
    from mvitv2_slowfast.plugin import connect

    with pytest.MonkeyPatch.context() as patch:
        for name in ("synchronize", "set_device"):  # replaced where there is no CUDA
            patch.setattr(torch.cuda, name, getattr(torch.cuda, name))
        connect()
        yield


def config(tmp_path: Path, **changes: Any) -> Any:
    """PySlowFast's config of the tiny model, drop path and dropout off."""
    from slowfast.config.defaults import get_cfg

    cfg = get_cfg()
    for node, values in TINY.items():
        for key, value in values.items() if isinstance(values, dict) else []:
            cfg[node][key] = value
    cfg.NUM_GPUS, cfg.MVIT.DROPPATH_RATE, cfg.OUTPUT_DIR = 0, 0.0, str(tmp_path)
    cfg.SOLVER.OPTIMIZING_METHOD, cfg.SOLVER.WARMUP_EPOCHS = "adamw", 0.0
    for key, value in changes.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return cfg


def model_of(cfg: Any, dtype: torch.dtype = torch.float64) -> MViTv2:
    return randomize(MViTv2(cfg)).to(dtype)  # type: ignore[return-value]


def batches(count: int, dtype: torch.dtype = torch.float64) -> list[tuple]:
    """As PySlowFast's loaders give them: clips, labels, index, time, meta."""
    found = []
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        clips = torch.randn(2, 3, 4, 32, 32, generator=generator, dtype=dtype)
        labels = torch.tensor([seed % 6, 2])
        found.append(([clips], labels, torch.arange(2), torch.zeros(2), {}))
    return found


def epoch(cfg: Any, model: nn.Module, optimizer: Any, loader: list[tuple], number: int = 0) -> None:
    """PySlowFast's own ``train_epoch``."""
    from slowfast.utils.meters import TrainMeter
    from vision.fair.slowfast.tools import train_net

    scaler = torch.amp.GradScaler("cpu", enabled=False)
    meter = TrainMeter(len(loader), cfg)
    train_net.train_epoch(loader, model, optimizer, scaler, meter, number, cfg)


def plain_epoch(
    cfg: Any, model: nn.Module, optimizer: Any, loader: list[tuple], together: int = 1
) -> list[dict[str, Tensor]]:
    """The same in plain PyTorch; returns the weights after every step."""
    from slowfast.models.optimizer import get_epoch_lr, set_lr

    model.train()
    history = []
    for last in range(together - 1, len(loader), together):
        set_lr(optimizer, get_epoch_lr(last / len(loader), cfg))
        optimizer.zero_grad()
        group = loader[last - together + 1 : last + 1]
        losses = [nn.functional.cross_entropy(model(x), y) for x, y, *_ in group]
        (sum(losses) / together).backward()
        if cfg.SOLVER.CLIP_GRAD_L2NORM:
            nn.utils.clip_grad_norm_(model.parameters(), cfg.SOLVER.CLIP_GRAD_L2NORM)
        optimizer.step()
        history.append({name: value.clone() for name, value in model.state_dict().items()})
    return history


def construct(cfg: Any, model: nn.Module) -> Any:
    from slowfast.models import optimizer

    return optimizer.construct_optimizer(model, cfg)


def test_layer_decay_is_upstreams_key(tmp_path: Path) -> None:
    """``SOLVER.LAYER_DECAY`` counts the layers of this model as this project does."""
    cfg = config(tmp_path, SOLVER__LAYER_DECAY=0.8)
    model = model_of(cfg)
    optimizer = construct(cfg, model)
    scales = {p: g["layer_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert len(scales) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        assert scales[parameter] == pytest.approx(layer_scale(name, 4, 0.8), rel=1e-12), name
    assert min(scales.values()) == scales[model.patch_embed.proj.weight]
    assert scales[model.head.projection.weight] == scales[model.norm.weight] == 1.0


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"MVITV2__EMA_DECAY": 0.6},
        {"MVITV2__ACCUMULATE": 2},
        {"MVITV2__ACCUMULATE": 3, "SOLVER__CLIP_GRAD_L2NORM": 0.01, "MVITV2__EMA_DECAY": 0.6},
    ],
    ids=["off", "average", "accumulated", "accumulated, clipped and averaged"],
)
def test_epoch_is_plain_pytorch(tmp_path: Path, keys: dict[str, Any]) -> None:
    cfg = config(tmp_path, **keys)
    ours, plain = model_of(cfg), model_of(cfg)
    optimizer = construct(cfg, ours)
    epoch(cfg, ours, optimizer, batches(6))
    other = torch.optim.AdamW(
        [{"params": plain.parameters(), "layer_decay": 1.0}],
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        betas=cfg.SOLVER.BETAS,
    )
    together = cfg.MVITV2.ACCUMULATE
    history = plain_epoch(cfg, plain, other, batches(6), together)
    assert len(history) == 6 // together
    for name, value in ours.state_dict().items():
        assert error(value, history[-1][name]) < 1e-9, name
    if not cfg.MVITV2.EMA_DECAY:
        assert average_of(ours) is None
    else:
        check_average(ours, plain, history)


def check_average(ours: MViTv2, plain: MViTv2, history: list[dict[str, Tensor]]) -> None:
    """The average of ``history``, by decay 0.6, is what ``ours`` keeps and evaluates."""
    average = average_of(ours)
    by_hand = history[0]
    for weights in history[1:]:
        by_hand = {n: 0.6 * value + 0.4 * weights[n] for n, value in by_hand.items()}
    for name, value in average.state_dict().items():
        assert error(value, by_hand[name]) < 1e-9, name
    plain.load_state_dict(by_hand)
    x = batches(1)[0][0]
    assert error(ours.eval()(x), plain.eval()(x)) < 1e-12


def test_bfloat16_trunk(tmp_path: Path) -> None:
    """Autocast around the trunk in training; head and loss in float32; evaluation as without."""
    on, off = config(tmp_path, MVITV2__BFLOAT16=True), config(tmp_path)
    ours, plain = model_of(on, torch.float32), model_of(off, torch.float32)
    ((x,), *_), *_ = batches(1, torch.float32)
    out = ours.train()([x])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        tokens, _ = plain.train().tokens(x)
    expected = plain.head(plain.pool_tokens(tokens.float()))
    assert out.dtype == torch.float32 and torch.equal(out, expected)
    assert 1e-5 < error(out, plain([x])) < 0.1
    assert torch.equal(ours.eval()([x]), plain.eval()([x]))


def test_checkpoints_hold_the_average(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Saved, resumed, tested and read by this project."""
    from slowfast.utils import checkpoint

    cfg = config(tmp_path, MVITV2__EMA_DECAY=0.6)
    ours = model_of(cfg)
    optimizer = construct(cfg, ours)
    epoch(cfg, ours, optimizer, batches(3))
    path = checkpoint.save_checkpoint(cfg.OUTPUT_DIR, ours, optimizer, 0, cfg)
    state = average_of(ours).state_dict()
    saved = torch.load(path, weights_only=True)
    assert all(torch.equal(saved["model_ema"][n], v) for n, v in state.items())
    assert all(torch.equal(saved["model_state"][n], v) for n, v in ours.state_dict().items())
    assert checkpoint.torch is torch

    resumed = model_of(cfg)
    again = construct(cfg, resumed)
    assert checkpoint.load_checkpoint(path, resumed, False, again) == 0
    assert all(torch.equal(v, state[n]) for n, v in average_of(resumed).state_dict().items())
    started = model_of(cfg)
    first = construct(cfg, started)
    assert checkpoint.load_checkpoint(path, started, False, first, epoch_reset=True) == -1
    assert not average_of(started).started
    assert "is tested" not in caplog.text

    # A training of no epochs, which AVA's centre crop is measured by, is a test.
    centre = config(tmp_path, MVITV2__EMA_DECAY=0.6, SOLVER__MAX_EPOCH=0)
    measured = model_of(centre)
    none = construct(centre, measured)
    with caplog.at_level("INFO"):
        assert checkpoint.load_checkpoint(path, measured, False, none, epoch_reset=True) == -1
    assert all(torch.equal(v, state[n]) for n, v in measured.state_dict().items())
    assert f"the average of the weights in {path} is tested" in caplog.text

    tested, read, off = model_of(cfg), model_of(cfg), model_of(config(tmp_path))
    checkpoint.load_test_checkpoint(cfg, tested)
    load_checkpoint(read, path, ema=True)
    checkpoint.load_test_checkpoint(config(tmp_path), off)
    for name, value in state.items():
        assert torch.equal(tested.state_dict()[name], value), name
        assert torch.equal(read.state_dict()[name], value), name
        assert torch.equal(off.state_dict()[name], ours.state_dict()[name]), name


def test_no_average_in_a_file_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from slowfast.utils import checkpoint

    off, on = config(tmp_path), config(tmp_path, MVITV2__EMA_DECAY=0.6)
    ours = model_of(off)
    path = checkpoint.save_checkpoint(off.OUTPUT_DIR, ours, construct(off, ours), 0, off)
    assert "model_ema" not in torch.load(path, weights_only=True)
    tested = model_of(on)
    checkpoint.load_test_checkpoint(on, tested)
    assert "EMA_DECAY: the weights themselves are taken" in caplog.text
    assert all(torch.equal(v, tested.state_dict()[n]) for n, v in ours.state_dict().items())


def test_untrained_weights_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Only where there is no checkpoint in OUTPUT_DIR and none is named to be tested."""
    from slowfast.utils import checkpoint

    cfg = config(tmp_path)
    ours = model_of(cfg)
    checkpoint.load_test_checkpoint(cfg, ours)
    assert f"random weights are tested: OUTPUT_DIR {tmp_path} has no checkpoint" in caplog.text
    caplog.clear()
    path = checkpoint.save_checkpoint(cfg.OUTPUT_DIR, ours, construct(cfg, ours), 0, cfg)
    checkpoint.load_test_checkpoint(cfg, ours)
    named = {"OUTPUT_DIR": str(tmp_path / "none"), "TEST__CHECKPOINT_FILE_PATH": str(path)}
    checkpoint.load_test_checkpoint(config(tmp_path, **named), ours)
    assert "has no checkpoint" not in caplog.text
    named["TRAIN__CHECKPOINT_FILE_PATH"] = named.pop("TEST__CHECKPOINT_FILE_PATH")
    checkpoint.load_test_checkpoint(config(tmp_path, **named), ours)
    assert (
        f"what training starts from, {path} (TRAIN.CHECKPOINT_FILE_PATH), is tested" in caplog.text
    )


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"MVITV2__ACCUMULATE": 0}, r"MVITV2\.ACCUMULATE must be a positive whole number, got 0"),
        ({"MVITV2__VAL_SAMPLE": -1}, r"MVITV2\.VAL_SAMPLE must be 0 or positive.* got -1"),
        ({"MVITV2__EMA_DECAY": 1.0}, r"MVITV2\.EMA_DECAY must be in \[0, 1\), got 1\.0"),
        (
            {"MVITV2__BFLOAT16": True, "TRAIN__MIXED_PRECISION": True},
            r"TRAIN\.MIXED_PRECISION \(float16\) must be False with MVITV2\.BFLOAT16, got True",
        ),
        (
            {"MODEL__LOSS_FUNC": "bce", "TRAIN__MIXED_PRECISION": True},
            r"MIXED_PRECISION \(float16\) must be False with MODEL\.LOSS_FUNC bce.* got True",
        ),
        (
            {"MVITV2__ACCUMULATE": 2, "SOLVER__LARS_ON": True},
            r"SOLVER\.LARS_ON must be False with MVITV2\.ACCUMULATE",
        ),
    ],
)
def test_refused(tmp_path: Path, keys: dict[str, Any], text: str) -> None:
    cfg = config(tmp_path, **keys)
    with pytest.raises(ValueError, match=text):
        construct(cfg, model_of(cfg))


def test_other_models_are_left_alone(tmp_path: Path) -> None:
    cfg = config(tmp_path, MVITV2__EMA_DECAY=0.6, MVITV2__ACCUMULATE=0)
    other = nn.Linear(2, 2)
    optimizer = construct(cfg, other)
    assert average_of(other) is None and "step" not in optimizer.__dict__
