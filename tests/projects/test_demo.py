"""The detection demo, cut short: what it prints, what it draws, and how it fails."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("detectron2", reason="install detectron2 to run: make setup")

from PIL import Image

from projects.benchmark import kept
from projects.detection import demo

Run = Callable[..., str]
SHORT = [
    *("--train", "12", "--val", "6", "train.max_iter=4", "train.log_period=2"),
    *("train.eval_period=2", "dataloader.train.total_batch_size=2"),
    "model.roi_heads.box_predictor.test_score_thresh=0.0",
]


def test_demo_twice(run: Run, tmp_path: Path) -> None:
    """A second run starts anew and leaves the same kinds of files."""
    where = {"DETECTRON2_DATASETS": str(tmp_path / "data")}
    for _ in range(2):
        output = run("-m", "projects.detection.demo", "--output", "demo", *SHORT, **where)
        assert output.count("on val: box AP") == 2
        table = output[output.index("3. Average precision") :].splitlines()
        assert table[2].split() == ["AP", "AP50", "AP75", "circle", "square", "triangle", "star"]
        assert [line.split()[0] for line in table[3:5]] == ["box", "mask"]
        assert all(0 <= float(value) <= 100 for value in table[3].split()[1:4])
        for name in ("predictions.png", "curve.png", "training/model_final.pth", "training.log"):
            assert f"demo/{name}" in output
            assert (tmp_path / "demo" / name).stat().st_size > 1000
        data = tmp_path / "data/toy_shapes/val"  # not where it lies by default
        assert f"mvitv2 predict demo {data} --out out\n" in output and data.is_dir()
        metrics = (tmp_path / "demo/training/metrics.json").read_text()
        assert metrics.count('"bbox/AP"') == 2  # of this run alone
    assert Image.open(tmp_path / "demo/predictions.png").width > 1000
    assert Image.open(tmp_path / "demo/curve.png").width > 1000


def test_a_trainer_that_fails_is_shown(run: Run, tmp_path: Path) -> None:
    where = {"DETECTRON2_DATASETS": str(tmp_path / "data")}
    broken = "model.backbone.bottom_up.adaptive_window_size=18"
    output = run("-m", "projects.detection.demo", *SHORT, broken, status=1, **where)
    assert "demo: the trainer stopped with status 1" in output
    assert "window_size must be a multiple" in output


@pytest.fixture
def quick_demo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The demo without its training, and where it keeps its result."""

    def train(command: list[str], log: Path) -> None:
        metrics = log.parent / "training/metrics.json"
        metrics.write_text(json.dumps({"bbox/AP": 80.5, "segm/AP": 75.5}))

    monkeypatch.setattr(kept, "RESULTS", tmp_path)
    monkeypatch.setattr(demo, "train", train)
    for module, name in (
        (demo.toy_coco, "make_split"),
        (demo.pictures, "draw_predictions"),
        (demo.pictures, "draw_curve"),
        (demo, "table"),
    ):
        monkeypatch.setattr(module, name, lambda *_, **__: None)
    monkeypatch.setattr("sys.argv", ["demo", "--keep", "--output", str(tmp_path / "demo")])
    return tmp_path / "demo.json"


def test_keep_adds_a_run(quick_demo: Path) -> None:
    for count in (1, 2):
        demo.main()
        results = json.loads(quick_demo.read_text())
        assert len(results["runs"]) == count
        assert {"cpu", "threads", "torch", "dtype"} <= results["machine"].keys()
        assert results["command"].startswith("python ") and results["commit"]
    assert results["runs"][1].keys() == {"commit", "box_ap", "mask_ap", "minutes"}
    assert (results["runs"][1]["box_ap"], results["runs"][1]["mask_ap"]) == (80.5, 75.5)


def test_what_no_demo_made_is_not_deleted(quick_demo: Path) -> None:
    """Where a training of somebody's own lies, say. A folder without anything is taken."""
    run = quick_demo.with_suffix("") / "training"
    (run / "inference").mkdir(parents=True)
    with pytest.raises(ValueError, match=f"{run} must be new, empty or made by a demo"):
        demo.main()
    (run / "inference").rmdir()
    for _ in range(2):
        demo.main()
        assert not (run / "old.txt").exists()
        (run / "old.txt").touch()


def test_keep_refuses_what_is_not_the_demo(
    quick_demo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another machine's runs, before anything is trained; another length or size."""
    other = json.dumps({"machine": {"cpu": "other"}, "runs": []})
    quick_demo.write_text(other)
    with pytest.raises(RuntimeError, match=r"--keep: the runs kept as demo .*'cpu': 'other'"):
        demo.main()
    assert quick_demo.read_text() == other
    for more in (["train.max_iter=4"], ["--val", "6"]):
        monkeypatch.setattr("sys.argv", ["demo", "--keep", *more])
        with pytest.raises(SystemExit):
            demo.main()
        assert "--keep takes the demo as it is" in capsys.readouterr().err
