"""The toy AVA has the files that PySlowFast's `ava` dataset reads, and boxes that fit."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av", reason="needs PyAV: pip install 'mvitv2[slowfast]'")
Image = pytest.importorskip("PIL.Image", reason="needs Pillow: pip install Pillow")
pytest.importorskip("tqdm", reason="needs tqdm: pip install tqdm")

from projects.video import scenes, toy_ava  # noqa: E402

VIDEOS = {"train": 2, "val": 1}


@pytest.fixture(scope="module")
def ava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ava")
    toy_ava.make_ava(folder, VIDEOS)
    return folder


def rows(path: Path) -> list[list[str]]:
    with path.open() as file:
        return list(csv.reader(file))


def test_frame_lists_name_every_frame(ava: Path) -> None:
    for split, count in VIDEOS.items():
        header, *lines = (ava / "frame_lists" / f"{split}.csv").read_text().splitlines()
        assert len(header.split()) == 5
        assert len(lines) == count * toy_ava.FRAMES
        for line in lines:
            video, _, frame, path, _ = line.split()
            assert path == f"{video}/{video}_{int(frame):06d}.jpg"
            assert (ava / "frames" / path).is_file()


def test_annotations_have_avas_columns(ava: Path) -> None:
    for split, count in VIDEOS.items():
        truth = rows(ava / "annotations" / f"ava_{split}_v2.2.csv")
        assert len(truth) == count * len(toy_ava.SECONDS) * 2
        for video, second, *box, action, person in truth:
            assert (ava / "frames" / video).is_dir()
            assert 902 <= int(second) < 902 + len(toy_ava.SECONDS)
            assert len(second) == 4
            x1, y1, x2, y2 = map(float, box)
            assert 0 <= x1 < x2 <= 1
            assert 0 <= y1 < y2 <= 1
            assert 1 <= int(action) <= len(scenes.MOTIONS)
            assert person in ("0", "1")
    # PySlowFast validates on seconds divisible by 4 alone: every video must have one.
    assert any(second % 4 == 0 for second in toy_ava.SECONDS)
    truth = rows(ava / "annotations" / "ava_val_v2.2.csv")
    found = rows(ava / "annotations" / "ava_val_predicted_boxes.csv")
    assert [row[:6] for row in found] == [row[:6] for row in truth]
    assert all(row[6:] == ["", "1.0"] for row in found)


def test_label_map_lists_the_motions(ava: Path) -> None:
    text = (ava / "annotations" / toy_ava.LABEL_MAP).read_text()
    names = [line.split('"')[1] for line in text.splitlines() if line.startswith("  name:")]
    ids = [int(line.split()[-1]) for line in text.splitlines() if line.startswith("  id:")]
    assert names == list(scenes.MOTIONS)
    assert ids == list(range(1, len(names) + 1))
    assert (ava / "annotations" / toy_ava.EXCLUSIONS).read_text() == ""


def test_each_box_holds_its_shape_and_nothing_lies_outside(ava: Path) -> None:
    for second in toy_ava.SECONDS:
        path = ava / "frames" / "val000" / f"val000_{(second - 900) * 30:06d}.jpg"
        with Image.open(path) as image:
            picture = np.asarray(image, float)
        actors = toy_ava.draw_scene("val", 0, second)
        empty = scenes.draw_background(actors[0].look, toy_ava.WIDTH, toy_ava.HEIGHT)
        differs = np.abs(picture - empty).max(axis=2) > 60
        outside = differs.copy()
        for actor in actors:
            x1, y1, x2, y2 = actor.box
            across = slice(int(x1 * toy_ava.WIDTH) - 1, int(x2 * toy_ava.WIDTH) + 2)
            down = slice(int(y1 * toy_ava.HEIGHT) - 1, int(y2 * toy_ava.HEIGHT) + 2)
            assert differs[down, across].sum() > 20
            outside[down, across] = False
        assert outside.sum() == 0


def test_scenes_last_one_second_round_their_boxed_frame() -> None:
    def changed(a: int, b: int) -> float:
        return float(
            np.abs(toy_ava.draw_frame("val", 0, a) - toy_ava.draw_frame("val", 0, b)).mean()
        )

    for second in toy_ava.SECONDS:
        key = (second - 900) * 30
        assert changed(key - 16, key - 15) > 5  # a cut
        assert changed(key + 14, key + 15) > 5
        assert all(changed(k, k + 1) < 5 for k in range(key - 15, key + 14))


def test_settings(ava: Path, tmp_path: Path) -> None:
    frames = {path: path.stat().st_mtime_ns for path in ava.rglob("*.jpg")}
    toy_ava.make_ava(ava, VIDEOS)
    assert frames == {path: path.stat().st_mtime_ns for path in ava.rglob("*.jpg")}
    with pytest.raises(ValueError, match="other settings"):
        toy_ava.make_ava(ava, VIDEOS, seed=1)
    with pytest.raises(ValueError, match="videos must give"):
        toy_ava.make_ava(tmp_path, {"train": 1})
