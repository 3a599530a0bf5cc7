"""The ``MODEL.MVITV2`` keys of detectron2's YAML configs, and how they become arguments."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from mvitv2_core.checks import (
    check_flag,
    check_rate,
    check_scale,
    check_whole,
    is_whole,
)
from mvitv2_core.rows import VARIANTS


def add_mvitv2_config(cfg: Any) -> None:
    """Add ``MODEL.MVITV2`` and ``DATASETS.OWN`` with their defaults to a detectron2 ``CfgNode``,
    and let ``DefaultTrainer`` read those that are about training.

    Calling it again, or on a config that has the keys through ``mvitv2_d2.env``, changes nothing.
    """
    from detectron2.config import CfgNode

    from .training import install

    install()
    if "MVITV2" in cfg.MODEL:
        return
    node = CfgNode()
    # T, S, B, L or H: sets depths, width and heads (paper, Table 1). "" reads the next three.
    node.VARIANT = "T"
    node.DEPTHS = []
    node.EMBED_DIM = 0
    node.NUM_HEADS = 0
    node.IMG_SIZE = 224  # that the position tables are sized for
    node.KV_STRIDE = 4
    node.WINDOW_SIZE = 56
    node.MLP_RATIO = 4.0
    node.QKV_BIAS = True
    node.RESIDUAL_POOLING = True
    node.DROP_PATH_RATE = 0.2
    node.USE_ABS_POS = False
    node.USE_REL_POS = True
    node.REL_POS_ZERO_INIT = True
    node.NORM_EPS = 1e-6
    node.ACT_CHECKPOINT = False
    node.PRETRAIN_IMG_SIZE = 224
    node.PRETRAIN_USE_CLS_TOKEN = True
    node.DIM_MUL_IN_ATT = True  # False for the published IN-1K L
    node.COMPILE = False  # compile each block: docs/gpu.md
    node.OUT_FEATURES = ["scale2", "scale3", "scale4", "scale5"]
    # Training (training.py, docs/training.md).
    node.LAYER_DECAY = 1.0  # factor of the learning rate from a block to the one before
    node.EMA_DECAY = 0.0  # of the average of the weights; 0 for none
    node.ACCUMULATE = 1  # batches to an optimizer step
    node.BFLOAT16 = False  # the trunk's autocast in training, instead of SOLVER.AMP's float16
    node.DETERMINISTIC = False  # deterministic algorithms alone; the seed is SEED
    node.VAL_SAMPLE = 0  # evaluate so many images but at the end; 0 for all of them (train_net.py)
    cfg.MODEL.MVITV2 = node
    # A data set of one's own as DATASETS.TRAIN[0] and TEST[0] (own_data.py). CLASSES: names of
    # the categories in the order of their ids; none for no such data set.
    own = {f"{split}_{what}": "" for split in ("TRAIN", "VAL") for what in ("JSON", "IMAGES")}
    cfg.DATASETS.OWN = CfgNode({**own, "CLASSES": []})


# What each value must be, by itself; ``MViT`` checks what they must be together.
CHECKS: dict[str, Callable[..., None]] = {
    "KV_STRIDE": check_whole,
    "WINDOW_SIZE": partial(check_whole, least=0),
    "PRETRAIN_IMG_SIZE": check_whole,
    "MLP_RATIO": check_scale,
    "NORM_EPS": check_scale,
    "DROP_PATH_RATE": check_rate,
    "QKV_BIAS": check_flag,
    "RESIDUAL_POOLING": check_flag,
    "USE_ABS_POS": check_flag,
    "USE_REL_POS": check_flag,
    "REL_POS_ZERO_INIT": check_flag,
    "ACT_CHECKPOINT": check_flag,
    "PRETRAIN_USE_CLS_TOKEN": check_flag,
    "DIM_MUL_IN_ATT": check_flag,
    "COMPILE": check_flag,
}


def backbone_kwargs(cfg: Any) -> dict[str, Any]:
    """Arguments of ``MViT`` from ``cfg.MODEL.MVITV2``; ``cfg`` is not changed.

    Raises:
        ValueError: an unknown ``VARIANT``, both a variant and its parts are given, or a value that
            ``MViT`` cannot check.
    """
    from torch import nn

    node = cfg.MODEL.MVITV2
    parts = {"DEPTHS": node.DEPTHS, "EMBED_DIM": node.EMBED_DIM, "NUM_HEADS": node.NUM_HEADS}
    if node.VARIANT != "":
        if not isinstance(node.VARIANT, str) or node.VARIANT not in VARIANTS:
            raise ValueError(
                f"MODEL.MVITV2.VARIANT must be one of {', '.join(VARIANTS)} or empty, got "
                f"{node.VARIANT!r}"
            )
        given = [f"MODEL.MVITV2.{key}" for key, value in parts.items() if value]
        if given:
            raise ValueError(
                f"{', '.join(given)} need MODEL.MVITV2.VARIANT '', got {node.VARIANT!r}"
            )
        depths, embed_dim, num_heads = VARIANTS[node.VARIANT]
    else:
        missing = [f"MODEL.MVITV2.{key}" for key, value in parts.items() if not value]
        if missing:
            raise ValueError(f"{', '.join(missing)} must be given where VARIANT is empty")
        depths, embed_dim, num_heads = node.DEPTHS, node.EMBED_DIM, node.NUM_HEADS
        for key in ("EMBED_DIM", "NUM_HEADS"):
            check_whole(f"MODEL.MVITV2.{key}", parts[key])
    if not isinstance(depths, (list, tuple)) or not all(is_whole(n) and n > 0 for n in depths):
        raise ValueError(f"MODEL.MVITV2.DEPTHS must be positive whole numbers, got {depths!r}")
    if len(depths) > 4:
        raise ValueError(f"MODEL.MVITV2.DEPTHS must be of at most 4 stages, got {depths}")
    for key, check in CHECKS.items():
        check(f"MODEL.MVITV2.{key}", node[key])
    return {
        "img_size": node.IMG_SIZE,
        "embed_dim": embed_dim,
        "depth": sum(depths),
        "num_heads": num_heads,
        "last_block_indexes": tuple(sum(depths[: i + 1]) - 1 for i in range(len(depths))),
        "adaptive_kv_stride": node.KV_STRIDE,
        "adaptive_window_size": node.WINDOW_SIZE,
        "residual_pooling": node.RESIDUAL_POOLING,
        "mlp_ratio": node.MLP_RATIO,
        "qkv_bias": node.QKV_BIAS,
        "drop_path_rate": node.DROP_PATH_RATE,
        "norm_layer": partial(nn.LayerNorm, eps=node.NORM_EPS),
        "use_abs_pos": node.USE_ABS_POS,
        "use_rel_pos": node.USE_REL_POS,
        "rel_pos_zero_init": node.REL_POS_ZERO_INIT,
        "use_act_checkpoint": node.ACT_CHECKPOINT,
        "pretrain_img_size": node.PRETRAIN_IMG_SIZE,
        "pretrain_use_cls_token": node.PRETRAIN_USE_CLS_TOKEN,
        "out_features": node.OUT_FEATURES,
        "dim_mul_in_att": node.DIM_MUL_IN_ATT,
        "compile": node.COMPILE,
    }
