"""A small toy data set, and trainers started as a user starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for ``$DETECTRON2_DATASETS`` with 12 training and 6 validation images."""
    pytest.importorskip("cv2", reason="install opencv-python-headless to run: make setup")
    from projects.detection.toy_coco import make_split

    root = tmp_path_factory.mktemp("datasets")
    for split, count in (("train", 12), ("val", 6)):
        assert make_split(root / "toy_shapes", split, count, seed=1)
    return root


@pytest.fixture
def run(datasets: Path, tmp_path: Path) -> Callable[..., str]:
    """``run(*arguments, **environment)``: Python in a fresh process from a foreign folder.

    Returns what it printed. A status other than ``status`` (default 0) fails the test.
    """

    def call(*arguments: str | Path, status: int = 0, **environment: str) -> str:
        env = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "DETECTRON2_DATASETS": str(datasets),
            "OMP_NUM_THREADS": "1",
            **environment,
        }
        process = subprocess.run(
            [sys.executable, *map(str, arguments)],
            env=env,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
        )
        assert process.returncode == status, process.stdout[-5000:]
        return process.stdout

    return call
