"""Reads the golden files: weights and inputs are drawn from tensor names, outputs are stored."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).parent / "golden"


def load(name: str) -> dict:
    """The golden case called ``name``."""
    return json.loads((GOLDEN / f"{name}.json").read_text())


def names(prefix: str) -> list[str]:
    """Names of the cases that start with ``prefix`` and hold outputs."""
    found = sorted(path.stem for path in GOLDEN.glob(f"{prefix}*.json"))
    return [name for name in found if not name.endswith("defaults")]


def official_state_dicts() -> dict[str, dict]:
    """{"repository/variant": {"params": int, "state": {name: shape}}}."""
    with gzip.open(GOLDEN / "official_state_dicts.json.gz", "rt") as file:
        return json.load(file)


def draw(name: str, shape: tuple[int, ...], scale: float = 1.0) -> np.ndarray:
    """Normal draws that depend on nothing but the name: NumPy's RandomState stream is frozen."""
    return scale * np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)


def weights(state: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """float32 weights of a golden case: N(0, 0.12^2), plus one on the weights of norms."""
    tensors = {}
    for name, shape in state.items():
        values = draw(name, tuple(shape), 0.12)
        if "norm" in name and name.endswith("weight"):
            values = values + 1.0
        tensors[name] = torch.from_numpy(values.astype(np.float32))
    return tensors


def clip(name: str, shape: list[int]) -> torch.Tensor:
    """float32 input of the golden file ``name``; cases are called without their repository."""
    case = name.split("_", 1)[1]
    return torch.from_numpy(draw(case, tuple(shape)).astype(np.float32))
