"""Against PySlowFast's own MViT: weights both ways, outputs and gradients, optimizer groups."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mvitv2_slowfast import MViTv2
from tests import golden_data
from tests.compare import error, gradient_error, loss_of, randomize
from tests.slowfast.launch import needs_pyslowfast
from tests.slowfast_cfg import BASE, ODD, make_cfg

pytestmark = needs_pyslowfast
STILL = {"MODEL.DROPOUT_RATE": 0.0, "MVIT.DROPPATH_RATE": 0.0}  # nothing random in training
CASES: dict[str, dict[str, Any]] = {
    name.removeprefix("slowfast_"): golden_data.load(name)["overrides"]
    for name in golden_data.names("slowfast_")
    if "ava" not in name
}
CASES |= {
    "odd_multipliers": {**BASE, **ODD},
    "kernel_follows_stride": {**BASE, "MVIT.POOL_KVQ_KERNEL": None},
    "no_residual_no_bias": {**BASE, "MVIT.RESIDUAL_POOLING": False, "MVIT.QKV_BIAS": False},
    "temporal_q_stride": {**BASE, "MVIT.POOL_Q_STRIDE": [[1, 2, 2, 2], [3, 1, 2, 2]]},
    "absolute_and_mean": {**BASE, "MVIT.USE_ABS_POS": True, "MVIT.USE_MEAN_POOLING": True},
    "zero_decay": {**BASE, "MVIT.ZERO_DECAY_POS_CLS": True, "MVIT.USE_ABS_POS": True},
    "zero_decay_separate": {
        **BASE,
        "MVIT.ZERO_DECAY_POS_CLS": True,
        "MVIT.USE_ABS_POS": True,
        "MVIT.SEP_POS_EMBED": True,
    },
}


def pair(overrides: dict[str, Any]) -> tuple[MViTv2, torch.nn.Module]:
    """Our model and upstream's, float64, with the same random weights."""
    from slowfast.models.video_model_builder import MViT

    cfg = make_cfg({**overrides, **STILL})
    ours, upstream = MViTv2(cfg), MViT(cfg.clone())
    randomize(upstream)
    ours.load_state_dict(upstream.state_dict(), strict=True)
    upstream.load_state_dict(ours.state_dict(), strict=True)
    return ours.double(), upstream.double()


@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients(name: str) -> None:
    overrides = CASES[name]
    ours, upstream = pair(overrides)
    crop, frames = overrides["DATA.TRAIN_CROP_SIZE"], overrides["DATA.NUM_FRAMES"]
    shape = (2, 3, crop, crop) if overrides.get("MVIT.PATCH_2D") else (2, 3, frames, crop, crop)
    clip = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for mode in (False, True):
        out, reference = ours.train(mode)([clip]), upstream.train(mode)([clip])
        assert error(out, reference) < 1e-9
    loss_of(out).backward()
    loss_of(reference).backward()
    assert gradient_error(ours, upstream) < 1e-8
    assert ours.no_weight_decay() == upstream.no_weight_decay()


def test_detection() -> None:
    overrides = golden_data.load("slowfast_ava_detection_head")["overrides"]
    ours, upstream = pair(overrides)
    clip = torch.randn(2, 3, 4, 64, 64, generator=torch.Generator().manual_seed(1)).double()
    boxes = torch.tensor([[0.0, 4, 6, 40, 50], [1, 10, 0, 63, 30], [1, 2, 2, 20, 60]]).double()
    out, reference = ours([clip], boxes), upstream([clip], boxes)
    assert error(out, reference) < 1e-9
    loss_of(out).backward()
    loss_of(reference).backward()
    assert gradient_error(ours, upstream) < 1e-8
    # It has no deterministic gradient on a GPU.
    assert not [module for module in ours.modules() if isinstance(module, torch.nn.AvgPool3d)]
    # Whole frames in "full" testing, and other clip lengths, which upstream refuses.
    assert ours([torch.zeros(2, 3, 8, 64, 96).double()], boxes).shape == out.shape


@pytest.mark.parametrize("decay", [1.0, 0.75])
@pytest.mark.parametrize("zero", [False, True])
def test_optimizer_groups(decay: float, zero: bool) -> None:
    """Same parameters, rates and decay in every group, also layer by layer."""
    from slowfast.config.defaults import get_cfg
    from slowfast.models.optimizer import construct_optimizer

    cfg = get_cfg()
    for key, value in CASES["zero_decay"].items():
        cfg.merge_from_list([key, value])
    cfg.merge_from_list(["SOLVER.LAYER_DECAY", decay, "MVIT.ZERO_DECAY_POS_CLS", zero])
    cfg.merge_from_list(["SOLVER.ZERO_WD_1D_PARAM", True, "SOLVER.OPTIMIZING_METHOD", "adamw"])
    groups = []
    for model in pair(CASES["zero_decay"] | {"MVIT.ZERO_DECAY_POS_CLS": zero}):
        names = {parameter: name for name, parameter in model.named_parameters()}
        optimizer = construct_optimizer(model, cfg)
        groups.append(
            [
                (g["weight_decay"], g.get("layer_decay"), sorted(names[p] for p in g["params"]))
                for g in optimizer.param_groups
            ]
        )
    assert sorted(groups[0]) == sorted(groups[1])
    decays = {g[0] for g in groups[0]}
    assert decays == {0.0, cfg.SOLVER.WEIGHT_DECAY}


def test_registered_and_built_by_name() -> None:
    from slowfast.config.defaults import get_cfg
    from slowfast.models import build_model
    from slowfast.models.build import MODEL_REGISTRY

    assert MODEL_REGISTRY.get("MViTv2") is MViTv2
    cfg = get_cfg()
    assert cfg.MVITV2.IMAGE_CHECKPOINT == ""
    for key, value in BASE.items():
        cfg.merge_from_list([key, value])
    cfg.MODEL.MODEL_NAME = "MViTv2"
    assert type(build_model(cfg)) is MViTv2


def test_compiled_blocks_are_counted() -> None:
    """The trainer traces a model for its FLOPs before the first step; compiled ones too."""
    from slowfast.config.defaults import get_cfg
    from slowfast.utils.misc import get_model_stats

    cfg = get_cfg()
    for key, value in BASE.items():
        cfg.merge_from_list([key, value])
    cfg.NUM_GPUS, flops = 0, []
    for cfg.MVITV2.COMPILE in (False, True):
        flops.append(get_model_stats(MViTv2(cfg), cfg, "flop", True))
    assert flops[0] == flops[1] > 0


@pytest.mark.parametrize(
    ("recipe", "flops", "params"),
    [("Kinetics/MViTv2_S_16x4", 64, 34.5), ("Kinetics/MViTv2_B_32x3", 225, 51.2)],
)
@pytest.mark.slow
def test_published_flops_and_parameters(recipe: str, flops: float, params: float) -> None:
    """PySlowFast's own statistics, by fvcore, against the published GFLOPs and M parameters."""
    from slowfast.config.defaults import get_cfg
    from slowfast.models import build_model
    from slowfast.utils.misc import get_model_stats, params_count

    from tests.slowfast_cfg import CONFIGS

    cfg = get_cfg()
    cfg.merge_from_file(str(CONFIGS / f"{recipe}.yaml"))
    cfg.NUM_GPUS = 0
    model = build_model(cfg)
    assert params_count(model) / 1e6 == pytest.approx(params, rel=0.02)
    assert get_model_stats(model, cfg, "flop", True) == pytest.approx(flops, rel=0.02)
