"""The detection backbone under DistributedDataParallel, compared with one process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("detectron2", reason="install detectron2 to run: make setup")

from tests.ranks import start

CLAIM = "distributed runs equal to one process"
JOBS = "tests.d2.ddp_jobs"


def test_ddp(tmp_path: Path, tally: Callable[..., None]) -> None:
    """Accumulation and uneven batches on two ranks."""
    counts = start(tmp_path, *(f"{JOBS}:{name}" for name in ("accumulation:2", "uneven:2")))
    assert counts == [4, 4]
    tally(CLAIM, sum(counts))


@pytest.mark.slow
def test_ddp_subsets(tmp_path: Path, tally: Callable[..., None]) -> None:
    """Every subset of features with and without activation checkpointing and static graph on two
    ranks; accumulation and uneven batches on four."""
    names = ["subsets:2", "accumulation:4", "uneven:4"]
    counts = start(tmp_path, *(f"{JOBS}:{name}" for name in names))
    assert counts == [60, 4, 4]
    tally(CLAIM, sum(counts))


@pytest.mark.soak
def test_ddp_subsets_on_four_ranks(tmp_path: Path, tally: Callable[..., None]) -> None:
    counts = start(tmp_path, f"{JOBS}:subsets:4")
    assert counts == [60]
    tally(CLAIM, sum(counts))
