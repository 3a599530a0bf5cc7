"""The classifier under DDP, FSDP and distributed checkpoints, compared with one process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch.distributed as dist

from tests.ranks import start

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="needs a torch with gloo"
)
CLAIM = "distributed runs equal to one process"
LOADS = "sharded checkpoints loaded on another number of ranks, bit-equal"
JOBS = "tests.core.rank_jobs"


def jobs(*names: str) -> list[str]:
    return [f"{JOBS}:{name}" for name in names]


def test_ddp_and_fsdp(tmp_path: Path, tally: Callable[..., None]) -> None:
    """Gradients on two ranks: DDP with activation checkpointing and static graph on and off, with
    accumulation and uneven batches; both kinds of FSDP by block."""
    counts = start(tmp_path, *jobs("ddp:2", "sharded:2"))
    assert counts == [12, 12]
    tally(CLAIM, sum(counts))


def test_checkpoints_across_ranks(tmp_path: Path, tally: Callable[..., None]) -> None:
    """Weights and optimizer saved by two ranks, loaded by one and by three."""
    start(tmp_path, *jobs("save_one:2", "load2_one:1", "load2_one:3"))
    tally(LOADS, 2)


@pytest.mark.slow
def test_checkpoints_across_four_ranks(tmp_path: Path, tally: Callable[..., None]) -> None:
    """Saved by two ranks, loaded by four and by one; by four, by two."""
    start(tmp_path, *jobs("save_one:2", "load2_one:4", "load2_one:1", "save_one:4", "load4_one:2"))
    tally(LOADS, 3)


@pytest.mark.soak
def test_four_ranks(tmp_path: Path, tally: Callable[..., None]) -> None:
    counts = start(tmp_path, *jobs("ddp:4", "sharded:4"), timeout=1500)
    assert counts == [12, 12]
    tally(CLAIM, sum(counts))


@pytest.mark.soak
def test_checkpoints_across_more_ranks(tmp_path: Path, tally: Callable[..., None]) -> None:
    """Every kind of model; two to four, to three and to one, four to two, to three and to one."""
    loads = [f"load{saved}:{ranks}" for saved in (2, 4) for ranks in (6 - saved, 3, 1)]
    start(tmp_path, *jobs("save:2", "save:4", *loads), timeout=1500)
    tally(LOADS, 3 * len(loads))
