"""Files like the official ones, put where the download puts them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mvitv2_core.model_info import OFFICIAL
from tests.golden_data import official_state_dicts


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
    """Random weights of these names and shapes: about one where a norm multiplies, else small;
    those of classes are larger, or all would be alike."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in state.items():
        if name.endswith("num_batches_tracked"):
            tensors[name] = torch.tensor(1000)
            continue
        scale = 0.1 if "cls_score" in name or "head.projection" in name else 0.02
        values = torch.empty(tuple(shape)).normal_(0, scale, generator=generator)
        if name.endswith("running_var") or ("norm" in name and name.endswith("weight")):
            values.abs_().add_(1)
        tensors[name] = values
    return tensors


def detector_shapes(name: str) -> dict[str, Any]:
    """Names and shapes of a detector: the backbone's official ones, the rest from its config.

    Its config's backbone must have exactly those.
    """
    from detectron2.config import LazyConfig, instantiate

    from mvitv2_tools.detectron2_model import find_recipe

    with torch.device("meta"):
        model = instantiate(LazyConfig.load(str(find_recipe(name))).model)
    prefix = "backbone.bottom_up."
    official = official_state_dicts()[golden_key(name)]["state"]
    shapes = {f"{prefix}{key}": tuple(shape) for key, shape in official.items()}
    state = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert {key: value for key, value in state.items() if key.startswith(prefix)} == shapes
    return state


def place_official(name: str, home: Path) -> Path:
    """Random weights of the official names and shapes where the download of ``name`` puts them.

    Args:
        name: a key of ``OFFICIAL``.
        home: ``$TORCH_HOME``.
    """
    row = OFFICIAL[name]
    target = home / "hub" / "checkpoints" / row.file
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    if row.format != "detectron2":
        torch.save({"model_state": draw(official_state_dicts()[golden_key(name)]["state"])}, target)
        return target
    arrays = {key: value.numpy() for key, value in draw(detector_shapes(name)).items()}
    with open(target, "wb") as stream:  # as detectron2's model zoo has them
        pickle.dump({"model": arrays, "__author__": "authors"}, stream, protocol=4)
    return target
