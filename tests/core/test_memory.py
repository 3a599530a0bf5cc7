"""Memory over time: training on inputs of changing sizes holds no more than it did."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mvitv2_core.fast.memory import LIMIT

ROOT = Path(__file__).resolve().parents[2]
# Resident memory may grow by the bound of the cache of positions, once.
BOUND_MIB = LIMIT / 2**20


def samples(iterations: int) -> list[dict[str, float]]:
    """Of ``tests.memory`` in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [sys.executable, "-m", "tests.memory", str(iterations)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=3600,
    )
    assert process.returncode == 0, process.stderr[-5000:]
    lines = [line for line in process.stdout.splitlines() if line.startswith("sample ")]
    return [json.loads(line.removeprefix("sample ")) for line in lines]


def check(iterations: int, warm_up: int, tally: Callable[..., None]) -> None:
    """After the warm-up: as many tensors, positions within bounds, and resident memory as well."""
    pytest.importorskip("detectron2", reason="install detectron2 to run: make setup")
    if not Path("/proc/self/statm").exists():
        pytest.skip("reads resident memory from /proc: run on Linux")
    found = [sample for sample in samples(iterations) if sample["iteration"] >= warm_up]
    assert len({sample["tensors"] for sample in found}) == 1
    assert all(0 < sample["cache"] <= LIMIT for sample in found)
    grown = max(sample["resident"] for sample in found) - found[0]["resident"]
    assert grown < BOUND_MIB, found
    tally("memory: training iterations over changing sizes, resident memory bounded", iterations)


def test_changing_sizes(tally: Callable[..., None]) -> None:
    check(200, 100, tally)


@pytest.mark.soak
def test_changing_sizes_for_long(tally: Callable[..., None]) -> None:
    check(2000, 400, tally)
