"""PySlowFast configs for tests: the defaults that ``golden`` holds, with overrides or a file."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from tests.golden_data import GOLDEN, load

# What a small model of the golden files changes in the defaults, and odd multipliers for it.
BASE = load("slowfast_k400_s_like")["overrides"]
ODD = {  # width 20, 1 head: block 1 has round(1.5) = 2 heads, and its divisor is round(2 * 1.5) = 3
    "MVIT.EMBED_DIM": 20,
    "MVIT.DIM_MUL": [[1, 2.15], [3, 1.3]],
    "MVIT.HEAD_MUL": [[1, 1.5], [3, 1.0]],
}
DEFAULTS = json.loads((GOLDEN / "slowfast_defaults.json").read_text())
CONFIGS = Path(__file__).parents[1] / "configs"
FOLDERS = ("Kinetics", "SSv2", "ImageNet", "AVA", "MaskFeat")
RECIPES = sorted(p for folder in FOLDERS for p in (CONFIGS / folder).rglob("*.yaml"))


def make_cfg(overrides: Mapping[str, Any]) -> CfgNode:
    """PySlowFast's defaults, as a plain CfgNode, with ``{"MVIT.DEPTH": 4}`` style overrides."""
    cfg = CfgNode(copy.deepcopy(DEFAULTS))
    for key, value in overrides.items():
        node, parts = cfg, key.split(".")
        for part in parts[:-1]:
            node = node[part]
        node[parts[-1]] = copy.deepcopy(value)
    return cfg


def model_cfg(values: Mapping[str, Any]) -> CfgNode:
    """Defaults with the model's and the data's nodes of a loaded YAML file.

    The golden defaults hold the nodes that shape a model, and no others.
    """
    known = {key: value for key, value in values.items() if key in DEFAULTS}
    known["DATA"] = {k: v for k, v in values["DATA"].items() if k in DEFAULTS["DATA"]}
    cfg = make_cfg({})
    cfg.merge_from_other_cfg(CfgNode(known))
    if "WINDOW_SIZE" in values.get("MVITV2", {}):  # not weights to start from, which a user has
        cfg.MVITV2 = CfgNode({"WINDOW_SIZE": values["MVITV2"]["WINDOW_SIZE"]})
    return cfg
