"""PySlowFast's own data sets read the toy sets."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if not os.environ.get("PYSLOWFAST_ROOT"):
    pytest.skip("needs PySlowFast: set PYSLOWFAST_ROOT to a checkout", allow_module_level=True)

from mvitv2_slowfast.plugin import connect
from projects.video import demo, scenes, toy_ava, toy_kinetics


def config(path: Path | None = None) -> Any:
    connect()
    from slowfast.config.defaults import get_cfg

    cfg = get_cfg()
    if path is not None:
        cfg.merge_from_file(str(path))
    return cfg


def test_kinetics(tmp_path: Path) -> None:
    toy_kinetics.make_kinetics(tmp_path, {"train": 1, "val": 1, "test": 1})
    cfg = config(demo.VIDEO_CONFIG)
    assert len(scenes.MOTIONS) == cfg.MODEL.NUM_CLASSES
    assert not cfg.DATA.RANDOM_FLIP  # a mirror turns left into right
    cfg.DATA.PATH_TO_DATA_DIR = cfg.DATA.PATH_PREFIX = str(tmp_path)
    from slowfast.datasets.kinetics import Kinetics

    views = cfg.TEST.NUM_ENSEMBLE_VIEWS * cfg.TEST.NUM_SPATIAL_CROPS
    for split, count in (("train", 1), ("val", 1), ("test", views)):
        dataset = Kinetics(cfg, split)
        assert len(dataset) == 8 * count
        labels = []
        for index in range(len(dataset)):
            (clip,), label, found, _, _ = dataset[index]
            assert found == index  # another one would mean that this one cannot be read
            assert clip.shape == (3, cfg.DATA.NUM_FRAMES, 32, 32)
            # Only "still" stands still.
            moves = float((clip[:, 0] - clip[:, -1]).abs().max())
            assert (moves > 0.5) == (label != scenes.MOTIONS.index("still"))
            labels.append(label)
        assert labels == [label for label in range(8) for _ in range(count)]


def test_imagenet(tmp_path: Path) -> None:
    toy_kinetics.make_imagenet(tmp_path, {"train": 2, "val": 1})
    cfg = config(demo.IMAGE_CONFIG)
    assert len(scenes.SHAPES) == cfg.MODEL.NUM_CLASSES
    cfg.DATA.PATH_TO_DATA_DIR = str(tmp_path)
    from slowfast.datasets.imagenet import Imagenet

    for split, count in (("train", 2), ("val", 1)):
        dataset = Imagenet(cfg, split)
        labels = []
        for index in range(len(dataset)):
            (image,), label, _, _, _ = dataset[index]
            assert image.shape == (3, 32, 32)
            labels.append(label)
        assert sorted(labels) == [label for label in range(6) for _ in range(count)]


def test_ava(tmp_path: Path) -> None:
    toy_ava.make_ava(tmp_path, {"train": 1, "val": 1})
    cfg = config()
    cfg.AVA.FRAME_DIR = str(tmp_path / "frames")
    cfg.AVA.FRAME_LIST_DIR = str(tmp_path / "frame_lists")
    cfg.AVA.ANNOTATION_DIR = str(tmp_path / "annotations")
    cfg.DATA.NUM_FRAMES, cfg.DATA.SAMPLING_RATE = 4, 7
    cfg.DATA.TRAIN_JITTER_SCALES = [64, 64]
    cfg.DATA.TRAIN_CROP_SIZE = cfg.DATA.TEST_CROP_SIZE = 64
    cfg.MODEL.NUM_CLASSES, cfg.MODEL.ARCH = len(scenes.MOTIONS), "mvit"
    from slowfast.datasets.ava_dataset import Ava

    for split, seconds in (("train", [902, 903, 904, 905]), ("val", [904]), ("test", None)):
        dataset = Ava(cfg, split)
        for index, second in enumerate(seconds or toy_ava.SECONDS):
            (clip,), labels, _, _, extra = dataset[index]
            assert clip.shape[:3] == (3, 4, 64)
            assert extra["metadata"] == [[0, second]] * 2
            actors = toy_ava.draw_scene("train" if split == "train" else "val", 0, second)
            assert np.allclose(extra["ori_boxes"], [actor.box for actor in actors], atol=6e-4)
            if split == "train":
                wanted = [scenes.MOTIONS.index(actor.motion) for actor in actors]
                assert labels.argmax(axis=1).tolist() == wanted
                assert labels.sum() == 2
        assert len(dataset) == len(seconds or toy_ava.SECONDS)
