"""Configs of detectron2's YAML kind with a small backbone. Imports detectron2."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode, get_cfg

from mvitv2_d2 import add_mvitv2_config


def small(**keys: Any) -> CfgNode:
    """A config with a small backbone; ``keys`` are set in ``MODEL.MVITV2``."""
    cfg = get_cfg()
    add_mvitv2_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = "build_mvitv2_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.FPN.IN_FEATURES = ["scale2", "scale3", "scale4", "scale5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    node = cfg.MODEL.MVITV2
    node.VARIANT, node.DEPTHS, node.EMBED_DIM, node.NUM_HEADS = "", [1, 1, 2, 1], 8, 1
    node.IMG_SIZE, node.WINDOW_SIZE = 64, 16
    for key, value in keys.items():
        node[key] = value
    return cfg
