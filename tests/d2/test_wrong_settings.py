"""Wrong arguments, LazyConfigs and YAML keys of the backbone, each refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("detectron2", reason="install detectron2 to run: make setup")

from detectron2.config import LazyCall, instantiate
from detectron2.modeling import build_backbone

from mvitv2_d2 import MViT
from tests.d2.test_config import small
from tests.wrong import FLAG, MAKER, NAN, POSITIVE, RATE, SCALE, refused, sizes, table

Tally = Callable[..., None]
SMALL: dict[str, Any] = {
    **{"depth": 4, "last_block_indexes": (0, 1, 2, 3), "embed_dim": 8, "num_heads": 1},
    "adaptive_window_size": 16,
}
WINDOW = [-8, 1.5, 16.0, "16", None, True, NAN, 3, 10, 18]
NAMES = [
    (),
    ("scale6",),
    ("res2",),
    "scale5",
    ("scale2", "scale2"),
    None,
    5,
    (2, 3),
    ("scale2", []),
]
ARGUMENTS = {
    "img_size": [0, -1, 1.5, None, True, "224", (64,), (64, 64, 64), (64, 0), (64, 64.0), 3],
    **{name: sizes(2) for name in ("patch_kernel", "patch_stride", "qkv_pool_kernel")},
    "patch_padding": [(-1, 3), (3,), (3, 3, 3), (1.5, 3), ("3", 3), (True, 3), 3, None],
    **dict.fromkeys(
        (
            *("in_chans", "embed_dim", "depth", "num_heads"),
            *("adaptive_kv_stride", "pretrain_img_size"),
        ),
        POSITIVE,
    ),
    "last_block_indexes": [
        *((), (0, 1, 2), (0, 2, 1, 3), (0, 1, 1, 3), (-1, 1, 2, 3), (0, 1, 2, 4)),
        *((0.0, 1, 2, 3), (False, 1, 2, 3), ("0", 1, 2, 3), "0123", 3, None),
    ],
    "adaptive_window_size": WINDOW,
    **dict.fromkeys(
        (
            *("residual_pooling", "qkv_bias", "use_abs_pos", "use_rel_pos", "rel_pos_zero_init"),
            *("use_act_checkpoint", "pretrain_use_cls_token", "dim_mul_in_att", "compile"),
        ),
        FLAG,
    ),
    "mlp_ratio": SCALE,
    "drop_path_rate": RATE,
    **dict.fromkeys(("norm_layer", "act_layer"), MAKER),
    "out_features": NAMES,
    "window_size": [16],
}


@table(ARGUMENTS)
def test_arguments(key: str, value: Any, tally: Tally) -> None:
    expected = "window_size" if key == "adaptive_window_size" and value in (3, 10, 18) else key
    refused(lambda: MViT(**{**SMALL, key: value}), expected, tally)


@table(ARGUMENTS)
def test_lazy_config(key: str, value: Any, tally: Tally) -> None:
    lazy = LazyCall(MViT)(**SMALL)

    def build() -> object:
        lazy[key] = value
        return instantiate(lazy)

    expected = "window_size" if key == "adaptive_window_size" and value in (3, 10, 18) else key
    refused(build, expected, tally)


YAML = {
    "VARIANT": ["XL", "T", "t", 1, None, True, ["T"]],
    "DEPTHS": [[], [0, 1], [-1, 2], [1.5], ["1"], [True, 1], [1] * 5, 4, "1", None],
    **dict.fromkeys(("EMBED_DIM", "NUM_HEADS", "KV_STRIDE", "PRETRAIN_IMG_SIZE"), POSITIVE),
    "IMG_SIZE": [0, -1, 1.5, "224", None, True, 3],
    "WINDOW_SIZE": WINDOW,
    "MLP_RATIO": SCALE,
    "NORM_EPS": SCALE,
    "DROP_PATH_RATE": RATE,
    **dict.fromkeys(
        (
            *("QKV_BIAS", "RESIDUAL_POOLING", "USE_ABS_POS", "USE_REL_POS", "REL_POS_ZERO_INIT"),
            *("ACT_CHECKPOINT", "PRETRAIN_USE_CLS_TOKEN", "DIM_MUL_IN_ATT", "COMPILE"),
        ),
        FLAG,
    ),
    "OUT_FEATURES": [[], ["scale6"], ["res2"], "scale5", ["scale2", "scale2"], None, 5, [2]],
    "WINDOW": [16],
    "DEPTH": [3],
}


@table(YAML)
def test_yaml(key: str, value: Any, tally: Tally) -> None:
    """Set in Python, where detectron2 checks nothing."""
    cfg = small()

    def build() -> object:
        if key not in cfg.MODEL.MVITV2:
            cfg.merge_from_list([f"MODEL.MVITV2.{key}", value])
        cfg.MODEL.MVITV2[key] = value
        return build_backbone(cfg)

    refused(build, key, tally)


# From a file detectron2 reads a quoted number as a number.
FILES = {
    key: [value for value in values if not isinstance(value, str) or value.isalpha()]
    for key, values in YAML.items()
}


@table(FILES)
def test_yaml_file(key: str, value: Any, tally: Tally, tmp_path: Path) -> None:
    """Merged from a file, where detectron2 checks types as well."""
    file = tmp_path / "wrong.yaml"
    file.write_text(yaml.safe_dump({"MODEL": {"MVITV2": {key: value}}}))
    cfg = small()

    def build() -> object:
        cfg.merge_from_file(str(file))
        return build_backbone(cfg)

    refused(build, key, tally)


@table({"FREEZE_AT": [-1, 6, 1.5, "2", None, True]})
def test_freeze_at(key: str, value: Any, tally: Tally) -> None:
    cfg = small()
    cfg.MODEL.BACKBONE.FREEZE_AT = value
    refused(lambda: build_backbone(cfg), key, tally)


@table({"NUM_HEADS": [3, 5, 16], "WINDOW_SIZE": [2, 6, 24], "IMG_SIZE": [1, 2]})
def test_yaml_pairs(key: str, value: Any, tally: Tally) -> None:
    refused(lambda: build_backbone(small(**{key: value, "KV_STRIDE": 16})), key, tally)
