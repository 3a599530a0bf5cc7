"""What became of every tensor: of the model's and of the file's."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, get_args

# As it is, resampled position table, inflated from an image to a clip model, centre frame of a clip
# model, kept as the model has it, in the file alone.
Status = Literal["loaded", "resampled", "inflated", "centre", "new", "unused"]


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, converted or loaded; says which file and why.

    Args:
        message: file and cause.
        report: what was found until then, where tensors had been matched already.
    """

    def __init__(self, message: str, report: LoadReport | None = None) -> None:
        super().__init__(message)
        self.report = report


@dataclass(frozen=True)
class Entry:
    """What became of one tensor."""

    name: str  # the model's name of it; the file's where the model has none ("unused")
    status: Status
    shape: tuple[int, ...]  # in the model; in the file where unused
    source: str | None = None  # the file's name of it, None where new
    source_shape: tuple[int, ...] | None = None  # in the file
    note: str = ""  # what was done, or why nothing was


@dataclass(frozen=True)
class LoadReport:
    """Accounts for every tensor of the model and of the file, each exactly once.

    ``str(report)`` is a table, ``report.to_json()`` the same as JSON.
    """

    file: str  # path of the file, or what was given in its place
    entries: tuple[Entry, ...]  # one per tensor
    format: str = ""  # whose names the file used

    def names(self, status: Status) -> tuple[str, ...]:
        """Names of the tensors with this status."""
        return tuple(entry.name for entry in self.entries if entry.status == status)

    def counts(self) -> dict[str, int]:
        """How many tensors have each status."""
        return {status: len(self.names(status)) for status in get_args(Status)}

    def to_json(self, indent: int | None = None) -> str:
        """The whole report as JSON."""
        tensors = [asdict(entry) for entry in self.entries]
        body = {"file": self.file, "format": self.format, "counts": self.counts()}
        return json.dumps({**body, "tensors": tensors}, indent=indent)

    def summary(self) -> str:
        """One line: file and counts."""
        counts = ", ".join(f"{count} {status}" for status, count in self.counts().items() if count)
        return f"{self.file}: {counts or 'no tensors'}"

    def __str__(self) -> str:
        rows = [("tensor", "status", "shape", "in the file", "note")]
        for e in self.entries:
            words = [] if e.source in (None, e.name) else [e.source]
            if e.source_shape not in (None, e.shape):
                words.append(show_shape(e.source_shape))
            rows.append((e.name, e.status, show_shape(e.shape), " ".join(words), e.note))
        return f"{self.summary()}\n{table(rows)}"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text in aligned columns, with a line under the first."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    rows = [rows[0], ["-" * width for width in widths], *rows[1:]]
    lines = ("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def show_shape(shape: Iterable[int]) -> str:
    """(96, 3, 7, 7) -> "96x3x7x7"."""
    return "x".join(map(str, shape)) or "scalar"


def listing(names: Sequence[str], most: int = 12) -> str:
    """Names for a message, the first ``most`` of them."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
