"""What shows that pre-training pays: its data are as they say, and all of it runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

for name in ("av", "matplotlib", "tqdm"):
    pytest.importorskip(name, reason=f"needs {name}: make setup")

from projects.learning import data, plots  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
OTHER = {"left": "right", "right": "left"}


def walks(count: int) -> dict[str, list[data.Walk]]:
    """Walks of every class from the same draws."""
    return {
        turns: [data.draw_walk(np.random.default_rng([5, i]), turns) for i in range(count)]
        for turns in data.TURNS
    }


def test_two_frames_do_not_tell_a_walk_from_its_mirror_image() -> None:
    """Place and heading are uniform and drawn without the class, so the distance is all there is.

    Of all pairs of frames: a left turn moves a shape as far as a right one does.
    """
    drawn = walks(20)
    for turns, mine in drawn.items():
        mirrored = drawn[" ".join(OTHER[turn] for turn in turns.split())]
        for one, other in zip(mine, mirrored, strict=True):
            assert replace(one, turns=other.turns) == other
            places, others = one.places(), other.places()
            for a, b in combinations(range(data.FRAMES), 2):
                far, as_far = (np.hypot(*(p[b] - p[a])) for p in (places, others))
                assert far == pytest.approx(as_far, rel=0, abs=1e-12)


def test_place_and_heading_are_uniform() -> None:
    """By what a mean over the circle must be: 0 up to the draw's own spread."""
    drawn = walks(4000)["left left"]
    turns = np.array([[*walk.start, walk.heading / (2 * np.pi)] for walk in drawn])
    for multiple in (1, 2, 3):
        means = np.abs(np.exp(2j * np.pi * multiple * turns).mean(axis=0))
        assert means.max() < 4 / np.sqrt(len(drawn))


def test_a_frame_of_each_leg_and_of_the_turns_tells_the_class() -> None:
    """Wrapped round the edges, as a clip shows it."""
    corners = [0, data.LEG, 2 * data.LEG, data.FRAMES - 1]
    for turns, mine in walks(50).items():
        for walk in mine:
            moved = np.diff(walk.places()[corners] % 1.0, axis=0)
            moved -= np.round(moved)  # the short way: a leg is less than half of the side
            crosses = moved[:-1, 0] * moved[1:, 1] - moved[:-1, 1] * moved[1:, 0]
            assert " ".join("right" if c > 0 else "left" for c in crosses) == turns


def test_clips_are_what_their_walk_says() -> None:
    frames, label = data.draw_clip("train", 6)
    again, _ = data.draw_clip("train", 6)
    assert label == 6 % len(data.TURNS)
    assert frames.shape == (data.FRAMES, data.CLIP, data.CLIP, 3)
    assert (frames == again).all()
    # As many pixels are covered in every frame, over the edges too.
    background = np.median(frames, axis=0)
    covered = (np.abs(frames - background).max(axis=3) > 12).sum(axis=(1, 2))
    assert covered.min() > 0.7 * covered.max()


def test_images_have_small_shapes_apart_from_each_other_in_tight_boxes() -> None:
    for index in range(8):
        image, found = data.draw_image("train", index)
        assert image.shape == (data.IMAGE, data.IMAGE, 3)
        assert data.SHAPES_IN_IMAGE[0] <= len(found) <= data.SHAPES_IN_IMAGE[1]
        for one, other in combinations([look for _, look in found], 2):
            assert not data.overlap(one, other)
        for _, look in found:
            x, y, width, height = data.tight_box(look)
            assert width * height < 32**2  # COCO's "small"
            assert min(x, y) >= 0 and max(x + width, y + height) <= data.IMAGE
            assert max(width, height) <= 2 * look.radius * data.IMAGE + 1
            middle = (np.array(look.centre) + 0.5) * data.IMAGE
            assert x <= middle[0] <= x + width and y <= middle[1] <= y + height


def test_pictures_have_evenly_many_of_each_kind() -> None:
    images, labels = data.draw_pictures(12, 3)
    assert images.shape == (12, data.PICTURE, data.PICTURE, 3)
    assert np.bincount(labels).tolist() == [2] * len(data.SHAPES)
    assert (images == data.draw_pictures(12, 3)[0]).all()
    assert (images != data.draw_pictures(12, 4)[0]).any()


def test_another_set_in_the_folder_is_refused(tmp_path: Path) -> None:
    data.make_coco(tmp_path, {"train": 2, "val": 1})
    data.make_coco(tmp_path, {"train": 2, "val": 1})
    coco = json.loads((tmp_path / "train.json").read_text())
    assert [c["name"] for c in coco["categories"]] == list(data.SHAPES)
    assert all((tmp_path / "train" / i["file_name"]).is_file() for i in coco["images"])
    with pytest.raises(ValueError, match="other settings"):
        data.make_coco(tmp_path, {"train": 3, "val": 1})


def test_table_is_of_all_seeds() -> None:
    curves = [[[1, 5.0], [2, end]] for end in (10.0, 30.0, 20.0)]
    lines = plots.table({"video": {"from scratch": curves}})
    assert lines[1:] == [
        ["video: top-1, percent", "scratch", "5.0 (5.0 to 5.0)", "20.0 (10.0 to 30.0)", "3"]
    ]


@pytest.mark.slow
def test_quick_run_is_taken_up_again(tmp_path: Path) -> None:
    """Both trainers run; what they left is not made again."""
    pytest.importorskip("detectron2", reason="install detectron2 to run: make setup")
    if not os.environ.get("PYSLOWFAST_ROOT"):
        pytest.skip("needs PySlowFast: set PYSLOWFAST_ROOT to a checkout")
    command = [sys.executable, "-m", "projects.learning.run", "--quick", "--out", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True)
    first = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    subprocess.run(command, cwd=ROOT, check=True)
    changed = {p.name for p, when in first.items() if p.stat().st_mtime_ns != when}
    assert changed <= {"learning.json", "train.json", "val.json"}
    results = json.loads((tmp_path / "learning.json").read_text())
    assert 0 <= results["image_top1"] <= 100
    assert set(results["detection"]) == {"from scratch", "from images", "from images, layer decay"}
    assert set(results["video"]) == {"from scratch", "from images"}
    for what in ("detection", "video"):
        for curves in results[what].values():
            assert [step for step, _ in curves[0]] == [2, 4] if what == "detection" else [2]
    plots.draw_curves(results, tmp_path / "curves.png")
    # What is trained started from the image model where it says so.
    log = (tmp_path / "detection-from-images-1" / "log.txt").read_text()
    assert "image.pyth" in log
