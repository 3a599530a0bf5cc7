"""Tasks, one after the other: read ahead, batch by batch, part by part."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mvitv2_core.checkpoint.files import whole_file

from ..feed import Part, feed
from ..inputs import Input
from .extractor import Extractor
from .folder import Folder, Source, Task
from .formats import Rows, write_rows

# Rows of a video that wait in memory before they go to a file: so many, or fewer where they are
# large. A kill costs no more than these.
PART_ROWS, PART_BYTES = 256, 64 << 20


def extract_tasks(
    extractor: Extractor,
    tasks: Sequence[Task],
    folder: Folder,
    seen: Callable[[int], object] = lambda count: None,
) -> Iterator[dict[str, Any]]:
    """Do tasks; yields what is known of each when its files are written.

    The bits of a row depend on its task alone: neither batches nor parts span two tasks, and a
    video goes on where its last part ended, which is between two batches.

    Args:
        extractor: the model.
        tasks: none of them done.
        folder: where to.
        seen: called with the number of rows of each batch.
    """
    torch.set_num_threads(extractor.settings.threads)
    works = [_Work(extractor, task, folder, seen) for task in tasks]
    held = {work.task.inputs[0].path: work.held for work in works if work.task.kind == "video"}
    inputs: Iterator[Input] = (item for task in tasks for item in task.inputs)
    parts = feed(
        inputs,
        extractor.read_picture,
        lambda item: extractor.read_video(item, held),
        workers=max(2, extractor.settings.threads),
        ahead=extractor.settings.batch,
    )
    for work in works:
        left = len(work.task.inputs)
        while left:
            part = next(parts)
            work.add(part)
            left -= part.last
        yield work.finish()
    for _ in parts:  # none; ends the thread
        raise AssertionError("a part of no task")


class _Work:
    """One task's rows."""

    def __init__(
        self, extractor: Extractor, task: Task, folder: Folder, seen: Callable[[int], object]
    ) -> None:
        self.extractor, self.task, self.folder, self.seen = extractor, task, folder, seen
        self.problems: list[list[str]] = []
        self._batch: list[Part] = []
        self._made: list[Rows] = []
        parts = folder.parts(task) if task.kind == "video" else []
        self._written = len(parts)
        self.held = sum(_count(path) for path in parts)

    def add(self, part: Part) -> None:
        """Take a prepared picture or window, or what was wrong with a file."""
        if part.error:
            self.problems.append([part.input.path, part.error])
        if part.data is None:
            return
        self._batch.append(part)
        if len(self._batch) == self.extractor.settings.batch:
            self._run()

    def _run(self) -> None:
        batch, self._batch = self._batch, []
        features = self.extractor.features(torch.cat([part.data for part in batch]))
        spans = [part.span for part in batch if part.span is not None]
        cells = [self.extractor.cells(span, features) for span in spans]
        rows = Rows(
            features,
            [part.input.path for part in batch],
            np.array(spans) if spans else None,
            np.array(cells) if cells and cells[0] is not None else None,
        )
        self._made.append(rows)
        self.seen(len(rows))
        if self.task.kind == "video":
            most = max(min(PART_ROWS, PART_BYTES // rows.features[0].nbytes), 1)
            if sum(map(len, self._made)) + len(rows) > most:
                self._save_part()

    def _save_part(self) -> None:
        path = self.folder.part(self.task, self._written)
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as target, open(target, "wb") as stream:
            _save(stream, _joined(self._made))
        self._made, self._written = [], self._written + 1

    def finish(self) -> dict[str, Any]:
        """Write the task's files; returns what is known of it."""
        if self._batch:
            self._run()
        known: dict[str, Any] = {"sources": self.task.sources, "problems": self.problems}
        now = [Source.of(source.path) for source in self.task.sources]
        changed = [s.path for s, then in zip(now, self.task.sources, strict=True) if s != then]
        if changed:  # not done: the next run plans it as it is by then
            self.folder.drop_parts(self.task)
            problem = f"{changed[0]}: changed while it was read; run again"
            return {**known, "rows": 0, "problems": [*self.problems, [changed[0], problem]]}
        files = [self.folder.part(self.task, number) for number in range(self._written)]
        parts = _Parts(self.task, files, self._made)
        few = [replace(part, features=part.features[:1].copy()) for part in parts]
        known["rows"] = sum(len(part.paths) for part in few)
        if few:
            path = self.folder.data(self.task)
            with whole_file(path) as target:
                write_rows(target, self.extractor.settings.format, parts, self.extractor.facts)
                known["bytes"] = os.path.getsize(target)
            known |= _described(few, self.task)
        self.folder.finish(self.task, known)
        return known


class _Parts:
    """Parts of a task, those in files first; each is in memory only while it is looked at."""

    def __init__(self, task: Task, files: Sequence[Path], made: Sequence[Rows]) -> None:
        self.task, self.files, self.last = task, files, _joined(made) if made else None

    def __iter__(self) -> Iterator[Rows]:
        for file in self.files:
            yield _load(file, self.task.sources[0].path)
        if self.last is not None:
            yield self.last


def _described(rows: Sequence[Rows], task: Task) -> dict[str, Any]:
    """What npy has no place for."""
    features = rows[0].features
    known: dict[str, Any] = {"shape": features.shape[1:], "dtype": features.dtype.name}
    if task.kind == "picture":
        return {**known, "paths": [path for part in rows for path in part.paths]}
    for name in ("times", "cells"):
        if getattr(rows[0], name) is not None:
            known[name] = [row for part in rows for row in getattr(part, name).tolist()]
    return known


def _joined(rows: Sequence[Rows]) -> Rows:
    if len(rows) == 1:
        return rows[0]

    def column(name: str) -> np.ndarray | None:
        arrays = [getattr(part, name) for part in rows]
        return None if arrays[0] is None else np.concatenate(arrays)

    features = np.concatenate([part.features for part in rows])
    paths = [path for part in rows for path in part.paths]
    return Rows(features, paths, column("times"), column("cells"))


def _save(stream: io.BufferedWriter, rows: Rows) -> None:
    columns = {"features": rows.features, "times": rows.times, "cells": rows.cells}
    arrays = {name: array for name, array in columns.items() if array is not None}
    np.savez(stream, **arrays)  # type: ignore[arg-type]


def _load(file: Path, path: str) -> Rows:
    with np.load(file) as held:
        features, times = held["features"], held["times"]
        cells = held.get("cells")
    return Rows(features, [path] * len(features), times, cells)


def _count(file: Path) -> int:
    with np.load(file) as held:
        return len(held["times"])
