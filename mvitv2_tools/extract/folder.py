"""The folder of an extraction: what is planned, what is done, what is half done.

    settings.json     what decides the bits of a row
    plan.jsonl        a task a line: a video, or a group of pictures
    NAME.npy          a task's rows (.safetensors, .parquet); none where nothing could be read
    NAME.json         written last, and a task is done where it is there
    report.json       what could not be read
    .parts/NAME/      parts of a video that is not done

Each file appears whole or not at all, so that a kill at any moment leaves a folder to go on from.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mvitv2_core.checkpoint.files import whole_file

from ..inputs import Input
from .settings import differences

SETTINGS, PLAN, REPORT, PARTS, LOCK = (
    "settings.json",
    "plan.jsonl",
    "report.json",
    ".parts",
    ".lock",
)
RESERVED = {Path(name).stem for name in (SETTINGS, PLAN, REPORT)}
LONGEST = 100  # characters of a name


class Source(NamedTuple):
    """A file as it was when it was planned; size and time are -1 where it could not be found."""

    path: str
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: str) -> Source:
        """As it is now."""
        try:
            stat = os.stat(path)
        except OSError:
            return cls(path, -1, -1)
        return cls(path, stat.st_size, stat.st_mtime_ns)


@dataclass(frozen=True)
class Task:
    """A video, or a group of pictures: what one file of rows is made of.

    Args:
        name: of its files.
        kind: "video" or "picture", of its inputs.
        sources: its inputs.
    """

    name: str
    kind: Literal["picture", "video"]
    sources: tuple[Source, ...]

    @property
    def inputs(self) -> list[Input]:
        return [Input(source.path, self.kind) for source in self.sources]

    def to_json(self) -> str:
        """One line of the plan."""
        return json.dumps({"name": self.name, "kind": self.kind, "sources": self.sources})

    @classmethod
    def from_json(cls, line: str) -> Task:
        """Of a line of the plan."""
        row = json.loads(line)
        return cls(row["name"], row["kind"], tuple(Source(*source) for source in row["sources"]))


class Folder:
    """See the module.

    Args:
        path: the folder.
        suffix: of files of rows, such as ".npy".
    """

    def __init__(self, path: str, suffix: str) -> None:
        self.path, self.suffix = Path(path), suffix

    def open(self, facts: dict[str, Any]) -> Any:
        """Make the folder, or go on in it; returns its lock, which the caller releases.

        Raises:
            ValueError: it cannot be made, is another run's at this moment, holds something else,
                or its rows were made otherwise.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = _lock(self.path / LOCK)
            for left in (*self.path.glob(".mvitv2-*"), *self.path.glob(f"{PARTS}/*/.mvitv2-*")):
                left.unlink(missing_ok=True)  # what a kill left of a file
            others = [entry for entry in os.listdir(self.path) if not entry.startswith(".")]
        except OSError as error:
            raise ValueError(f"--out {self.path}: {error.strerror or error}") from error
        if not (self.path / SETTINGS).exists():
            if others:
                raise ValueError(
                    f"--out {self.path} must be new, empty, or an earlier extraction's: it holds "
                    f"{others[0]}"
                )
            write_json(self.path / SETTINGS, facts)
        self.check(facts)
        return lock

    def check(self, facts: dict[str, Any]) -> None:
        """Raise ValueError where rows made here would not be as those that are there."""
        found = differences(
            json.loads((self.path / SETTINGS).read_text()), json.loads(json.dumps(facts))
        )
        if found:
            raise ValueError(
                f"--out {self.path} holds rows made otherwise: {'; '.join(found)}; name another "
                f"folder, or set what is set there"
            )

    def plan(self, inputs: Iterable[Input], group: int, retry: bool = False) -> list[Task]:
        """All tasks of the folder: those of earlier runs, then those of inputs that are new.

        Args:
            inputs: of this run.
            group: pictures of a task.
            retry: whether files that had a problem may have changed.

        Raises:
            ValueError: another file changed after its rows were made.
        """
        file = self.path / PLAN
        before = file.read_text() if file.exists() else ""
        old = [Task.from_json(line) for line in before.splitlines()]
        tasks = [self._checked(task, retry) for task in old]
        known = {source.path for task in tasks for source in task.sources}
        paths = {os.path.abspath(item.path): item.kind for item in inputs}
        new = [Input(path, kind) for path, kind in paths.items() if path not in known]
        tasks += _new_tasks(new, group, {task.name.lower() for task in tasks})
        text = "".join(f"{task.to_json()}\n" for task in tasks)
        if text != before:
            write_text(file, text)
        return tasks

    def _checked(self, task: Task, retry: bool) -> Task:
        """The task, with its files as they are now where it is not done, or is retried."""
        done = self.done(task)
        now = tuple(Source.of(source.path) for source in task.sources)
        if done is None:
            if now != task.sources:  # before the plan says so: parts of another file are none
                self.drop_parts(task)
            return Task(task.name, task.kind, now)
        self.drop_parts(task)  # which a kill may have left
        bad = {path for path, _ in done["problems"]}
        for source, then in zip(now, done["sources"], strict=True):
            if source == Source(*then) or source.size < 0:  # one that is gone has its rows
                continue
            if source.path not in bad:
                raise ValueError(
                    f"{source.path} changed after its rows were made: to make them anew, remove "
                    f"{self.path / task.name}.json"
                )
            if not retry:
                raise ValueError(f"{source.path} had a problem, and changed: give --retry")
        return Task(task.name, task.kind, now) if retry and bad else task

    def data(self, task: Task) -> Path:
        """The file of a task's rows."""
        return self.path / f"{task.name}{self.suffix}"

    def done(self, task: Task) -> dict[str, Any] | None:
        """What is known of a task that is done; None where it is not."""
        try:
            row = json.loads((self.path / f"{task.name}.json").read_text())
            if row["rows"] and self.data(task).stat().st_size != row["bytes"]:
                return None
        except FileNotFoundError:
            return None
        return row

    def finish(self, task: Task, row: dict[str, Any]) -> None:
        """Say that a task is done: its rows are written."""
        write_text(self.path / f"{task.name}.json", json.dumps(row))
        self.drop_parts(task)

    def undo(self, task: Task) -> None:
        """Let a task be done once more."""
        (self.path / f"{task.name}.json").unlink(missing_ok=True)

    def part(self, task: Task, number: int) -> Path:
        """The file of a video's part."""
        return self.path / PARTS / task.name / f"{number:06d}.npz"

    def parts(self, task: Task) -> list[Path]:
        """The parts that are there, from the first on without a gap."""
        found: list[Path] = []
        while (path := self.part(task, len(found))).exists():
            found.append(path)
        return found

    def drop_parts(self, task: Task) -> None:
        """Remove what is half done of a task."""
        shutil.rmtree(self.path / PARTS / task.name, ignore_errors=True)


