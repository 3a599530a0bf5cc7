"""projects/detection/train_net.py measures each data set by the kind in its metadata."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("detectron2", reason="install detectron2 to run: make setup")
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import (
    COCOEvaluator,
    COCOPanopticEvaluator,
    DatasetEvaluators,
    LVISEvaluator,
    SemSegEvaluator,
)

from projects.detection.train_net import Trainer

NAME = "evaluated_by_kind"


@pytest.fixture
def register(tmp_path: Path) -> Iterator:
    """``register(kind)``: an empty data set of this ``evaluator_type``, gone after the test."""
    file = tmp_path / "annotations.json"
    file.write_text(json.dumps({"images": [], "annotations": [], "categories": []}))

    def add(kind: str | None) -> None:
        DatasetCatalog.register(NAME, lambda: [])
        facts = {} if kind is None else {"evaluator_type": kind}
        MetadataCatalog.get(NAME).set(
            json_file=str(file),
            stuff_classes=["background"],
            ignore_label=255,
            thing_dataset_id_to_contiguous_id={},
            stuff_dataset_id_to_contiguous_id={},
            **facts,
        )

    yield add
    if NAME in DatasetCatalog:
        DatasetCatalog.remove(NAME)
        MetadataCatalog.remove(NAME)


def test_instances(register, tmp_path: Path) -> None:
    register("coco")
    assert type(Trainer.build_evaluator(get_cfg(), NAME, str(tmp_path))) is COCOEvaluator


def test_panoptic(register, tmp_path: Path) -> None:
    """Semantic, instance and panoptic figures, of which COCO's evaluator gives one alone."""
    register("coco_panoptic_seg")
    made = Trainer.build_evaluator(get_cfg(), NAME, str(tmp_path))
    assert isinstance(made, DatasetEvaluators)
    kinds = [type(evaluator) for evaluator in made._evaluators]
    assert kinds == [SemSegEvaluator, COCOEvaluator, COCOPanopticEvaluator]


def test_semantic(register, tmp_path: Path) -> None:
    register("sem_seg")
    assert type(Trainer.build_evaluator(get_cfg(), NAME, str(tmp_path))) is SemSegEvaluator


def test_lvis(register, tmp_path: Path) -> None:
    pytest.importorskip("lvis", reason="install lvis to run: pip install -e '.[lvis]'")
    register("lvis")
    assert type(Trainer.build_evaluator(get_cfg(), NAME, str(tmp_path))) is LVISEvaluator


@pytest.mark.parametrize("kind", [None, "coco_lvis"])
def test_unknown(register, tmp_path: Path, kind: str | None) -> None:
    register(kind)
    with pytest.raises(ValueError, match=rf"evaluator_type of {NAME} must be one of coco, lvis"):
        Trainer.build_evaluator(get_cfg(), NAME, str(tmp_path))
