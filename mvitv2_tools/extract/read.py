"""Gives the rows of an extraction back, whatever its format."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .folder import PLAN, SETTINGS, Folder, Task

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Extracted:
    """The rows of one file: a video's, or those of a group of pictures.

    Args:
        name: of the file.
        paths: of each row's picture or video.
        times: (N, 2) seconds at which each row begins and ends; None for pictures.
        cells: (N, T + 1) seconds where its temporal cells begin and end; None without.
        features: (N, ...); of npy it is mapped, not read.
    """

    name: str
    paths: list[str]
    times: np.ndarray | None
    cells: np.ndarray | None
    features: np.ndarray

    def __len__(self) -> int:
        return len(self.features)


def read_features(folder: str | os.PathLike[str]) -> Iterator[Extracted]:
    """The rows of all tasks that are done, in the order of the plan.

    Raises:
        ValueError: the folder holds no extraction.
    """
    path = Path(folder)
    if not (path / SETTINGS).is_file():
        raise ValueError(f"{path}: holds no extraction: {SETTINGS} is not there")
    format = json.loads((path / SETTINGS).read_text())["settings"]["format"]
    kept = Folder(str(path), f".{format}")
    plan = path / PLAN
    for line in plan.read_text().splitlines() if plan.exists() else ():
        task = Task.from_json(line)
        known = kept.done(task)
        if known is not None and known["rows"]:
            yield _read(kept, task, known, format)


def _read(folder: Folder, task: Task, known: dict[str, Any], format: str) -> Extracted:
    import numpy as np  # not above: every `mvitv2` command imports this package, and torch has none

    times, cells = (np.array(known[key]) if key in known else None for key in ("times", "cells"))
    paths = known.get("paths") or [task.sources[0].path] * known["rows"]
    file = folder.data(task)
    if format == "npy":
        features = np.load(file, mmap_mode="r")
    elif format == "safetensors":
        from safetensors.numpy import load_file

        features = load_file(file)["features"]
    else:
        from pyarrow import parquet

        column = parquet.read_table(file, columns=["features"])["features"].combine_chunks()
        features = column.flatten().to_numpy().reshape(-1, *known["shape"])
    return Extracted(task.name, paths, times, cells, features)
