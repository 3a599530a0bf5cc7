"""Keep a row of ``make test-matrix`` for docs/platforms.md.

    python -m projects.benchmark.matrix TESTS OUTCOME    # of this Python and its torch

``KEEP_RESULTS=1 make test-matrix`` calls it after each row.
"""

from __future__ import annotations

import platform
import sys
from typing import Any

import torch

from projects.benchmark import kept


def keep_row(tests: str, outcome: str) -> None:
    """Add the outcome of ``tests`` here, in the place of an earlier one."""
    row = {"python": platform.python_version(), "torch": torch.__version__.split("+")[0]}
    row |= {"tests": tests, "outcome": outcome, "commit": kept.commit()}
    before = kept.kept("matrix")["rows"] if kept.measured("matrix") else []
    same = ("python", "torch", "tests")
    others = [old for old in before if any(old[key] != row[key] for key in same)]
    rows = sorted([*others, row], key=lambda r: [numbers(r[key]) for key in same[:2]])
    kept.keep("matrix", {"machine": kept.machine(), "rows": rows})


def numbers(version: str) -> list[int]:
    """ "3.13.0" in an order that versions have."""
    return [int(part) for part in version.split(".") if part.isdigit()]


def table(results: dict[str, Any]) -> list[list[str]]:
    """A line for each Python and torch."""
    keys = ("python", "torch", "tests", "outcome", "commit")
    return [["Python", *keys[1:]], *([row[key] for key in keys] for row in results["rows"])]


if __name__ == "__main__":
    keep_row(*sys.argv[1:])
