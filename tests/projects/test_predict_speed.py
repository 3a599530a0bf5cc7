"""The script that measures how busy ``mvitv2 predict`` keeps the model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("PIL", reason="pictures need Pillow: pip install Pillow")
pytest.importorskip("av", reason="videos need PyAV: pip install av")

from projects.benchmark import predict_speed

SCRIPT = Path(predict_speed.__file__)


def test_summary() -> None:
    rounds = [{"predict": 4.0, "model": 3.0}, {"predict": 5.0, "model": 5.0}]
    found = predict_speed.summary([*rounds, {"predict": 10.0, "model": 8.0}])
    assert found["share"] == {"median": 0.8, "min": 0.75, "max": 1.0}
    assert found["predict"] == {"median": 5.0, "min": 4.0, "max": 10.0}


@pytest.mark.slow
def test_it_runs(tmp_path: Path) -> None:
    """Both sides see the same views, and what was measured stands in the file."""
    out = tmp_path / "results" / "speed.json"
    command = [sys.executable, str(SCRIPT), "--rounds", "1", "--pictures", "5", "--clips", "1"]
    done = subprocess.run(
        [*command, "--threads", "1", "--out", str(out)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(SCRIPT.parents[2])},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert found["machine"]["threads"] == 1 and found["machine"]["cpu"]
    for kind, inputs, views in (("pictures", 5, 5), ("clips", 1, 5)):
        assert len(found[kind]["rounds"]) == 1
        for row in found[kind]["rounds"]:
            assert (row["inputs"], row["views"]) == (inputs, views)
        assert 0 < found[kind]["share"]["min"] <= found[kind]["share"]["median"]
