"""Training options under detectron2's loop and checkpointer, in process on a tiny model."""

from __future__ import annotations

import copy
import inspect
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import ListConfig
from torch import Tensor, nn

pytest.importorskip("detectron2", reason="install detectron2 to run: make setup")
from detectron2 import model_zoo
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import DefaultTrainer, SimpleTrainer
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping

from mvitv2_core import CheckpointError, load_checkpoint
from mvitv2_core.layer_groups import layer_scale
from mvitv2_core.training import average_of
from mvitv2_d2 import MViT
from mvitv2_d2.training import LayerDecay, make_groups, prepare_from_cfg, with_training
from projects.detection.train_net import Trainer
from tests.compare import error, randomize
from tests.d2.yaml_cfg import small

DEPTH = 3
ADAMW = model_zoo.get_config("common/optim.py").AdamW
KEYS = {"LAYER_DECAY": 0.8, "EMA_DECAY": 0.5, "ACCUMULATE": 2, "BFLOAT16": True}


class Neck(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        kwargs: dict[str, Any] = {"embed_dim": 8, "depth": DEPTH, "last_block_indexes": (0, 1, 2)}
        kwargs["out_features"] = ("scale2", "scale3", "scale4")
        self.bottom_up = MViT(32, adaptive_window_size=0, **kwargs)
        self.lateral = nn.Conv2d(32, 4, 1)


class Detector(nn.Module):
    """A meta-architecture of few words: losses in training, maps in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Neck()
        randomize(self)
        self.double()

    def forward(self, batch: list[Tensor]) -> Any:
        like = self.backbone.lateral.weight
        maps = self.backbone.bottom_up(torch.stack(batch).to(like.dtype))
        out = self.backbone.lateral(maps["scale4"])
        return {"loss": out.to(like.dtype).square().mean()} if self.training else out


def batch(seed: int, size: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn(size, 3, 32, 32, generator=generator, dtype=torch.float64))


def pair() -> tuple[Detector, Detector]:
    model = Detector()
    return model, copy.deepcopy(model)


def lazy(optimizer: Any, model: nn.Module) -> torch.optim.Optimizer:
    """As tools/lazyconfig_train_net.py makes it."""
    optimizer.params.model = model
    return instantiate(optimizer)


def equal(ours: nn.Module, plain: nn.Module) -> None:
    for ours_p, plain_p in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours_p, plain_p)


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> SimpleTrainer:
    """detectron2's own loop over ``count`` batches."""
    trainer = SimpleTrainer(model, [batch(seed) for seed in range(count)], optimizer)
    trainer.train(0, count)
    return trainer


def rates(optimizer: torch.optim.Optimizer) -> dict[nn.Parameter, tuple[float, float]]:
    groups = optimizer.param_groups
    return {p: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}


def test_layer_decay_of_both_kinds_of_config() -> None:
    """ViTDet's way by names, and the key's by the model: one rate for every parameter."""
    model, _ = pair()
    by_names = copy.deepcopy(ADAMW)
    by_names.lr = 0.01
    by_names.params.lr_factor_func = {
        "_target_": "mvitv2_d2.training.LayerDecay",
        "decay": 0.8,
        "depth": DEPTH,
    }
    plain = copy.deepcopy(ADAMW)
    plain.lr = 0.01
    cfg = small(LAYER_DECAY=0.8)
    by_model = prepare_from_cfg(cfg, model, lazy(plain, model))
    found = rates(lazy(by_names, model))
    assert len(found) == len(list(model.parameters()))
    assert found.keys() == rates(by_model).keys()
    for name, parameter in model.named_parameters():
        inside = name.startswith("backbone.bottom_up.")
        rest = name.removeprefix("backbone.bottom_up.")
        lr = 0.01 * (layer_scale(rest, DEPTH, 0.8) if inside else 1.0)
        norm = "norm" in name
        for rate, decay in (found[parameter], rates(by_model)[parameter]):
            assert rate == pytest.approx(lr, rel=1e-12), name
            assert decay == (0.0 if norm else 0.1), name
    smallest = min(rate for rate, _ in found.values())
    assert smallest == pytest.approx(0.01 * 0.8 ** (DEPTH + 1))


def test_layer_decay_refuses() -> None:
    for decay, depth, text in ((0.0, 3, "decay must be in"), (0.9, 0, "depth must be a positive")):
        with pytest.raises(ValueError, match=text):
            LayerDecay(decay, depth)
    factor = LayerDecay(0.9, 2)
    assert factor("roi_heads.blocks.7.weight") == factor("backbone.fpn_lateral2.bias") == 1.0
    with pytest.raises(ValueError, match="depth must be more than 2"):
        factor("backbone.bottom_up.blocks.2.norm1.weight")
    model = Detector()
    with pytest.raises(ValueError, match=f"depth of LayerDecay must be the backbone's {DEPTH}"):
        make_groups(model, lr_factor_func=LayerDecay(0.9, DEPTH + 1))


@pytest.mark.parametrize("accumulate", [1, 3])
def test_lazy_optimizer_is_plain_pytorch(accumulate: int) -> None:
    """Six batches through SimpleTrainer with a clipped AdamW, an average and accumulation."""
    ours, plain = pair()
    recipe = with_training(ADAMW, ema_decay=0.6, accumulate=accumulate)
    assert "groups" not in ADAMW.params and recipe.optimizer == "torch.optim.AdamW"
    cfg = small()
    cfg.SOLVER.CLIP_GRADIENTS.update(ENABLED=True, CLIP_TYPE="norm", CLIP_VALUE=0.01)
    recipe.optimizer = maybe_add_gradient_clipping(cfg, torch.optim.AdamW)
    steps(ours, lazy(recipe, ours), 6)

    params = get_default_optimizer_params(plain, base_lr=ADAMW.lr, weight_decay_norm=0.0)
    other = torch.optim.AdamW(params, lr=ADAMW.lr, weight_decay=ADAMW.weight_decay)
    average: dict[str, Tensor] = {}
    plain.train()
    for start in range(0, 6, accumulate):
        together = [plain(batch(seed))["loss"] for seed in range(start, start + accumulate)]
        other.zero_grad()
        (sum(together) / accumulate).backward()
        for parameter in plain.parameters():  # detectron2 clips one by one
            nn.utils.clip_grad_norm_(parameter, 0.01)
        other.step()
        for name, value in plain.state_dict().items():
            before = average.get(name, value)
            average[name] = 0.6 * before + 0.4 * value
    state = average_of(ours).state_dict()
    for name, value in plain.state_dict().items():
        assert error(ours.state_dict()[name], value) < 1e-9, name
        assert error(state[name], average[name]) < 1e-9, name


def test_off_is_off() -> None:
    """With every option at its default the trainer's results are detectron2's, bit for bit."""
    ours, plain = pair()
    steps(ours, lazy(with_training(ADAMW), ours), 2)
    steps(plain, lazy(copy.deepcopy(ADAMW), plain), 2)
    assert all(
        torch.equal(a, b) for a, b in zip(ours.parameters(), plain.parameters(), strict=True)
    )
    assert average_of(ours) is None and "forward" not in ours.__dict__


def test_average_in_checkpoints(tmp_path: Path) -> None:
    """Saved beside the weights, resumed, read by this project, and loaded in their place."""
    ours, other = pair()
    recipe = with_training(ADAMW, ema_decay=0.6)
    trainer = steps(ours, lazy(copy.deepcopy(recipe), ours), 3)
    DetectionCheckpointer(ours, str(tmp_path), trainer=trainer).save("model_final", iteration=2)
    file = tmp_path / "model_final.pth"
    average = average_of(ours).state_dict()
    again = SimpleTrainer(other, [batch(seed) for seed in range(3, 5)], lazy(recipe, other))
    resumed = DetectionCheckpointer(other, str(tmp_path), trainer=again)
    resumed.resume_or_load("", resume=True)
    assert all(torch.equal(v, average[n]) for n, v in average_of(other).state_dict().items())
    goes_on = SimpleTrainer(ours, [batch(seed) for seed in range(3, 5)], trainer.optimizer)
    for one in (again, goes_on):
        one.train(3, 5)
    states = average_of(ours).state_dict(), average_of(other).state_dict()
    assert all(torch.equal(v, states[1][n]) for n, v in states[0].items())

    saved = torch.load(file, weights_only=True)
    for query, key in (("", "model"), ("?ema=True", "model_ema")):
        fresh = Detector()
        DetectionCheckpointer(fresh).load(f"{file}{query}")
        assert all(torch.equal(v, saved[key][n]) for n, v in fresh.state_dict().items()), key
    assert not torch.equal(*(saved[key]["backbone.lateral.bias"] for key in ("model", "model_ema")))
    report = load_checkpoint(fresh.backbone.bottom_up, file, ema=True, backbone=True)
    assert report.counts()["loaded"] == len(fresh.backbone.bottom_up.state_dict())
    torch.save({"model": fresh.state_dict()}, tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match="holds no EMA weights"):
        DetectionCheckpointer(fresh).load(f"{tmp_path / 'none.pth'}?ema=True")


def test_lists_of_omegaconf_in_an_optimizer(tmp_path: Path) -> None:
    """As some versions of torch keep a LazyConfig's betas: saved as a tuple; and files that hold
    them, such as detectron2's class left, are resumed."""
    ours, other = pair()
    trainer = steps(ours, lazy(copy.deepcopy(ADAMW), ours), 1)
    betas = ListConfig([0.8, 0.9], flags={"allow_objects": True})
    trainer.optimizer.param_groups[0]["betas"] = betas
    file = tmp_path / "model_final.pth"
    content = {"model": ours.state_dict(), "trainer": trainer.state_dict(), "iteration": 0}
    torch.save(content, file)
    with pytest.raises(pickle.UnpicklingError, match="ListConfig"):
        torch.load(file, weights_only=True)
    again = SimpleTrainer(other, [], lazy(copy.deepcopy(ADAMW), other))
    checkpointer = DetectionCheckpointer(other, str(tmp_path), trainer=again)
    assert checkpointer.load(str(file))["iteration"] == 0
    assert list(again.optimizer.param_groups[0]["betas"]) == [0.8, 0.9]
    for one in (checkpointer, DetectionCheckpointer(ours, str(tmp_path), trainer=trainer)):
        one.save("model_final")
        optimizer = torch.load(file, weights_only=True)["trainer"]["optimizer"]
        assert optimizer["param_groups"][0]["betas"] == (0.8, 0.9)


def test_a_resumed_run_without_its_average_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Not where a training starts from such weights, nor where the average goes on."""
    ours, _ = pair()
    trainer = steps(ours, lazy(with_training(ADAMW, ema_decay=0.6), ours), 1)
    DetectionCheckpointer(ours, str(tmp_path), trainer=trainer).save("model_final", iteration=0)
    for decay, resume, said in ((0.6, True, False), (0.0, False, False), (0.0, True, True)):
        caplog.clear()
        model, _ = pair()
        optimizer = lazy(with_training(ADAMW, ema_decay=decay), model)
        again = SimpleTrainer(model, [batch(0)], optimizer)
        checkpointer = DetectionCheckpointer(model, str(tmp_path), trainer=again)
        checkpointer.resume_or_load(str(tmp_path / "model_final.pth"), resume=resume)
        assert ("with which this run does not go on" in caplog.text) == said


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("LAYER_DECAY", 1.5, r"must be in \(0, 1\], got 1.5"),
        ("EMA_DECAY", 1.0, r"must be in \[0, 1\), got 1.0"),
        ("ACCUMULATE", 0, "must be a positive whole number, got 0"),
        ("BFLOAT16", "yes", "must be True or False, got 'yes'"),
        ("DETERMINISTIC", 1, "must be True or False, got 1"),
        ("VAL_SAMPLE", -1, "must be 0 or positive, a whole number, got -1"),
    ],
)
def test_wrong_keys(key: str, value: object, text: str) -> None:
    model, _ = pair()
    cfg = small(**{key: value})
    with pytest.raises(ValueError, match=rf"MODEL\.MVITV2\.{key} {text}"):
        prepare_from_cfg(cfg, model, torch.optim.SGD(model.parameters(), 0.1))
    if key in ("EMA_DECAY", "ACCUMULATE", "BFLOAT16", "DETERMINISTIC"):
        with pytest.raises(ValueError, match=rf"optimizer\.{key.lower()} {text}"):
            lazy(with_training(ADAMW, **{key.lower(): value}), model)


def test_what_does_not_go_together() -> None:
    model, _ = pair()
    cfg = small(BFLOAT16=True)
    cfg.SOLVER.AMP.ENABLED = True
    with pytest.raises(ValueError, match=r"SOLVER\.AMP\.ENABLED .* must be False with"):
        prepare_from_cfg(cfg, model, torch.optim.SGD(model.parameters(), 0.1))
    half = with_training(ADAMW, ema_decay=0.5)
    half.params._target_ = get_default_optimizer_params
    del half.params.groups
    with pytest.raises(ValueError, match=r"params\._target_ must be mvitv2_d2\.training\.make_gr"):
        lazy(half, model)


def test_lazy_recipe_survives_its_file(tmp_path: Path) -> None:
    """What the tool writes to config.yaml makes the same optimizer again."""
    ours, _ = pair()
    recipe = with_training(ADAMW, ema_decay=0.9, accumulate=2)
    recipe.params.lr_factor_func = {
        "_target_": "mvitv2_d2.training.LayerDecay",
        "decay": 0.8,
        "depth": DEPTH,
    }
    from omegaconf import OmegaConf

    LazyConfig.save(OmegaConf.create({"optimizer": recipe}), str(tmp_path / "config.yaml"))
    again = LazyConfig.load(str(tmp_path / "config.yaml")).optimizer
    assert rates(lazy(again, ours)) == rates(lazy(recipe, ours))


def test_a_program_that_adds_the_keys_gets_them_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the hook: ``small`` calls no more than ``add_mvitv2_config``."""
    for name in ("build_optimizer", "test"):
        method = inspect.unwrap(getattr(DefaultTrainer, name).__func__)
        monkeypatch.setattr(DefaultTrainer, name, classmethod(method))
    (model, _), cfg = pair(), small(LAYER_DECAY=0.8)
    optimizer = DefaultTrainer.build_optimizer(cfg, model)
    assert len({group["lr"] for group in optimizer.param_groups}) == DEPTH + 2
    assert hasattr(DefaultTrainer.test, "__wrapped__")


def test_yaml_keys_reach_both_trainers() -> None:
    """detectron2's own ``build_optimizer`` (SGD) and the project's (AdamW)."""
    for trainer, kind in ((DefaultTrainer, torch.optim.SGD), (Trainer, torch.optim.AdamW)):
        model, _ = pair()
        optimizer = trainer.build_optimizer(small(**KEYS), model)
        assert isinstance(optimizer, kind)
        assert len({group["lr"] for group in optimizer.param_groups}) == DEPTH + 2
        steps(model, optimizer, 4)
        assert average_of(model).averaged.n_averaged == 2
        assert "forward" in model.__dict__
