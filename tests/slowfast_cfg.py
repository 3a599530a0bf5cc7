"""Small PySlowFast configs for tests: the defaults that ``golden`` holds, with overrides."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any

from fvcore.common.config import CfgNode

from tests.golden_data import GOLDEN

DEFAULTS = json.loads((GOLDEN / "slowfast_defaults.json").read_text())


def make_cfg(overrides: Mapping[str, Any]) -> CfgNode:
    """PySlowFast's defaults, as a plain CfgNode, with ``{"MVIT.DEPTH": 4}`` style overrides."""
    cfg = CfgNode(copy.deepcopy(DEFAULTS))
    for key, value in overrides.items():
        node, parts = cfg, key.split(".")
        for part in parts[:-1]:
            node = node[part]
        node[parts[-1]] = copy.deepcopy(value)
    return cfg
