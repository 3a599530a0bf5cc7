"""Two ranks that train, one of them, both or their launcher killed at drawn moments; resumed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch.distributed as dist

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.skipif(
    sys.platform != "linux" or not dist.is_available() or not dist.is_gloo_available(),
    reason="needs Linux, whose ranks outlive no launcher, and a torch with gloo",
)
@pytest.mark.parametrize(
    "kills",
    [pytest.param(8, marks=pytest.mark.slow), pytest.param(200, marks=pytest.mark.soak)],
)
def test_killed_ranks(kills: int, tmp_path: Path, tally: Callable[..., None]) -> None:
    """Losses and the last checkpoint equal the uninterrupted run's, bit for bit."""
    process = subprocess.run(
        [sys.executable, "-m", "tests.core.killed_ranks", str(tmp_path), str(kills), "0"],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600 if kills < 100 else 7200,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    result = json.loads(process.stdout.splitlines()[-1])
    print(result)
    assert set(result["kills"]) == {"self", "other", "ranks", "launcher"}
    assert result["longest"] < 60 + 10  # who waits for a peer that is gone gives up after 60 s
    tally("kills on two ranks survived, plain loop", sum(result["kills"].values()))
