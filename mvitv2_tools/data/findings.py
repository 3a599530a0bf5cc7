"""What is wrong or odd in a data set: collected, named, counted, written down."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from mvitv2_core.checkpoint.files import whole_file

SHOWN = 4  # findings of one kind on the screen; the file has all


class Kind(NamedTuple):
    """A kind of finding.

    Args:
        level: an "error" stops a training or spoils its result; a "warning" may be meant.
        advice: what happens otherwise, or what to do.
    """

    level: Literal["error", "warning"]
    advice: str


class Finding(NamedTuple):
    """One thing found: its kind, the file or entry, and what is the matter with it."""

    kind: str
    where: str
    text: str


class Findings:
    """A list of findings whose kinds are those of a table.

    Args:
        kinds: by name. Findings are shown in its order, errors first.
    """

    def __init__(self, kinds: Mapping[str, Kind]) -> None:
        self.kinds, self.found = kinds, list[Finding]()

    def add(self, kind: str, where: str, text: str) -> None:
        """Note one finding; ``kind`` must be in the table."""
        if kind not in self.kinds:
            raise KeyError(kind)
        self.found.append(Finding(kind, where, text))

    def count(self, level: str) -> int:
        """How many findings are of a level."""
        return sum(self.kinds[finding.kind].level == level for finding in self.found)

    def counts(self) -> dict[str, int]:
        """How many of each kind there are, for kinds that there are; errors come first."""
        counter = Counter(finding.kind for finding in self.found)
        ordered = sorted(self.kinds, key=lambda kind: self.kinds[kind].level)
        return {kind: counter[kind] for kind in ordered if counter[kind]}

    def text(self, shown: int | None = SHOWN) -> str:
        """Kinds with their advice, each with its first ``shown`` findings (None: all)."""
        lines = []
        for kind, number in self.counts().items():
            level, advice = self.kinds[kind]
            lines.append(f"{level.upper():7}  {kind}: {number}. {advice}")
            of_kind = [finding for finding in self.found if finding.kind == kind]
            lines += [f"           {f.where}: {f.text}" for f in of_kind[:shown]]
            if shown is not None and number > shown:
                lines.append(f"           and {number - shown} more")
        return "\n".join(lines)

    def verdict(self) -> str:
        """One line."""
        errors, warnings = self.count("error"), self.count("warning")
        if not errors and not warnings:
            return "nothing wrong was found"
        return f"{errors} errors, {warnings} warnings"

    def write(self, path: Path) -> None:
        """All of them, to a file, whole or not at all."""
        with whole_file(path) as temporary:
            Path(temporary).write_text(f"{self.verdict()}\n{self.text(None)}\n", "utf-8")
