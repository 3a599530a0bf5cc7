"""Wrong keys of a PySlowFast config, each refused by name when the model is built."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mvitv2_slowfast import MViTv2
from tests.slowfast_cfg import BASE, make_cfg
from tests.wrong import FLAG, INF, NAN, POSITIVE, RATE, SCALE, refused, table

Tally = Callable[..., None]
DEPTH = BASE["MVIT.DEPTH"]
NO_ROWS = [None, 2.0, "1, 2.0", [1, 2.0], [None], [[1, 2.0], 3]]
MULTIPLIERS = [
    *([[DEPTH, 2.0]], [[-1, 2.0]], [[1, 2.0], [1, 2.0]], [[1]], [[1, 2.0, 3]], [[]]),
    *([[1, 0.0]], [[1, -2.0]], [[1, NAN]], [[1, INF]], [[1, "2"]], [[1, None]], [[1, True]]),
    *([[1.0, 2.0]], [[True, 2.0]], [["1", 2.0]]),
]
STRIDES = [
    *([[DEPTH, 1, 1, 1]], [[-1, 1, 1, 1]], [[1, 1, 2, 2], [1, 1, 2, 2]], [[1, 2, 2]], [[]]),
    *([[1, 1, 2, 0]], [[1, 1, 2, -2]], [[1, 1, 2, 2.0]], [[1, 1, 2, "2"]], [[1, 1, 2, None]]),
    *([[True, 1, 2, 2]], [[1.0, 1, 2, 2]], [[1, 1, True, 2]], [[1, 1, 2, 2, 2]]),
]
WINDOWS = [
    *([[DEPTH, 4]], [[-1, 4]], [[1, 4], [1, 4]], [[1]], [[1, 4, 4]], [[]], [[1, 0]], [[1, -4]]),
    *([[1, 4.0]], [[True, 4]], [["1", 4]], [[1, None]]),
]
THREE = [[7, 7], [3, 7, 7, 7], [3, 7, -1], [3, 7, 7.0], [3, 7, "7"], [3, 7, None], 7, "377"]
SETTINGS = {
    **{f"MVIT.{key}": POSITIVE for key in ("DEPTH", "EMBED_DIM", "NUM_HEADS")},
    **{f"MVIT.{key}": SCALE for key in ("MLP_RATIO", "HEAD_INIT_SCALE")},
    **{f"MVIT.{key}": RATE for key in ("DROPOUT_RATE", "DROPPATH_RATE")},
    **{
        f"MVIT.{key}": FLAG
        for key in (
            *("CLS_EMBED_ON", "DIM_MUL_IN_ATT", "PATCH_2D", "QKV_BIAS", "REL_POS_SPATIAL"),
            *("REL_POS_TEMPORAL", "REL_POS_ZERO_INIT", "RESIDUAL_POOLING", "SEP_POS_EMBED"),
            *("USE_ABS_POS", "USE_MEAN_POOLING", "ZERO_DECAY_POS_CLS"),
        )
    },
    **{f"MVIT.{key}": [*THREE, None, [0, 7, 7]] for key in ("PATCH_KERNEL", "PATCH_STRIDE")},
    "MVIT.PATCH_PADDING": [*THREE, None],
    "MVIT.POOL_KVQ_KERNEL": [*THREE, [3, 3, 0], [2, 2, 2]],
    "MVIT.POOL_KV_STRIDE_ADAPTIVE": [*THREE, [1, 0, 4]],
    "MVIT.POOL_Q_STRIDE": [*NO_ROWS, *STRIDES, [[1, 1, 3, 3]]],
    "MVIT.DIM_MUL": [*NO_ROWS, *MULTIPLIERS],
    "MVIT.HEAD_MUL": [*NO_ROWS, *MULTIPLIERS],
    "MVIT.MODE": ["max", "avg", "conv_unshared", None, True],
    "MVIT.NORM": ["batchnorm", None, 1],
    **{
        f"MVIT.{key}": [True, "no", None]
        for key in ("NORM_STEM", "POOL_FIRST", "SEPARATE_QKV", "USE_FIXED_SINCOS_POS")
    },
    "MVIT.LAYER_SCALE_INIT_VALUE": [0.1, NAN, "0", None],
    "MVIT.REV.ENABLE": [True, "no"],
    "MVIT.NEW_KEY": [1],
    "MVIT.POOL_KV_STRIDES": [[[0, 1, 1, 1]]],
    "MVITV2": [{"WINDOW_SIZE": rows} for rows in [*NO_ROWS, *WINDOWS]],
    "MODEL.NUM_CLASSES": POSITIVE,
    "MODEL.DROPOUT_RATE": RATE,
    "MODEL.ACT_CHECKPOINT": FLAG,
    "MODEL.HEAD_ACT": ["relu", None, True, ["softmax"], ""],
    "MODEL.DETACH_FINAL_FC": [True, "no"],
    "CONTRASTIVE.NUM_MLP_LAYERS": [0, 3, "1"],
    "DETECTION.ENABLE": [None, 1, "no"],
    "DATA.NUM_FRAMES": POSITIVE,
    "DATA.TRAIN_CROP_SIZE": [*POSITIVE, 2],
    "DATA.INPUT_CHANNEL_NUM": [[], 3, None, [0], [-3], [3.0], ["3"], [True]],
}


@table(SETTINGS)
def test_keys(key: str, value: Any, tally: Tally) -> None:
    cfg = make_cfg({**BASE, key: value})
    refused(lambda: MViTv2(cfg), key.split(".")[-1], tally)


@pytest.mark.parametrize("rows", [*NO_ROWS[1:], *STRIDES], ids=repr)
def test_listed_kv_strides(rows: Any, tally: Tally) -> None:
    keys = {"MVIT.POOL_KV_STRIDE_ADAPTIVE": None, "MVIT.POOL_KV_STRIDE": rows}
    refused(lambda: MViTv2(make_cfg({**BASE, **keys})), "POOL_KV_STRIDE", tally)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("NUM_FRAMES", {"DATA.NUM_FRAMES": 1}),
        ("PATCH_KERNEL", {"MVIT.PATCH_2D": True}),
        ("DIM_MUL", {"MVIT.DIM_MUL_IN_ATT": False, "MVIT.DIM_MUL": [[0, 2.0]]}),
        ("CLS_EMBED_ON", {"MVITV2": {"WINDOW_SIZE": [[1, 4]]}}),
        ("window_size", {"MVITV2": {"WINDOW_SIZE": [[1, 3]]}, "MVIT.CLS_EMBED_ON": False}),
        ("HEAD_ACT", {"DETECTION.ENABLE": True, "MODEL.HEAD_ACT": "none"}),
    ],
)
def test_pairs(key: str, values: dict[str, Any], tally: Tally) -> None:
    refused(lambda: MViTv2(make_cfg({**BASE, **values})), key, tally)
