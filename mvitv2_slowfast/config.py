"""The only reader of a PySlowFast ``CfgNode``: turns it into core's config, or refuses by name.

The config is read, never written to. Upstream's own reader (``MViT.__init__`` in PySlowFast's
video_model_builder.py) writes ``POOL_KV_STRIDE`` back; nothing here does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from mvitv2_core.checks import check_flag, check_rate, check_scale, check_sizes, check_whole
from mvitv2_core.config import AbsPos, MViTConfig, lay_out
from mvitv2_core.rows import BlockRow

from .rows import read_multipliers, read_sizes, read_strides, read_windows

# The one value of each key that this model has; upstream's other values belong to other models.
FIXED: dict[str, object] = {
    "MODE": "conv",
    "NORM": "layernorm",
    "NORM_STEM": False,
    "POOL_FIRST": False,
    "SEPARATE_QKV": False,
    "USE_FIXED_SINCOS_POS": False,
    "LAYER_SCALE_INIT_VALUE": 0.0,
}
# fmt: off
HONOURED = frozenset([
    "CLS_EMBED_ON", "DEPTH", "DIM_MUL", "DIM_MUL_IN_ATT", "DROPOUT_RATE", "DROPPATH_RATE",
    "EMBED_DIM", "HEAD_INIT_SCALE", "HEAD_MUL", "MLP_RATIO", "NUM_HEADS", "PATCH_2D",
    "PATCH_KERNEL", "PATCH_PADDING", "PATCH_STRIDE", "POOL_KVQ_KERNEL", "POOL_KV_STRIDE",
    "POOL_KV_STRIDE_ADAPTIVE", "POOL_Q_STRIDE", "QKV_BIAS", "REL_POS_SPATIAL",
    "REL_POS_TEMPORAL", "REL_POS_ZERO_INIT", "RESIDUAL_POOLING", "SEP_POS_EMBED", "USE_ABS_POS",
    "USE_MEAN_POOLING", "ZERO_DECAY_POS_CLS",
])
# fmt: on
# What each value must be by itself, by node.
CHECKS: dict[str, dict[str, Callable[..., None]]] = {
    "MVIT": {
        **dict.fromkeys(("DEPTH", "EMBED_DIM", "NUM_HEADS"), check_whole),
        **dict.fromkeys(("MLP_RATIO", "HEAD_INIT_SCALE"), check_scale),
        **dict.fromkeys(("DROPOUT_RATE", "DROPPATH_RATE"), check_rate),
        **dict.fromkeys(
            (
                *("CLS_EMBED_ON", "DIM_MUL_IN_ATT", "PATCH_2D", "QKV_BIAS", "REL_POS_SPATIAL"),
                *("REL_POS_TEMPORAL", "REL_POS_ZERO_INIT", "RESIDUAL_POOLING", "SEP_POS_EMBED"),
                *("USE_ABS_POS", "USE_MEAN_POOLING", "ZERO_DECAY_POS_CLS"),
            ),
            check_flag,
        ),
    },
    "DATA": {"NUM_FRAMES": check_whole, "TRAIN_CROP_SIZE": check_whole},
    "MODEL": {
        "NUM_CLASSES": check_whole,
        "DROPOUT_RATE": check_rate,
        "ACT_CHECKPOINT": check_flag,
    },
    "DETECTION": {"ENABLE": check_flag},
}
HEAD_ACTS = ("softmax", "sigmoid", "none")


@dataclass(frozen=True)
class AdapterSpec:
    """What the adapter needs beyond core's config.

    Args:
        act: "softmax", "sigmoid" or "none", applied in evaluation.
        roi: keyword arguments of PySlowFast's ``ResNetRoIHead`` where ``DETECTION.ENABLE`` is
            on; None for a classifier.
        act_checkpoint: recompute blocks in the backward pass.
        compile: compile each block.
        zero_decay: no weight decay on positions and class token.
        bfloat16: train the trunk under bfloat16 autocast.
        ema_decay: of the average of the weights, that validation and tests take; 0 for none.
    """

    act: str
    roi: dict[str, Any] | None
    act_checkpoint: bool
    compile: bool
    zero_decay: bool
    bfloat16: bool
    ema_decay: float


def read_config(cfg: Any) -> MViTConfig:
    """Core's config for a PySlowFast config.

    Args:
        cfg: a ``CfgNode`` with PySlowFast's nodes MVIT, MODEL, DATA and, if it has them,
            DETECTION, CONTRASTIVE, MASK and this project's MVITV2. It is not changed.

    Raises:
        ValueError: a key has a value that this model does not have, or an unknown key.
    """
    mvit, data = cfg.MVIT, cfg.DATA
    _check_keys(cfg)
    image = mvit.PATCH_2D
    patch_rank = 2 if image else 3
    patch = {
        name.lower(): read_sizes(f"MVIT.{name}", getattr(mvit, name), patch_rank, smallest)
        for name, smallest in (("PATCH_KERNEL", 1), ("PATCH_STRIDE", 1), ("PATCH_PADDING", 0))
    }
    crop = data.TRAIN_CROP_SIZE
    input_size = read_sizes(
        "DATA.NUM_FRAMES, DATA.TRAIN_CROP_SIZE", (data.NUM_FRAMES, crop, crop), 3
    )
    if image and data.NUM_FRAMES != 1:
        raise ValueError(f"DATA.NUM_FRAMES must be 1 with MVIT.PATCH_2D, got {data.NUM_FRAMES}")
    stride = (1, *patch["patch_stride"])[-3:]
    thw = tuple(n // s for n, s in zip(input_size, stride, strict=True))
    check_sizes("token grid (DATA.NUM_FRAMES, TRAIN_CROP_SIZE over MVIT.PATCH_STRIDE)", thw, 3)
    abs_pos: AbsPos = "none"
    if mvit.USE_ABS_POS:
        abs_pos = "separate" if mvit.SEP_POS_EMBED else "joint"
    windows = read_windows(cfg.get("MVITV2", {}).get("WINDOW_SIZE", []), mvit.DEPTH)
    if windows and mvit.CLS_EMBED_ON:
        raise ValueError("MVIT.CLS_EMBED_ON must be False with MVITV2.WINDOW_SIZE, got True")
    rows = [row._replace(window_size=windows.get(i, 0)) for i, row in enumerate(_rows(mvit))]
    return MViTConfig(
        blocks=lay_out(rows, mvit.EMBED_DIM, thw, mvit.DROPPATH_RATE, mvit.DIM_MUL_IN_ATT),
        input_size=input_size,
        patch_kernel=patch["patch_kernel"],
        patch_stride=patch["patch_stride"],
        patch_padding=patch["patch_padding"],
        in_chans=data.INPUT_CHANNEL_NUM[0],
        mlp_ratio=mvit.MLP_RATIO,
        qkv_bias=mvit.QKV_BIAS,
        cls_token=mvit.CLS_EMBED_ON,
        abs_pos=abs_pos,
        rel_pos=(mvit.REL_POS_TEMPORAL, mvit.REL_POS_SPATIAL, mvit.REL_POS_SPATIAL),
        rel_pos_zero_init=mvit.REL_POS_ZERO_INIT,
        residual_pooling=mvit.RESIDUAL_POOLING,
        dropout=mvit.DROPOUT_RATE,
        num_classes=cfg.MODEL.NUM_CLASSES,
        head_dropout=cfg.MODEL.DROPOUT_RATE,
        head_init_scale=mvit.HEAD_INIT_SCALE,
        mean_pooling=mvit.USE_MEAN_POOLING,
    )


def read_adapter(cfg: Any, dim: int) -> AdapterSpec:
    """The head of a PySlowFast config, and how to train it.

    Args:
        cfg: as for ``read_config``.
        dim: width of the last block.

    Raises:
        ValueError: a head that this model does not have.
    """
    act, detection = cfg.MODEL.HEAD_ACT, cfg.get("DETECTION")
    roi = None
    if detection is not None and detection.ENABLE:
        roi = {
            "dim_in": [dim],
            "num_classes": cfg.MODEL.NUM_CLASSES,
            # The model averages over time itself, for any number of frames.
            "pool_size": [[1, 1, 1]],
            "resolution": [[detection.ROI_XFORM_RESOLUTION] * 2],
            "scale_factor": [detection.SPATIAL_SCALE_FACTOR],
            "dropout_rate": cfg.MODEL.DROPOUT_RATE,
            "act_func": act,
            "aligned": detection.ALIGNED,
        }
    allowed = HEAD_ACTS if roi is None else HEAD_ACTS[:2]
    if act not in allowed:
        raise ValueError(f"MODEL.HEAD_ACT must be one of {', '.join(allowed)}, got {act!r}")
    node = cfg.get("MVITV2", {})
    compile, bfloat16 = node.get("COMPILE", False), node.get("BFLOAT16", False)
    ema_decay = node.get("EMA_DECAY", 0.0)
    check_flag("MVITV2.COMPILE", compile)
    check_flag("MVITV2.BFLOAT16", bfloat16)
    check_rate("MVITV2.EMA_DECAY", ema_decay)
    zero_decay = cfg.MVIT.ZERO_DECAY_POS_CLS
    return AdapterSpec(act, roi, cfg.MODEL.ACT_CHECKPOINT, compile, zero_decay, bfloat16, ema_decay)


def round_width(width: int, multiplier: float, divisor: int = 1) -> int:
    """``width * multiplier`` rounded to a multiple of ``divisor``, never below 90% of the product.

    Same rule and same float32 product as upstream's ``round_width`` on its float32 multipliers.
    """
    scaled = width * torch.tensor(multiplier, dtype=torch.float32, device="cpu")
    rounded = max(1, int(scaled + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * scaled else rounded


def _check_keys(cfg: Any) -> None:
    """Refuse what this model is not, and every MVIT key that nobody here reads."""
    for key, value in cfg.MVIT.items():
        if key in FIXED:
            if value != FIXED[key]:
                raise ValueError(f"MVIT.{key} must be {FIXED[key]!r}, got {value!r}")
        elif key == "REV":
            if value.ENABLE:
                raise ValueError(f"MVIT.REV.ENABLE must be False, got {value.ENABLE!r}")
        elif key not in HONOURED:
            raise ValueError(f"MVIT.{key} is a key that MViTv2 does not know (value {value!r})")
    for name, checks in CHECKS.items():
        for key, check in checks.items():
            if name in cfg and key in cfg[name]:
                check(f"{name}.{key}", cfg[name][key])
    channels = cfg.DATA.INPUT_CHANNEL_NUM
    if not isinstance(channels, (list, tuple)) or not channels:
        raise ValueError(f"DATA.INPUT_CHANNEL_NUM must hold a number per pathway, got {channels!r}")
    check_whole("DATA.INPUT_CHANNEL_NUM[0]", channels[0])
    refused = (
        ("MASK", "ENABLE", False),  # pre-training needs MaskMViT; fine-tuning does not set it
        ("MODEL", "DETACH_FINAL_FC", False),
        ("CONTRASTIVE", "NUM_MLP_LAYERS", 1),
    )
    for node, key, allowed in refused:
        value = cfg.get(node, {}).get(key, allowed)
        if value != allowed:
            raise ValueError(f"{node}.{key} must be {allowed!r}, got {value!r}")


def _rows(mvit: Any) -> list[BlockRow]:
    """A row per block, in upstream's order of operations: heads, then width, then strides."""
    depth, in_att = mvit.DEPTH, mvit.DIM_MUL_IN_ATT
    # In attention the multiplier of block i acts in block i, else that of i + 1 in block i's MLP.
    dim_mul = read_multipliers(
        "DIM_MUL", mvit.DIM_MUL, range(depth) if in_att else range(1, depth + 1)
    )
    head_mul = read_multipliers("HEAD_MUL", mvit.HEAD_MUL, range(depth))
    strides_q = read_strides("POOL_Q_STRIDE", mvit.POOL_Q_STRIDE, depth)
    for block, stride in strides_q.items():
        if not all(s == 1 or s % 2 == 0 for s in stride):
            raise ValueError(
                f"MVIT.POOL_Q_STRIDE must be 1 or even per axis, got {stride} for block {block}"
            )
        if not all(k % 2 for k in _kernel(mvit, stride) or ()):
            raise ValueError(f"MVIT.POOL_KVQ_KERNEL must be odd, got {mvit.POOL_KVQ_KERNEL}")
    strides_kv = _kv_strides(mvit, strides_q)
    dim, num_heads, rows = mvit.EMBED_DIM, mvit.NUM_HEADS, []
    for i in range(depth):
        num_heads = round_width(num_heads, head_mul.get(i, 1.0))
        step = i if in_att else i + 1
        # The heads are multiplied once more for the divisor: with DIM_MUL_IN_ATT that is one time
        # too many, and upstream's widths for odd multipliers depend on it.
        divisor = round_width(num_heads, head_mul.get(step, 1.0))
        dim = round_width(dim, dim_mul.get(step, 1.0), divisor)
        q, kv = strides_q.get(i), strides_kv.get(i)
        kernels = _kernel(mvit, q), _kernel(mvit, kv)
        rows.append(BlockRow(dim, num_heads, q or (1, 1, 1), kv or (1, 1, 1), *kernels))
    return rows


def _kv_strides(mvit: Any, strides_q: dict[int, tuple[int, ...]]) -> dict[int, tuple[int, ...]]:
    """Adaptive strides, divided by each q stride on the way down; else those listed."""
    if mvit.POOL_KV_STRIDE_ADAPTIVE is None:
        return read_strides("POOL_KV_STRIDE", mvit.POOL_KV_STRIDE, mvit.DEPTH)
    stride = read_sizes("MVIT.POOL_KV_STRIDE_ADAPTIVE", mvit.POOL_KV_STRIDE_ADAPTIVE, 3)
    strides = {}
    for i in range(mvit.DEPTH):
        step = strides_q.get(i, (1, 1, 1))
        stride = tuple(max(kv // q, 1) for kv, q in zip(stride, step, strict=True))
        strides[i] = stride
    return strides


def _kernel(mvit: Any, stride: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """Kernel of a pool: POOL_KVQ_KERNEL, or stride + 1 where strided; None without a pool."""
    if stride is None:
        return None
    if mvit.POOL_KVQ_KERNEL is None:
        return tuple(s + 1 if s > 1 else 1 for s in stride)
    return read_sizes("MVIT.POOL_KVQ_KERNEL", mvit.POOL_KVQ_KERNEL, 3)
