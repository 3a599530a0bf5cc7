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
import yaml

for name in ("av", "matplotlib", "tqdm"):
    pytest.importorskip(name, reason=f"needs {name}: make setup")

from projects.learning import data, plots  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
SEEN = range(0, data.FRAMES, data.LEG)  # frames that the clip model sees: ends of stretches


def walks(count: int) -> dict[str, list[data.Walk]]:
    """Walks of every class from the same draws."""
    return {
        gait: [data.draw_walk(np.random.default_rng([5, i]), gait) for i in range(count)]
        for gait in data.GAITS
    }


def test_two_frames_say_how_far_it_went_and_no_more_than_three_things() -> None:
    """Nothing, one step or two: with six classes, at most half of the answers can be right."""
    drawn = walks(20)
    assert len(drawn) == 6
    for gait, mine in drawn.items():
        for walk, first in zip(mine, drawn[data.GAITS[0]], strict=True):
            assert replace(walk, gait=first.gait) == first  # all else is drawn without the class
            steps = distances(walk)[np.ix_(SEEN, SEEN)] / walk.step
            assert np.allclose(steps, np.round(steps), rtol=0, atol=1e-9)
            assert np.unique(np.round(steps)).tolist() == [0, 1, 2], gait


def test_first_and_last_frame_are_those_of_every_class() -> None:
    drawn = walks(20)
    for mine in zip(*drawn.values(), strict=True):
        places = np.stack([walk.places()[[0, -1]] for walk in mine])
        assert np.allclose(places, places[:1], rtol=0, atol=1e-12)


def distances(walk: data.Walk) -> np.ndarray:
    """(FRAMES, FRAMES) how far a walk's place in one frame lies from that in another."""
    places = walk.places()
    return np.linalg.norm(places[:, None] - places[None], axis=2)


def test_place_and_heading_are_uniform() -> None:
    """By what a mean over the circle must be: 0 up to the draw's own spread."""
    drawn = walks(1000)[data.GAITS[0]]
    turns = np.array([[*walk.start, walk.heading / (2 * np.pi)] for walk in drawn])
    for multiple in (1, 2, 3):
        means = np.abs(np.exp(2j * np.pi * multiple * turns).mean(axis=0))
        assert means.max() < 4 / np.sqrt(len(drawn))


def test_the_five_frames_that_are_seen_tell_the_class() -> None:
    for gait, mine in walks(50).items():
        for walk in mine:
            gone = np.diagonal(distances(walk)[np.ix_(SEEN, SEEN)], offset=1)
            assert "".join("g" if far > 0.1 else "-" for far in gone) == gait


def test_clips_are_what_their_walk_says() -> None:
    frames, label = data.draw_clip("train", 6)
    again, _ = data.draw_clip("train", 6)
    assert label == 6 % len(data.GAITS)
    assert frames.shape == (data.FRAMES, data.CLIP, data.CLIP, 3)
    assert (frames == again).all()
    stands = (frames[1:] == frames[:-1]).all(axis=(1, 2, 3))  # from one frame to the next
    assert stands.reshape(4, data.LEG).tolist() == [
        [letter == "-"] * data.LEG for letter in data.GAITS[label]
    ]


def test_what_leaves_on_one_side_comes_in_on_the_other() -> None:
    look = data.small_look(np.random.default_rng(0), "disc", data.CLIP)
    look = replace(look, radius=0.2, centre=(0.0, 0.0), colour=(1, 1, 1))
    canvas = np.zeros((data.CLIP, data.CLIP, 3))
    middle = data.paint_wrapped(canvas, look, np.array([0.5, 0.5]))
    for place in ((0.0, 0.5), (0.5, 1.25), (-0.125, 3.0)):
        painted = data.paint_wrapped(canvas, look, np.array(place))
        shift = tuple(round((p - 0.5) * data.CLIP) for p in reversed(place))
        assert np.allclose(painted, np.roll(middle, shift, axis=(0, 1)), rtol=0, atol=1e-9)


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


def test_what_the_page_says_of_clips_is_what_came_out() -> None:
    kept = json.loads((ROOT / "projects/benchmark/results/learning.json").read_text())
    classes, (training, validation) = len(data.GAITS), kept["size"]["clips"]
    epochs = kept["size"]["epochs"]
    recipe = yaml.safe_load((ROOT / "projects/learning/video.yaml").read_text())
    batch = recipe["TRAIN"]["BATCH_SIZE"]
    steps = epochs * (training * classes // batch)  # PySlowFast drops what fills no batch
    chance, clips = 1 / classes, validation * classes
    least = 100 * (chance + 3 * (chance * (1 - chance) / clips) ** 0.5)
    curves = kept["video"]
    assert not any(top1 > least for curve in curves["from scratch"] for _, top1 in curve)
    first = [min(e for e, top1 in curve if top1 > least) for curve in curves["from images"]]
    said = (
        f"From scratch no clip model left chance ({100 * chance:.1f} %, and three standard errors "
        f"of {clips} clips above it) in its {epochs} epochs, {steps} steps of {batch} clips; from "
        f"images all {len(first)} did, in epochs {min(first)} to {max(first)}."
    )
    assert said in " ".join((ROOT / "docs/learning.md").read_text().split())


def test_every_arm_runs_with_every_seed_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("detectron2", reason="install detectron2 to run: make setup")
    from projects.learning import run

    made = []

    def fake(out: Path, folder: Path, arm: str, image: Path, seed: int, size: run.Size) -> list:
        made.append((folder.name, arm, seed))
        return [[1, 10.0], [2, 20.0 + seed]]

    monkeypatch.setattr(run, "pretrain", lambda *arguments: 50.0)
    monkeypatch.setattr(run, "what_is_missing", lambda: "")
    for name in ("detect", "recognise"):
        monkeypatch.setattr(run, name, fake)
    size = replace(run.QUICK, seeds=2)
    results = run.experiment(tmp_path, size)
    wanted = [("coco", arm, seed) for seed in (1, 2) for arm in run.DETECTION]
    wanted += [("kinetics", arm, seed) for seed in (1, 2) for arm in run.VIDEO]
    assert made == wanted
    assert results["video"]["from images"] == [[[1, 10.0], [2, 21.0]], [[1, 10.0], [2, 22.0]]]
    assert run.experiment(tmp_path, size) == results
    assert made == wanted  # nothing ran again
    plots.draw_curves(results, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 10_000


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
