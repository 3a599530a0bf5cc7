"""Counts that the suite prints at its end, by claim, and both forms of the arithmetic."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

TALLIES = pytest.StashKey[Counter]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[TALLIES] = Counter()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Add what a process of pytest-xdist counted."""
    node.config.stash[TALLIES].update(getattr(node, "workeroutput", {}).get("tallies", {}))


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):  # a worker of pytest-xdist
        session.config.workeroutput["tallies"] = dict(session.config.stash[TALLIES])


@pytest.fixture(scope="session")
def tally(pytestconfig: pytest.Config) -> Callable[..., None]:
    """``tally(claim, n=1)`` adds ``n`` checked cases to what the summary prints for ``claim``.

    Call it after the check, so that only what held is counted.
    """
    counts = pytestconfig.stash[TALLIES]

    def add(claim: str, n: int = 1) -> None:
        counts[claim] += n

    return add


@pytest.fixture(params=["fast", "reference"])
def forms(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A test twice: with the forms that would be chosen, and with the definitions alone.

    Afterwards it holds that just those ran: several forms, or "plain" and nothing else.
    """
    from mvitv2_core import ops

    seen: set[str] = set()
    choose = ops.choose

    def watched(operation: str, *call: object) -> ops.Form:
        form = choose(operation, *call)
        seen.add(form.name)
        return form

    reference = request.param == "reference"
    monkeypatch.setattr(ops, "REFERENCE", reference)
    monkeypatch.setattr(ops, "choose", watched)
    yield request.param
    if seen:  # a test that skips runs none
        assert (seen == {"plain"}) == reference, seen


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    counts = config.stash[TALLIES]
    if counts:
        terminalreporter.section("checked")
        for claim, count in sorted(counts.items()):
            terminalreporter.line(f"{count:6d}  {claim}")
