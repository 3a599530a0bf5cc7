"""``mvitv2 predict --boxes``: AVA models, against PySlowFast's own sampling and preparing."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fvcore.common.config import CfgNode

from mvitv2_core.media import Video
from mvitv2_slowfast.model import MViTv2
from mvitv2_slowfast.model_info import read_action_info
from mvitv2_tools.actions import ActionDetector, read_boxes
from tests.compare import randomize
from tests.media_files import frame_number, lit, picture, write_video
from tests.tools.conftest import TINY_CLIP, Predict, loading_cfg

Image = pytest.importorskip("PIL.Image", reason="pictures need Pillow: pip install Pillow")
BOXES = "a.mp4,1,0.1,0.2,0.5,0.9,12,1\na.mp4,1,0.0,0.0,1.0,1.0\na,0,0.3,0.1,0.6,0.8\nb,1,0,0,1,1\n"


def ava_cfg(bgr: bool = False) -> CfgNode:
    overrides = {**TINY_CLIP, "MODEL.HEAD_ACT": "sigmoid", "DETECTION.ENABLE": True}
    cfg = loading_cfg({**overrides, "DETECTION.SPATIAL_SCALE_FACTOR": 8})
    cfg.DATA.MEAN = [0.4, 0.45, 0.5]
    cfg.AVA = CfgNode({"BGR": bgr})
    return cfg


@pytest.fixture
def boxes(tmp_path: Path) -> Path:
    (tmp_path / "boxes.csv").write_text(BOXES)
    return tmp_path / "boxes.csv"


def detector(boxes: Path, bgr: bool = False) -> ActionDetector:
    info = read_action_info(ava_cfg(bgr), "any")
    return ActionDetector(torch.nn.Identity(), info, read_boxes(str(boxes)), None, CPU)


CPU = torch.device("cpu")


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, MViTv2]:
    """A checkpoint of PySlowFast's trainer on AVA, and its model."""
    pytest.importorskip(
        "slowfast.models.head_helper",
        reason="the RoI head is PySlowFast's: set PYSLOWFAST_ROOT to a checkout",
        exc_type=ImportError,
    )
    cfg = ava_cfg()
    model = randomize(MViTv2(cfg)).eval()
    path = tmp_path / "run" / "checkpoints" / "checkpoint_epoch_00001.pyth"
    path.parent.mkdir(parents=True)
    torch.save({"epoch": 0, "model_state": model.state_dict(), "cfg": cfg.dump()}, path)
    return tmp_path / "run", model


def test_boxes_of_a_file(boxes: Path) -> None:
    found = read_boxes(str(boxes))
    assert found == {
        "a": {1.0: [(0.1, 0.2, 0.5, 0.9), (0, 0, 1, 1)], 0.0: [(0.3, 0.1, 0.6, 0.8)]},
        "b": {1.0: [(0, 0, 1, 1)]},
    }


