"""The toy data: ordinary COCO files, the same for the same seed, classes told by shape alone."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("cv2", reason="install opencv-python-headless to run: make setup")
pytest.importorskip("pycocotools", reason="install pycocotools to run: make setup")

import cv2
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from projects.detection import toy_coco

COUNT = 40


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy_shapes")
    assert toy_coco.make_split(folder, "train", COUNT, seed=0)
    assert toy_coco.make_split(folder, "val", 10, seed=0)
    return folder


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_same_seed_same_data_and_no_second_writing(root: Path, tmp_path: Path) -> None:
    assert toy_coco.make_split(tmp_path, "train", COUNT, seed=0)
    assert toy_coco.make_split(tmp_path, "val", 10, seed=0)
    before = digest(tmp_path)
    assert before == digest(root)
    assert not toy_coco.make_split(tmp_path, "train", COUNT, seed=0)
    (tmp_path / "train/00005.jpg").unlink()
    assert toy_coco.make_split(tmp_path, "train", COUNT, seed=0)
    assert digest(tmp_path) == before
    assert toy_coco.make_split(tmp_path, "val", 10, seed=1)
    other = digest(tmp_path)
    assert other["val/00000.jpg"] != before["val/00000.jpg"]
    assert other["train.json"] == before["train.json"]


def test_train_and_val_differ(root: Path) -> None:
    files = digest(root)
    assert files["train/00000.jpg"] != files["val/00000.jpg"]


def test_annotations_fit_the_images(root: Path) -> None:
    coco = COCO(str(root / "train.json"))
    assert len(coco.imgs) == COUNT
    crowds, parts = 0, set()
    for image in coco.imgs.values():
        pixels = cv2.imread(str(root / "train" / image["file_name"]))
        assert pixels.shape == (image["height"], image["width"], 3)
        total = np.zeros(pixels.shape[:2], int)
        for annotation in coco.loadAnns(coco.getAnnIds(image["id"])):
            mask = coco.annToMask(annotation)
            x, y, w, h = annotation["bbox"]
            assert x >= 0 and y >= 0 and x + w <= image["width"] and y + h <= image["height"]
            # Pixels count where their centre is covered; polygons run through subpixel centres.
            assert mask.sum() == pytest.approx(annotation["area"], rel=0.1, abs=8)
            if annotation["iscrowd"]:
                crowds += 1
                assert isinstance(annotation["segmentation"]["counts"], list)
                size = annotation["segmentation"]["size"]
                rle = coco_mask.frPyObjects(annotation["segmentation"], *size)
                assert coco_mask.area(rle) == mask.sum()
                continue
            parts.add(len(annotation["segmentation"]))
            points = np.concatenate([np.reshape(p, (-1, 2)) for p in annotation["segmentation"]])
            extent = (*points.min(0), *points.max(0))
            # Outlines run through the subpixels' centres, and are simplified by a quarter pixel.
            assert extent == pytest.approx((x, y, x + w, y + h), abs=0.4)
            total += mask
        assert (total > 1).mean() < 0.2  # outlines of what is visible; only holes overlap
    assert crowds == 1
    assert max(parts) > 1  # some shape is cut in two by another


def test_variety(root: Path) -> None:
    coco = COCO(str(root / "train.json"))
    things = [a for a in coco.anns.values() if not a["iscrowd"]]
    assert {a["category_id"] for a in things} == {1, 2, 3, 4}
    assert [c["name"] for c in coco.cats.values()] == list(toy_coco.CLASSES)
    areas = [a["area"] for a in things]
    assert max(areas) > 8 * min(areas)
    ratios = {image["width"] > image["height"] for image in coco.imgs.values()}
    assert ratios == {True, False}
    empty = [i for i in coco.imgs if not coco.getAnnIds(i)]
    assert 0 < len(empty) < COUNT / 3


def test_colour_says_nothing_about_the_class() -> None:
    """The colour is drawn before anything reads the class: the stream is the same for all."""
    colours = []
    for kind in range(len(toy_coco.CLASSES)):
        rng = np.random.RandomState(7)
        mask = toy_coco.fill(toy_coco.outline(toy_coco.CLASSES[kind], 40, 40, 20, 0.1), 80, 80)
        image = np.zeros((80, 80, 3), np.float32)
        toy_coco.paint(image, mask, rng)
        colours.append(image[40, 40])
    assert all(np.array_equal(colours[0], colour) for colour in colours[1:])


def test_shapes_have_about_the_same_area() -> None:
    areas = [
        toy_coco.fill(toy_coco.outline(k, 50, 50, 20, 0.0), 100, 100).sum()
        for k in toy_coco.CLASSES
    ]
    assert max(areas) < 1.6 * min(areas)


@pytest.mark.parametrize("mask", [np.eye(5, dtype=np.uint8), np.ones((3, 4), np.uint8)])
def test_run_lengths_are_pycocotools(mask: np.ndarray) -> None:
    rle = coco_mask.frPyObjects(toy_coco.run_lengths(mask), *mask.shape)
    assert np.array_equal(coco_mask.decode(rle), mask)


def test_a_run_cut_short_leaves_no_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy_coco.make_split(tmp_path, "val", 5, seed=0)

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(toy_coco, "draw_image", stop)
    with pytest.raises(KeyboardInterrupt):
        toy_coco.make_split(tmp_path, "val", 6, seed=0)
    assert not (tmp_path / "val.json").exists()
    monkeypatch.undo()
    assert toy_coco.make_split(tmp_path, "val", 6, seed=0)
    assert len(json.loads((tmp_path / "val.json").read_text())["images"]) == 6


@pytest.mark.parametrize(
    ("split", "count", "message"),
    [("test", 5, "split must be one of train, val, got 'test'"), ("val", 3, "count must be more")],
)
def test_bad_input(tmp_path: Path, split: str, count: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        toy_coco.make_split(tmp_path, split, count, seed=0)
