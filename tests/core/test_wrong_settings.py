"""Wrong arguments of the core, each refused at construction by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from mvitv2_core import BlockSpec, MViT, MViTClassifier, MViTConfig
from mvitv2_core.config import lay_out
from mvitv2_core.rows import stage_rows
from tests.wrong import FLAG, MAKER, NAN, POSITIVE, RATE, SCALE, refused, sizes, table

Tally = Callable[..., None]
SPEC = BlockSpec(8, 8, 8, 2, (4, 4), (1, 1), (2, 2), (3, 3), (3, 3))
NEXT = BlockSpec(8, 16, 16, 2, (4, 4), (2, 2), (2, 2), (3, 3), (3, 3))
CONFIG = MViTConfig((SPEC, NEXT), (16, 16), (7, 7), (4, 4), (3, 3), num_classes=3)


def test_the_right_settings_are_right() -> None:
    assert MViTClassifier(CONFIG)(torch.zeros(1, 3, 16, 16)).shape == (1, 3)


@table(
    {
        **dict.fromkeys(("dim", "dim_att", "dim_out", "num_heads"), POSITIVE),
        **{name: sizes(2) for name in ("thw", "stride_q", "stride_kv", "kernel_q", "kernel_kv")},
        "drop_path": RATE,
        "window_size": [-8, 1.5, 16.0, "16", None, True, NAN, 3, 5],
    }
)
def test_block_spec(key: str, value: Any, tally: Tally) -> None:
    refused(lambda: replace(SPEC, **{key: value}), key, tally)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("num_heads", {"num_heads": 3}),
        ("dim_att", {"dim_att": 4, "num_heads": 1}),
        ("kernel_q", {"kernel_q": None, "stride_q": (2, 2)}),
        ("kernel_kv", {"kernel_kv": None}),
        ("kernel_q", {"kernel_q": (2, 2)}),
        ("stride_q", {"stride_q": (3, 3)}),
        ("stride_q", {"stride_q": None}),
        ("stride_kv", {"stride_kv": None}),
    ],
    ids=str,
)
def test_block_spec_pairs(key: str, values: dict[str, Any], tally: Tally) -> None:
    refused(lambda: replace(SPEC, **values), key, tally)


@table(
    {
        "blocks": [(), None, SPEC, [SPEC], (SPEC, None), "T"],
        **{name: sizes(2) for name in ("input_size", "patch_kernel", "patch_stride")},
        "patch_padding": [(-1, 3), (3,), (3, 3, 3), (1.5, 3), ("3", 3), (True, 3), 3, None],
        **dict.fromkeys(("in_chans", "num_classes"), POSITIVE),
        **dict.fromkeys(("mlp_ratio", "head_init_scale"), SCALE),
        **dict.fromkeys(
            (*("qkv_bias", "cls_token", "rel_pos_zero_init", "residual_pooling"), "mean_pooling"),
            FLAG,
        ),
        "abs_pos": ["both", None, True, "separate", ["joint"], ""],
        "abs_pos_cls_row": ["yes", 1],
        "rel_pos": [(True,), (True,) * 3, True, None, (1, 1), ("h", "w")],
        **dict.fromkeys(("dropout", "head_dropout"), RATE),
    }
)
def test_config(key: str, value: Any, tally: Tally) -> None:
    refused(lambda: replace(CONFIG, **{key: value}), key, tally)


@table({"abs_pos_thw": [(4,), (4, 4, 4), (0, 4), (4, -1), (2.0, 4), "44", 4]})
def test_table_sizes(key: str, value: Any, tally: Tally) -> None:
    refused(lambda: replace(CONFIG, abs_pos="joint", abs_pos_thw=value), key, tally)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("blocks", {"blocks": (SPEC, replace(NEXT, dim=16))}),
        ("blocks", {"blocks": (SPEC, replace(NEXT, thw=(8, 8)))}),
        (
            "patch_kernel",
            {"patch_kernel": (7, 7, 7), "patch_stride": (4,) * 3, "patch_padding": (3,) * 3},
        ),
        ("input_size", {"input_size": (2, 16, 16)}),
        ("patch_stride", {"patch_kernel": (7,)}),
        ("patch_padding", {"patch_kernel": (7,), "patch_stride": (4,)}),
        ("abs_pos_cls_row", {"abs_pos_cls_row": False, "cls_token": True, "abs_pos": "joint"}),
        ("mlp_ratio", {"mlp_ratio": 0.01}),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value),
)
def test_config_pairs(key: str, values: dict[str, Any], tally: Tally) -> None:
    refused(lambda: replace(CONFIG, **values), key, tally)


@table(
    {
        "name": ["XL", "t", "", None, 1, ["T"]],
        "input_size": [224, (224,), (1, 2, 3, 4), (224, 0), (2, 224), (1, 224, 224), "ab", None],
        "kv_stride": [0, -1, 1.5, "4", True, NAN],
        "drop_path_rate": RATE,
        "dim_mul_in_att": FLAG,
        "nmu_classes": [5],
    }
)
def test_variant(key: str, value: Any, tally: Tally) -> None:
    arguments = {"name": "T", "input_size": (64, 64), key: value}
    refused(lambda: MViTConfig.variant(**arguments), key, tally)


@table(
    {
        "depths": [(), (0, 1), (1, -1), (1.5,), ("1",), 3, None],
        **dict.fromkeys(("embed_dim", "num_heads"), POSITIVE),
        "stride_kv": [value for value in sizes(2) if value not in ((4,), (4, 4, 4))],
    }
)
def test_stage_rows(key: str, value: Any, tally: Tally) -> None:
    arguments = {"depths": (1, 1), "embed_dim": 8, "num_heads": 1, "stride_kv": (2, 2), key: value}
    refused(lambda: stage_rows(**arguments), key, tally)


@table({"thw": sizes(2), "drop_path_rate": RATE, "dim_mul_in_att": FLAG})
def test_lay_out(key: str, value: Any, tally: Tally) -> None:
    rows = stage_rows((1, 1), 8, 1, (2, 2))
    arguments = {"rows": rows, "embed_dim": 8, "thw": (4, 4), key: value}
    refused(lambda: lay_out(**arguments), key, tally)


@pytest.mark.parametrize("model", [MViT, MViTClassifier])
@table(
    {
        "config": [None, "T", SPEC, {}],
        **dict.fromkeys(("norm_layer", "act_layer"), MAKER),
        **dict.fromkeys(("act_checkpoint", "compile"), FLAG),
        "droppath": [0.1],
    }
)
def test_model(model: type, key: str, value: Any, tally: Tally) -> None:
    refused(lambda: model(**{"config": CONFIG, key: value}), key, tally)