def test_boxes_of_a_file_with_a_heading(tmp_path: Path) -> None:
    """What ``mvitv2 data ava`` takes: a row for each label, in any order of columns."""
    rows = ["label,Video,second,x1,y1,x2,y2", "cook,a.mp4,1,0.1,0.2,0.5,0.9"]
    rows += ["stand,a.mp4,1,0.1,0.2,0.5,0.9", "stand,a.mp4,2,0,0,1,1"]
    (tmp_path / "x.csv").write_text("\ufeff" + "\n".join(rows) + "\n")
    found = read_boxes(str(tmp_path / "x.csv"))
    assert found == {"a": {1.0: [(0.1, 0.2, 0.5, 0.9)], 2.0: [(0, 0, 1, 1)]}}
    (tmp_path / "x.csv").write_text("video,second,x1,y1,x2\n")
    with pytest.raises(ValueError, match="line 1 must name video, second, x1, y1, x2, y2, got"):
        read_boxes(str(tmp_path / "x.csv"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a,1,0.1,0.2,0.5", "line 2 must be video, second, x1, y1, x2, y2, got 'a,1,0.1"),
        ("video,second,x1,y1,x2,y2", "line 2 must be video"),
        ("a,1,0.5,0.2,0.1,0.9", "x1 < x2 and y1 < y2"),
        ("a,1,10,20,50,90", "a box in 0 to 1"),
        ("a,1,-0.02,0,1,1", "a box in 0 to 1"),
        ("a,1,-0.01,0,0,1", "a box in 0 to 1"),
        ("a,-1,0,0,1,1", "a second from 0"),
        ("a,nan,0,0,1,nan", "must hold"),
    ],
)
def test_bad_boxes(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(f"a,1,0,0,1,1\n{line}\n")
    with pytest.raises(ValueError, match=message) as caught:
        read_boxes(str(tmp_path / "x.csv"))
    assert str(tmp_path / "x.csv") in str(caught.value)


def test_boxes_are_of_one_video(tmp_path: Path) -> None:
    """Dots in names, one name in two folders, and the path that is named in most parts."""
    names = ["2024.05.01", "2024.05.02.MP4", "a/x", "b/x.mp4", "x"]
    lines = [f"{name},{second},0,0,1,1" for second, name in enumerate(names)]
    (tmp_path / "x.csv").write_text("\n".join(lines))
    helper = detector(tmp_path / "x.csv")
    files = ["2024.05.01.mp4", "2024.05.02.avi", "a/x.mp4", "b/x.mp4", "c/x.mov"]
    for second, file in enumerate(files):
        assert helper._seconds(file) == {second: [(0, 0, 1, 1)]}
        assert helper._seconds(str(tmp_path / file)) == {second: [(0, 0, 1, 1)]}
    assert helper._seconds("2024.05.03.mp4") is None


def test_boxes_that_stick_out(tmp_path: Path) -> None:
    """As ``mvitv2 data ava`` takes them."""
    (tmp_path / "x.csv").write_text("a,1,-0.01,-0.004,0.5,1.01\n")
    assert read_boxes(str(tmp_path / "x.csv")) == {"a": {1.0: [(0, 0, 0.5, 1)]}}


@pytest.mark.parametrize("fps", [30, 25, Fraction(30000, 1001), 60])
def test_frames(fps: Any, boxes: Path, tmp_path: Path) -> None:
    """Those of PySlowFast's get_sequence at 30 a second; at other rates, those shown then."""
    total = 90
    path = write_video(tmp_path / "a.mp4", frame_number(total, 180, 64), fps=fps)
    for second in (0, 1):
        with Video(path) as video:
            frames = detector(boxes).read_clip(video, second)
        half, rate = 4 * 5 // 2, 5
        sequence = [max(n, 0) for n in range(30 * second - half, 30 * second + half, rate)]
        expected = [min(int(n / 30 * float(fps) + 1e-6), total - 1) for n in sequence]
        assert frames is not None and lit(frames, total) == expected
    with Video(path) as video:
        assert detector(boxes).read_clip(video, 60) is None


@pytest.mark.parametrize("bgr", [False, True])
@pytest.mark.parametrize("size", [(64, 48), (45, 80), (32, 32)])
def test_prepared_as_upstream(size: tuple[int, int], bgr: bool, boxes: Path) -> None:
    """PySlowFast's own preparing of whole test frames, to a level: OpenCV's integers round down."""
    ava_dataset = pytest.importorskip(
        "slowfast.datasets.ava_dataset",
        reason="set PYSLOWFAST_ROOT to a checkout of PySlowFast",
        exc_type=ImportError,
    )
    width, height = size
    frames = torch.from_numpy(np.stack([picture(width, height, seed=i) for i in range(4)]))
    given = [(0.1, 0.2, 0.5, 0.9), (0.0, 0.0, 1.0, 1.0)]
    clip, rows = detector(boxes, bgr).prepare(frames, given)
    cfg, loader = ava_cfg(bgr), object.__new__(ava_dataset.Ava)
    loader._split, loader._crop_size, loader._test_force_flip = "test", 32, False
    loader._data_mean, loader._data_std, loader._use_bgr = cfg.DATA.MEAN, cfg.DATA.STD, bgr
    pictures = [frame[:, :, ::-1].copy() for frame in frames.numpy()]
    expected, theirs = loader._images_and_boxes_preprocessing_cv2(pictures, np.array(given))
    level = 1 / 255 / 0.225
    assert clip.shape[1:] == expected.shape
    assert (clip[0] - expected).abs().max() <= 1.01 * level
    assert np.abs(rows[:, 1:].numpy() - theirs).max() < 1e-4 and not rows[:, 0].any()


def test_answers(predict: Predict, run: tuple[Path, MViTv2], boxes: Path, tmp_path: Path) -> None:
    """Each box of each second, by the model called by hand; videos without boxes are named."""
    folder, model = run
    for name in ("a", "c"):
        write_video(tmp_path / f"{name}.mp4", frame_number(60, 128, 96))
    (folder / "labels.txt").write_text("\n".join("vwxyz"))
    out = tmp_path / "out"
    videos = (tmp_path / "a.mp4", tmp_path / "c.mp4")
    arguments = ("--json", "--score", 0, "--topk", 5, "--boxes", boxes, "--out", out)
    result = predict(folder, *videos, *arguments)
    assert result.code == 1
    first, second, failed = result.rows
    assert "--boxes holds no box for c" in failed["error"]
    assert [first["seconds"], second["seconds"]] == [[0, 1], [1, 2]]
    helper = detector(boxes)
    for row, at, count in ((first, 0.0, 1), (second, 1.0, 2)):
        with Video(videos[0]) as video:
            clip, given = helper.prepare(helper.read_clip(video, at), helper.boxes["a"][at])
        with torch.inference_mode():
            expected = model([clip], given)
        assert len(row["objects"]) == 5 * count
        pixels = np.array(helper.boxes["a"][at]) * (128, 96, 128, 96)
        for found in row["objects"]:
            (number,) = np.flatnonzero(np.abs(pixels - found["box"]).max(axis=1) < 1e-3)
            score = expected[number, found["index"]].item()
            assert found["score"] == pytest.approx(score, abs=2e-6)
            assert found["label"] == "vwxyz"[found["index"]]
    assert {path.name for path in out.iterdir()} == {"a.mp4", "contact_sheet.jpg"}
    late = tmp_path / "late.csv"
    late.write_text("a,1,0,0,1,1\na,30,0,0,1,1\n")
    result = predict(folder, videos[0], "--json", "--score", 0, "--boxes", late)
    assert result.code == 1 and "ends before second 30" in result.rows[1]["error"]


def test_refusals(predict: Predict, tmp_path: Path, boxes: Path) -> None:
    """Without boxes, and boxes for a model that takes none."""
    from tests.tools.conftest import slowfast_run

    slowfast_run(tmp_path / "clips", loading_cfg(TINY_CLIP), epoch=1)
    path = tmp_path / "clips" / "checkpoints" / "checkpoint_epoch_00001.pyth"
    write_video(tmp_path / "a.mp4", frame_number(30, 64, 48))
    result = predict(path, tmp_path / "a.mp4", "--boxes", boxes)
    assert result.code == 2 and "--boxes is for AVA models" in result.err
    content = torch.load(path, weights_only=True)
    torch.save({**content, "cfg": ava_cfg().dump()}, path)
    result = predict(path, tmp_path / "a.mp4")
    # Any command may have asked, and only this one has --boxes.
    assert result.code == 2
    assert "for `mvitv2 predict` alone, whose --boxes must name a CSV file" in result.err
