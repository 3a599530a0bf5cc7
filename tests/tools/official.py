"""Files like the official ones, put where the download puts them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mvitv2_core import MViTClassifier
from mvitv2_core.model_info import OFFICIAL
from tests.golden_data import official_state_dicts

KEYS = {"image": "mvit", "slowfast": "slowfast", "detectron2": "detectron2"}


def golden_key(name: str) -> str:
    """Of an official model's names and shapes in ``official_state_dicts``; of detectors, those of
    the backbone."""
    row = OFFICIAL[name]
    if row.format == "detectron2":
        return f"detectron2/d2_{row.variant}"
    if row.format == "slowfast":
        return "slowfast/" + row.recipe.split("configs/")[1].removesuffix(".yaml")
    data = {"in1k": "in1k", "in21k": "cls_in21k_19168"}[name.rsplit("_", 1)[1]]
    return f"mvit/image_{row.variant}_{data}"


def draw(state: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Small random weights of these names and shapes, about one where a norm multiplies."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in state.items():
        values = torch.empty(tuple(shape)).normal_(0, 0.02, generator=generator)
        norm = "norm" in name and name.endswith("weight")
        tensors[name] = values.add_(1) if norm else values
    return tensors