def _new_tasks(inputs: Sequence[Input], group: int, taken: set[str]) -> list[Task]:
    """Tasks of their own for inputs, with names that nobody has yet."""
    taken, numbers, tasks = taken | RESERVED, Counter[str](), []
    pictures = [Source.of(item.path) for item in inputs if item.kind == "picture"]
    for first in range(0, len(pictures), group):
        name = _name("pictures_{:05d}", "pictures_{:05d}", taken, numbers)
        tasks.append(Task(name, "picture", tuple(pictures[first : first + group])))
    for item in inputs:
        if item.kind == "video":
            stem = re.sub(r"[^\w.-]+", "_", Path(item.path).stem).lstrip(".")[:LONGEST] or "video"
            numbers[f"{stem}_{{}}"] += not numbers[f"{stem}_{{}}"]  # the next one is number 2
            name = _name(stem, f"{stem}_{{}}", taken, numbers)
            tasks.append(Task(name, "video", (Source.of(item.path),)))
    return tasks


def _name(first: str, pattern: str, taken: set[str], numbers: Counter[str]) -> str:
    """``first`` or else ``pattern`` with a number: a name that is free on any file system."""
    name = first.format(0)
    while name.lower() in taken:
        numbers[pattern] += 1
        name = pattern.format(numbers[pattern])
    taken.add(name.lower())
    return name


def _lock(path: Path) -> Any:
    """A lock that ends with the process, however it ends."""
    from filelock import FileLock, Timeout  # torch needs it itself

    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(f"--out {path.parent}: another run works in it") from error
    return lock


def write_json(path: Path, value: Any) -> None:
    """A JSON file, whole or not at all."""
    write_text(path, json.dumps(value, indent=1))


def write_text(path: Path, text: str) -> None:
    """A text file, whole or not at all."""
    with whole_file(path) as target, open(target, "w", encoding="utf-8") as stream:
        stream.write(text)
