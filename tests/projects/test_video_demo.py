"""The video demo: what it reads from PySlowFast's files, what it says, and a short run of it."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mvitv2_core import CheckpointError

for name in ("av", "matplotlib", "tqdm"):
    pytest.importorskip(name, reason=f"needs {name}: pip install 'mvitv2[slowfast]'")

from projects.video import demo, plots  # noqa: E402

TRAIN = (
    '[INFO] logging.py: 99: json_stats: {"_type": "train_epoch", "epoch": "%d/2", "loss": %s, '
    '"top1_err": 60.0}'
)
VAL = 'json_stats: {"_type": "val_epoch", "epoch": "%d/2", "top1_err": %s}'
TEST = 'json_stats: {"split": "test_final", "top1_acc": "62.50", "top5_acc": "100.00"}'


def test_statistics_are_read_from_the_log() -> None:
    lines = [TRAIN % (1, 2.5), VAL % (1, 75.0), "Start epoch: 2", TRAIN % (2, 1.5)]
    lines += [VAL % (2, 25.0), TEST]
    entries = [demo.read_stats(line) for line in lines]
    run = demo.Run(Path("."), [entry for entry in entries if entry is not None])
    assert len(run.stats) == 5
    assert run.curve("train_epoch", "loss") == ([1, 2], [2.5, 1.5])
    assert run.val_top1 == 75.0
    assert run.test_top1 == 62.5


def test_predictions_come_back_and_nothing_else_is_unpickled(tmp_path: Path) -> None:
    scores, labels = torch.rand(5, 3), torch.tensor([0, 1, 2, 1, 0])
    path = tmp_path / "predictions.pkl"
    path.write_bytes(pickle.dumps([scores, labels]))  # as PySlowFast's test_net.py does
    found = plots.read_predictions(path)
    assert torch.equal(found[0], scores)
    assert torch.equal(found[1], labels)
    path.write_bytes(pickle.dumps([print, labels]))
    with pytest.raises(CheckpointError, match=r"asks for builtins\.print"):
        plots.read_predictions(path)


def run_demo(out: Path, *arguments: str, root: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYSLOWFAST_ROOT": root}
    return subprocess.run(
        [sys.executable, "-m", "projects.video.demo", "--out", str(out), *arguments],
        cwd=demo.ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("variable", ["", "not a checkout"])
def test_without_pyslowfast_it_says_how_to_get_it(tmp_path: Path, variable: str) -> None:
    find = "import importlib.util as u, sys; sys.exit(u.find_spec('slowfast') is not None)"
    if not variable and subprocess.run([sys.executable, "-c", find], cwd=tmp_path).returncode:
        pytest.skip("needs an environment without slowfast: uninstall it to run this")
    result = run_demo(tmp_path / "out", root=variable and str(tmp_path))
    assert result.returncode == 2
    assert "git clone https://github.com/facebookresearch/SlowFast" in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.skipif(
    not os.environ.get("PYSLOWFAST_ROOT"),
    reason="needs PySlowFast: set PYSLOWFAST_ROOT to a checkout",
)
def test_quick_run_twice(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for _ in range(2):
        result = run_demo(tmp_path, "--quick", root=os.environ["PYSLOWFAST_ROOT"])
        assert result.returncode == 0, result.stdout + result.stderr
        assert "epoch   3/3" in result.stdout
        assert "from scratch" in result.stdout
        assert "from the image model" in result.stdout
        for name in ("predictions.png", "curve.png"):
            with image.open(tmp_path / name) as picture:
                assert min(picture.size) > 300
            (tmp_path / name).unlink()
