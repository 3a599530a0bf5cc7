"""Validation on a part of a data set: its registration, and when a trainer takes it."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

pytest.importorskip("detectron2", reason="install detectron2 to run: make setup")
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluators
from detectron2.utils.events import EventStorage

from mvitv2_d2.sample import sample
from projects.detection.train_net import Trainer
from tests.d2.yaml_cfg import small


@pytest.fixture
def images() -> list[dict[str, Any]]:
    found = [{"file_name": f"{i}.png", "image_id": i, "height": 8, "width": 8} for i in range(10)]
    return [{**image, "annotations": []} for image in found]


def test_sample(images: list[dict[str, Any]]) -> None:
    name = "mvitv2_test_sample"
    DatasetCatalog.register(name, lambda: images)
    MetadataCatalog.get(name).set(evaluator_type="coco", json_file="x.json", thing_classes=["a"])
    try:
        part = sample(name, 4)
        assert part == sample(name, 4) == f"{name}_sample_4"
        assert [image["image_id"] for image in DatasetCatalog.get(part)] == [0, 2, 5, 7]
        known = MetadataCatalog.get(part)
        assert known.thing_classes == ["a"] and not hasattr(known, "json_file")
        assert DatasetCatalog.get(sample(name, 99)) == images
        with pytest.raises(ValueError, match="count must be a positive whole number, got 0"):
            sample(name, 0)
    finally:
        for registered in (name, f"{name}_sample_4", f"{name}_sample_99"):
            DatasetCatalog.remove(registered)
            MetadataCatalog.remove(registered)


def test_early_evaluations_take_the_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the last one, or one outside of training, everything."""
    asked: list[str] = []
    monkeypatch.setattr(
        Trainer, "build_test_loader", classmethod(lambda cls, cfg, name: asked.append(name) or [])
    )
    nothing = classmethod(lambda cls, cfg, name: DatasetEvaluators([]))
    monkeypatch.setattr(Trainer, "build_evaluator", nothing)
    cfg = small(VAL_SAMPLE=4)
    cfg.DATASETS.TEST, cfg.SOLVER.MAX_ITER = ("toy_shapes_val",), 10
    test = partial(Trainer.test, cfg, torch.nn.Identity())
    test()
    with EventStorage(3):
        test()
    with EventStorage(9):
        test()
    assert asked == ["toy_shapes_val", "toy_shapes_val_sample_4", "toy_shapes_val"]
    assert cfg.DATASETS.TEST == ("toy_shapes_val",)
