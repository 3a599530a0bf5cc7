"""Counts that the suite prints at its end: faults tried and cases drawn, by claim."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

TALLIES = pytest.StashKey[Counter]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[TALLIES] = Counter()


@pytest.fixture(scope="session")
def tally(pytestconfig: pytest.Config) -> Callable[..., None]:
    """``tally(claim, n=1)`` adds ``n`` checked cases to what the summary prints for ``claim``.

    Call it after the check, so that only what held is counted.
    """
    counts = pytestconfig.stash[TALLIES]

    def add(claim: str, n: int = 1) -> None:
        counts[claim] += n

    return add


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    counts = config.stash[TALLIES]
    if counts:
        terminalreporter.section("checked")
        for claim, count in sorted(counts.items()):
            terminalreporter.line(f"{count:6d}  {claim}")
