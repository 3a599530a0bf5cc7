"""The benchmark's command on a tiny input: rows for ours, ratios for peers, tables and a plot."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "projects" / "benchmark" / "bench.py"


@pytest.mark.slow  # seven processes, each importing torch
def test_benchmark(tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="install timm to run: make setup")
    command = [sys.executable, str(BENCH), "--cases", "image-T", "--batch", "1", "--size", "64"]
    command += ["64", "--repeats", "1", "--warmup", "1", "--threads", "1", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [(r["mode"], r["who"]) for r in rows] == [
        ("inference", "ours"),
        ("inference", "timm"),
        ("training", "ours"),
        ("training", "ours, checkpointing"),
        ("training", "timm"),
    ]
    assert all(r["median"] > 0 and r["peak_mib"] > 0 for r in rows)
    ours, timm = rows[0], rows[1]
    assert timm["speed_of_ours"] == pytest.approx(timm["median"] / ours["median"])
    assert "| image T, 1 x 64x64 | inference | timm |" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "speed.png").stat().st_size > 10_000
