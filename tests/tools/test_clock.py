"""No decision hangs on the clock, but for which of several runs in a folder is the newest."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from mvitv2_tools.runs import newest_runs
from tests.faults import scatter_times

REPOSITORY = Path(__file__).parents[2]
CLOCKS = ("time.time", "datetime", "localtime", "st_mtime", "getmtime", "st_ctime")
# What they are for: which of several runs is shown; whether a file is the one that was planned.
KNOWN = {"mvitv2_tools/runs.py", "mvitv2_tools/extract/folder.py"}
KNOWN.add("mvitv2_tools/data/ava_files.py")


def test_where_the_clock_is_read() -> None:
    files = list(REPOSITORY.glob("mvitv2_*/**/*.py"))
    assert len(files) > 80
    found = {
        path.relative_to(REPOSITORY).as_posix()
        for path in files
        if any(word in path.read_text() for word in CLOCKS)
    }
    assert found == KNOWN


@pytest.mark.parametrize("seed", range(20))
def test_last_checkpoint_by_name(seed: int, tmp_path: Path, tally: Callable[..., None]) -> None:
    """In one run the last epoch or iteration counts, whatever the times of its files."""
    draw = random.Random(seed)
    clips, detector = tmp_path / "clips/checkpoints", tmp_path / "detector"
    clips.mkdir(parents=True)
    detector.mkdir()
    (detector / "config.yaml").touch()
    numbers = draw.sample(range(1, 99_999), 6)
    for number in numbers:
        (clips / f"checkpoint_epoch_{number:05d}.pyth").touch()
        (detector / f"model_{number:07d}.pth").touch()
    scatter_times(tmp_path, seed)
    assert {path.name for path in newest_runs(tmp_path)} == {
        f"checkpoint_epoch_{max(numbers):05d}.pyth",
        f"model_{max(numbers):07d}.pth",
    }
    tally("last checkpoints found among files of scattered times", 2)


def test_newest_run_by_time(tmp_path: Path) -> None:
    """Between runs nothing else tells: a clock that was set back shows the other run."""
    for name, when in (("first", 1000), ("second", 2000)):
        folder = tmp_path / name / "checkpoints"
        folder.mkdir(parents=True)
        path = folder / "checkpoint_epoch_00001.pyth"
        path.touch()
        os.utime(path, (when, when))
    assert newest_runs(tmp_path)[0].parts[-3] == "second"
    os.utime(tmp_path / "second/checkpoints/checkpoint_epoch_00001.pyth", (500, 500))
    assert newest_runs(tmp_path)[0].parts[-3] == "first"
