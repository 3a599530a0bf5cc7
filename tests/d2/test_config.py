"""The YAML keys, the environment hook, the registry's builders and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("detectron2", reason="install detectron2 to run: make setup")

from detectron2.config import get_cfg
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone

from mvitv2_d2 import MViT, add_mvitv2_config
from tests.d2.yaml_cfg import small

Run = Callable[..., str]


def test_hook_adds_the_keys(run: Run) -> None:
    code = (
        "from detectron2.config import get_cfg\n"
        "from detectron2.modeling import BACKBONE_REGISTRY\n"
        "from mvitv2_d2 import add_mvitv2_config\n"
        "cfg = get_cfg(); add_mvitv2_config(cfg)\n"
        "from mvitv2_d2.env import setup_environment; setup_environment()\n"
        "print(cfg.MODEL.MVITV2.VARIANT, 'build_mvitv2_fpn_backbone' in BACKBONE_REGISTRY)"
    )
    assert run("-c", code, DETECTRON2_ENV_MODULE="mvitv2_d2.env").endswith("T True\n")


def test_without_the_hook_the_error_is_detectron2s(run: Run) -> None:
    code = (
        "from detectron2.config import get_cfg\n"
        "get_cfg().merge_from_list(['MODEL.MVITV2.VARIANT', 'S'])"
    )
    assert "Non-existent key: MODEL.MVITV2.VARIANT" in run("-c", code, status=1)


def test_importing_the_hook_imports_no_detectron2(run: Run) -> None:
    code = (
        "import sys, mvitv2_d2, mvitv2_d2.env, projects.detection.toy_env\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('detectron2', 'torch')])"
    )
    assert run("-c", code).strip() == "[]"


@pytest.mark.parametrize("module", ["backbone", "sample"])
def test_ours_may_be_imported_first_under_the_hook(run: Run, module: str) -> None:
    code = (
        f"import mvitv2_d2.{module}\n"
        "from detectron2.config import get_cfg\n"
        "print(get_cfg().MODEL.MVITV2.VARIANT, mvitv2_d2.MViT.__name__)"
    )
    assert run("-c", code, DETECTRON2_ENV_MODULE="mvitv2_d2.env").endswith("T MViT\n")


def test_a_hook_that_fails_says_so(run: Run) -> None:
    """With a core that cannot be imported, detectron2 does not start without our keys."""
    code = (
        "import sys; sys.modules['mvitv2_core'] = None\n"
        "import os; os.environ['DETECTRON2_ENV_MODULE'] = 'mvitv2_d2.env'\n"
        "import detectron2"
    )
    output = run("-c", code, status=1)
    assert "RuntimeError: DETECTRON2_ENV_MODULE=mvitv2_d2.env: MViTv2 could not be" in output
    assert "mvitv2_core" in output.splitlines()[-1]


def test_adding_the_keys_twice_keeps_what_was_set() -> None:
    cfg = get_cfg()
    add_mvitv2_config(cfg)
    cfg.MODEL.MVITV2.VARIANT = "B"
    add_mvitv2_config(cfg)
    assert cfg.MODEL.MVITV2.VARIANT == "B"


def test_keys_reach_the_backbone() -> None:
    """Every key but the sizes that other tests cover changes what is built."""
    model = build_backbone(
        small(
            **{"KV_STRIDE": 2, "MLP_RATIO": 2.0, "QKV_BIAS": False, "RESIDUAL_POOLING": False},
            **{"DROP_PATH_RATE": 0.4, "USE_ABS_POS": True, "USE_REL_POS": False},
            **{"NORM_EPS": 1e-3, "ACT_CHECKPOINT": True, "PRETRAIN_IMG_SIZE": 32},
            **{"PRETRAIN_USE_CLS_TOKEN": False, "OUT_FEATURES": ["scale3", "scale4"]},
        )
    )
    assert isinstance(model, MViT)
    config = model.config
    assert [block.stride_kv[0] for block in config.blocks] == [2, 2, 1, 2]
    assert [block.dim_out for block in config.blocks] == [8, 16, 32, 32]
    assert [block.num_heads for block in config.blocks] == [1, 2, 4, 4]
    assert [block.drop_path for block in config.blocks] == pytest.approx([0, 0.1, 0.2, 0.3])
    assert (config.mlp_ratio, config.qkv_bias, config.residual_pooling) == (2.0, False, False)
    assert config.rel_pos == (False, False) and model.act_checkpoint
    assert model.pos_embed is not None and model.pos_embed.shape == (1, 8 * 8, 8)
    assert model.blocks[0].norm1.eps == 1e-3
    assert set(model.output_shape()) == {"scale3", "scale4"}
    tables = build_backbone(small(REL_POS_ZERO_INIT=False))
    assert tables.blocks[0].attn.rel_pos_h.abs().max() > 0
    assert tables.blocks[0].attn.rel_pos_h.shape[0] == 2 * (64 // 4) - 1


def test_channels_come_from_the_pixel_mean() -> None:
    cfg = small()
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [0.0] * 5, [1.0] * 5
    assert build_backbone(cfg).patch_embed.proj.in_channels == 5


@pytest.mark.parametrize(
    ("name", "levels"),
    [
        ("build_mvitv2_backbone", {"scale2": 4, "scale3": 8, "scale4": 16, "scale5": 32}),
        ("build_mvitv2_fpn_backbone", {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64}),
        ("build_retinanet_mvitv2_fpn_backbone", {"p3": 8, "p4": 16, "p5": 32, "p6": 64, "p7": 128}),
    ],
)
def test_builders(name: str, levels: dict[str, int]) -> None:
    cfg = small()
    cfg.MODEL.BACKBONE.NAME = name
    if "retinanet" in name:
        cfg.MODEL.FPN.IN_FEATURES = ["scale3", "scale4", "scale5"]
    model = build_backbone(cfg)
    features = model(torch.randn(2, 3, 128, 192))
    shapes = model.output_shape()
    assert set(features) == set(shapes) == set(levels)
    for level, stride in levels.items():
        assert shapes[level].stride == stride
        expected = (2, shapes[level].channels, -(-128 // stride), -(-192 // stride))
        assert features[level].shape == expected


def test_retinanet_trains_and_detects() -> None:
    cfg = small()
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    cfg.MODEL.BACKBONE.NAME = "build_retinanet_mvitv2_fpn_backbone"
    cfg.MODEL.FPN.IN_FEATURES = ["scale3", "scale4", "scale5"]
    cfg.MODEL.RETINANET.NUM_CLASSES = 4
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64], [128], [256], [512]]
    model = META_ARCH_REGISTRY.get("RetinaNet")(cfg)
    from detectron2.structures import Boxes, Instances
    from detectron2.utils.events import EventStorage

    truth = Instances((100, 140))
    truth.gt_boxes = Boxes(torch.tensor([[10.0, 10.0, 60.0, 70.0]]))
    truth.gt_classes = torch.tensor([2])
    image = {"image": torch.randint(256, (3, 100, 140)), "instances": truth}
    with EventStorage():
        losses = model([image])
    sum(losses.values()).backward()
    # scale2 is no input of this FPN: its norm alone has no gradient.
    idle = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == [f"backbone.bottom_up.scale2_norm.{name}" for name in ("weight", "bias")]
    assert len(model.eval()([image])) == 1


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"VARIANT": "XL"}, r"MODEL\.MVITV2\.VARIANT must be one of T, S, B, L, H or empty.*'XL'"),
        ({"VARIANT": "T"}, r"MODEL\.MVITV2\.DEPTHS.*need MODEL\.MVITV2\.VARIANT '', got 'T'"),
        ({"DEPTHS": []}, r"MODEL\.MVITV2\.DEPTHS must be given where VARIANT is empty"),
        ({"DEPTHS": [1, 0, 2, 1]}, r"MODEL\.MVITV2\.DEPTHS must be positive whole numbers"),
        ({"EMBED_DIM": 0}, r"MODEL\.MVITV2\.EMBED_DIM must be given"),
        ({"EMBED_DIM": -8}, r"MODEL\.MVITV2\.EMBED_DIM must be a positive whole number, got -8"),
        ({"NUM_HEADS": 3}, r"num_heads must be a divisor of dim_att=8, got 3"),
        ({"IMG_SIZE": 0}, r"img_size must be 2 positive whole numbers"),
        ({"KV_STRIDE": 0}, r"MODEL\.MVITV2\.KV_STRIDE must be a positive whole number, got 0"),
        ({"WINDOW_SIZE": 18}, r"window_size must be a multiple of the block.s stride_q="),
        ({"WINDOW_SIZE": -16}, r"MODEL\.MVITV2\.WINDOW_SIZE must be 0 or positive, .* got -16"),
        ({"MLP_RATIO": 0.0}, r"MODEL\.MVITV2\.MLP_RATIO must be positive and finite, got 0"),
        ({"DROP_PATH_RATE": 1.0}, r"MODEL\.MVITV2\.DROP_PATH_RATE must be in"),
        ({"DROP_PATH_RATE": -0.1}, r"MODEL\.MVITV2\.DROP_PATH_RATE must be in"),
        ({"NORM_EPS": 0.0}, r"MODEL\.MVITV2\.NORM_EPS must be positive and finite, got 0"),
        (
            {"PRETRAIN_IMG_SIZE": 0},
            r"MODEL\.MVITV2\.PRETRAIN_IMG_SIZE must be a positive whole number, got 0",
        ),
        ({"OUT_FEATURES": ["res2"]}, r"out_features must be some of scale2.*res2"),
        ({"OUT_FEATURES": []}, r"out_features must be some of"),
    ],
    ids=lambda value: ",".join(map(str, value.items())) if isinstance(value, dict) else "",
)
def test_bad_yaml_values(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_backbone(small(**keys))


@pytest.mark.parametrize("freeze_at", [-1, 6])
def test_bad_freeze_at(freeze_at: int) -> None:
    cfg = small()
    cfg.MODEL.BACKBONE.FREEZE_AT = freeze_at
    with pytest.raises(ValueError, match=f"freeze_at must be .* from 0 to 5, got {freeze_at}"):
        build_backbone(cfg)


def test_retinanet_needs_scale5() -> None:
    cfg = small(OUT_FEATURES=["scale3", "scale4"])
    cfg.MODEL.BACKBONE.NAME = "build_retinanet_mvitv2_fpn_backbone"
    with pytest.raises(ValueError, match=r"MODEL\.MVITV2\.OUT_FEATURES must hold 'scale5'"):
        build_backbone(cfg)


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(AssertionError, match=r"Non-existent key: MODEL\.MVITV2\.DEPTH"):
        small().merge_from_list(["MODEL.MVITV2.DEPTH", "3"])


def test_building_does_not_write_to_the_config() -> None:
    cfg = small()
    before = cfg.dump()
    build_backbone(cfg)
    assert cfg.dump() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 0}, "depth must be a positive whole number, got 0"),
        ({"depth": 8}, "last_block_indexes must be .* end with depth - 1 = 7"),
        ({"last_block_indexes": (0, 4, 4, 6)}, "last_block_indexes must be .* rising"),
        ({"last_block_indexes": ()}, "last_block_indexes"),
        ({"last_block_indexes": (0, 1, 2, 3, 6)}, "last_block_indexes must be at most 4"),
        ({"embed_dim": 10, "num_heads": 4}, "num_heads must be a divisor of"),
        ({"embed_dim": 0}, "embed_dim must be a positive whole number, got 0"),
        ({"num_heads": 0}, "num_heads must be a positive whole number, got 0"),
        ({"in_chans": 0}, "in_chans must be a positive whole number, got 0"),
        ({"img_size": 0}, "img_size must be"),
        ({"img_size": (64, -64)}, "img_size must be"),
        ({"img_size": (64, 64, 64)}, r"img_size must .* \(64, 64, 64\)"),
        ({"patch_stride": (4,)}, r"patch_stride must .* \(4,\)"),
        ({"patch_stride": (4, 0)}, "patch_stride must be"),
        ({"patch_kernel": (0, 7)}, "patch_kernel must be"),
        ({"patch_padding": (-1, 3)}, "patch_padding must be 2 whole numbers >= 0"),
        ({"qkv_pool_kernel": (2, 2)}, "qkv_pool_kernel must be odd"),
        ({"adaptive_kv_stride": -4}, "adaptive_kv_stride must be a positive whole number, got -4"),
        ({"adaptive_window_size": 20}, "window_size must be a multiple of .* got 5"),
        ({"adaptive_window_size": 12}, "window_size must be a multiple of .* got 3"),
        ({"adaptive_window_size": 4}, "window_size must be a multiple of .* got 1"),
        ({"adaptive_window_size": 3}, "window_size must be a multiple of .* got 3"),
        ({"adaptive_window_size": -8}, "adaptive_window_size must be 0 or positive, .* got -8"),
        ({"drop_path_rate": 1.5}, "drop_path"),
        ({"mlp_ratio": -1.0}, "mlp_ratio must be positive"),
        ({"out_features": ("scale6",)}, "out_features must be some of .*scale6"),
        ({"out_features": "scale5"}, "out_features must be a sequence"),
        ({"out_features": ("scale5",), "depth": 3, "last_block_indexes": (0, 2)}, "out_features"),
    ],
    ids=str,
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    defaults = {"depth": 7, "last_block_indexes": (0, 2, 4, 6), "embed_dim": 16, "num_heads": 2}
    with pytest.raises(ValueError, match=message):
        MViT(**{**defaults, "adaptive_window_size": 16, **arguments})
