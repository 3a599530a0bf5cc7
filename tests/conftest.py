"""Counts that the suite prints at its end, by claim, and both forms of the arithmetic.

``--keep-counts default`` (or ``slow``, ``soak``, as ``-m`` chose) puts them beside those that
docs/robustness.md shows, if nothing failed: each test's last count for a claim, and its commit.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

TALLIES = pytest.StashKey[Counter]()
SUITES = ("default", "slow", "soak")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--keep-counts", choices=SUITES, help="for docs/robustness.md")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[TALLIES] = Counter()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Add what a process of pytest-xdist counted."""
    for claim, test, count in getattr(node, "workeroutput", {}).get("tallies", []):
        node.config.stash[TALLIES][claim, test] += count


def pytest_sessionfinish(session: pytest.Session) -> None:
    counts = session.config.stash[TALLIES]
    if hasattr(session.config, "workeroutput"):  # a worker of pytest-xdist
        session.config.workeroutput["tallies"] = [[*key, n] for key, n in counts.items()]
        return
    suite = session.config.getoption("--keep-counts")
    if suite and counts and session.exitstatus == pytest.ExitCode.OK:
        keep_counts(suite, counts)


def keep_counts(suite: str, counts: Counter) -> None:
    """Replace what the tests of this run counted for ``suite``; other tests' counts stay."""
    from projects.benchmark import kept

    before = kept.kept("checked")["suites"] if kept.measured("checked") else {}
    suites = {name: before.get(name, {}) for name in SUITES}
    commit = kept.commit()
    for (claim, test), count in sorted(counts.items()):
        suites[suite].setdefault(claim, {})[test] = {"count": count, "commit": commit}
    kept.keep("checked", {"machine": kept.machine(), "suites": suites})


def current_test() -> str:
    """The test that runs now, without its parameters."""
    return os.environ["PYTEST_CURRENT_TEST"].split("[")[0].split(" ")[0]


@pytest.fixture(scope="session")
def tally(pytestconfig: pytest.Config) -> Callable[..., None]:
    """``tally(claim, n=1)`` adds ``n`` checked cases to what the summary prints for ``claim``.

    Call it after the check, so that only what held is counted.
    """
    counts = pytestconfig.stash[TALLIES]

    def add(claim: str, n: int = 1) -> None:
        counts[claim, current_test()] += n

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
    claims: Counter = Counter()
    for (claim, _), count in config.stash[TALLIES].items():
        claims[claim] += count
    if claims:
        terminalreporter.section("checked")
        for claim, count in sorted(claims.items()):
            terminalreporter.line(f"{count:6d}  {claim}")
