"""Drawn clips, stills and configs of the PySlowFast path against plain arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from torch import Tensor

from mvitv2_slowfast import MViTv2
from tests import plain
from tests.compare import randomize
from tests.draws import Case, batches, cases, clip_sizes, drawn, examples, hold, image_sizes, normal
from tests.slowfast_cfg import make_cfg

CLAIM = "inputs drawn, PySlowFast"


@st.composite
def settings(draw: st.DrawFn) -> dict[str, Any]:
    """Keys of a model of two to four blocks, for clips or for stills."""
    depth, stills = draw(st.integers(2, 4)), draw(st.booleans()) and draw(st.booleans())
    strided = sorted(draw(st.sets(st.integers(1, depth - 1), max_size=2)))
    time = draw(st.sampled_from((1, 1, 2)))
    separate = draw(st.booleans())
    # Windows are multiples of all strides below.
    windows = [[i, draw(st.sampled_from((4, 8)))] for i in range(depth) if draw(st.booleans())]
    windowed = bool(windows) and time == 1 and draw(st.booleans())
    patch = {
        "MVIT.PATCH_2D": True,
        "MVIT.PATCH_KERNEL": [7, 7],
        "MVIT.PATCH_STRIDE": [4, 4],
        "MVIT.PATCH_PADDING": [3, 3],
    }
    return {
        **(patch if stills else {"MVIT.PATCH_PADDING": [1, 3, 3]}),
        "DATA.NUM_FRAMES": 1 if stills else draw(st.integers(2, 8)),
        "DATA.TRAIN_CROP_SIZE": draw(st.integers(8, 40)),
        "DATA.INPUT_CHANNEL_NUM": [3],
        "MODEL.NUM_CLASSES": draw(st.integers(1, 5)),
        "MODEL.DROPOUT_RATE": 0.0,
        "MODEL.HEAD_ACT": draw(st.sampled_from(("softmax", "sigmoid", "none"))),
        "MODEL.ACT_CHECKPOINT": draw(st.booleans()),
        "MVIT.MODE": "conv",
        "MVIT.DEPTH": depth,
        "MVIT.EMBED_DIM": 8,
        "MVIT.NUM_HEADS": 1,
        "MVIT.DROPPATH_RATE": 0.0,
        "MVIT.DIM_MUL": [[i, 2.0] for i in strided],
        "MVIT.HEAD_MUL": [[i, 2.0] for i in strided],
        "MVIT.DIM_MUL_IN_ATT": draw(st.booleans()),
        "MVIT.POOL_Q_STRIDE": [
            [i, time if i in strided else 1, *[2 if i in strided else 1] * 2]
            for i in range(depth)
            if i in strided or draw(st.booleans())
        ],
        "MVIT.POOL_KV_STRIDE_ADAPTIVE": [1, *[draw(st.sampled_from((1, 2, 4)))] * 2],
        "MVIT.POOL_KVQ_KERNEL": draw(st.sampled_from((None, [3, 3, 3], [1, 3, 3]))),
        "MVIT.CLS_EMBED_ON": draw(st.booleans()) and not windowed,
        "MVITV2": {"WINDOW_SIZE": windows} if windowed else {},
        "MVIT.USE_ABS_POS": draw(st.booleans()),
        "MVIT.SEP_POS_EMBED": separate,
        "MVIT.REL_POS_SPATIAL": draw(st.booleans()),
        "MVIT.REL_POS_TEMPORAL": draw(st.booleans()),
        "MVIT.RESIDUAL_POOLING": draw(st.booleans()),
        "MVIT.USE_MEAN_POOLING": draw(st.booleans()),
        "MVIT.QKV_BIAS": draw(st.booleans()),
    }


def predict(model: MViTv2, x: Tensor) -> list[Tensor]:
    """The plain logits, or the probabilities that evaluation gives."""
    logits = plain.classify(model, x)
    act = model.adapter.act
    if model.training or act == "none":
        return [logits]
    return [logits.softmax(dim=1) if act == "softmax" else logits.sigmoid()]


@examples(80, 250, 12500)
def test_model(count: int, tally: Callable[..., None]) -> None:
    """Clips of 1 to 40 frames and stills, as a list of one or bare, training or evaluating."""

    @drawn(count, st.data(), cases, settings(), batches, st.booleans(), st.booleans())
    def check(
        data: st.DataObject, case: Case, keys: dict, batch: int, listed: bool, training: bool
    ) -> None:
        size = data.draw(image_sizes() if "MVIT.PATCH_2D" in keys else clip_sizes(), "size")
        model = randomize(MViTv2(make_cfg(keys)), case.seed).train(training)
        (out,) = hold(
            case,
            model,
            [normal((batch, 3, *size), case.seed)],
            lambda model, x: [model([x] if listed else x)],
            predict,
            roundings=16 * keys["MVIT.DEPTH"],
            smooth=not any(max(row[1:]) > 1 for row in keys["MVIT.POOL_Q_STRIDE"]),
        )
        assert out.shape == (batch, keys["MODEL.NUM_CLASSES"])
        tally(CLAIM)

    check()
