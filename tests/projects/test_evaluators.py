"""projects/detection/train_net.py measures each data set by the kind in its metadata."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

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
from detectron2.structures import Boxes, Instances

from projects.detection.train_net import Trainer

NAME = "evaluated_by_kind"


@pytest.fixture
def register(tmp_path: Path) -> Iterator:
    """``register(kind)``: an empty data set of this ``evaluator_type``, gone after the test."""
    file = tmp_path / "annotations.json"
    file.write_text(json.dumps({"images": [], "annotations": [], "categories": []}))

    def add(kind: str | None, **more: object) -> None:
        DatasetCatalog.register(NAME, lambda: [])
        facts = more if kind is None else {"evaluator_type": kind, **more}
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


@pytest.mark.parametrize(("height", "quality"), [(2, 100.0), (0, 0.0)])
def test_panoptic_quality(register, tmp_path: Path, height: int, quality: float) -> None:
    """By the package ``panopticapi``: a thing above stuff, found as it is and missed."""
    reason = "install panopticapi to run: pip install -e '.[panopticapi]'"
    pytest.importorskip("panopticapi", reason=reason)
    from PIL import Image

    def picture(rows: int) -> torch.Tensor:
        """(4, 4): segment 1, a thing, ``rows`` high, above segment 2, stuff."""
        return torch.where(torch.arange(4) < rows, 1, 2)[:, None].expand(4, 4).int()

    kinds = [{"id": i, "name": "", "supercategory": "", "isthing": i % 2} for i in (1, 2)]
    box = {"iscrowd": 0, "area": 8, "bbox": [0, 0, 4, 2]}
    segments = [{"id": i, "category_id": i, **box} for i in (1, 2)]
    image = {"id": 7, "file_name": "a.jpg", "height": 4, "width": 4}
    answer = {"image_id": 7, "file_name": "a.png", "segments_info": segments}
    truth = {"images": [image], "annotations": [answer], "categories": kinds}
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    red = torch.nn.functional.pad(picture(2)[..., None], (0, 2))  # (4, 4) -> (4, 4, 3)
    Image.fromarray(red.byte().numpy()).save(tmp_path / "a.png")
    files = {"panoptic_json": str(tmp_path / "truth.json"), "panoptic_root": str(tmp_path)}
    register("coco_panoptic_seg", **files)
    evaluator = COCOPanopticEvaluator(NAME, str(tmp_path))
    evaluator.reset()
    found = [{"id": i, "category_id": i} for i in picture(height).unique().tolist()]
    inputs = [{"file_name": "a.jpg", "image_id": 7}]
    evaluator.process(inputs, [{"panoptic_seg": (picture(height), found)}])
    assert evaluator.evaluate()["panoptic_seg"]["PQ"] == quality


def test_semantic(register, tmp_path: Path) -> None:
    register("sem_seg")
    assert type(Trainer.build_evaluator(get_cfg(), NAME, str(tmp_path))) is SemSegEvaluator


def test_lvis(register, tmp_path: Path) -> None:
    """The package evaluates too: PyPI's does not with today's NumPy."""
    reason = "install lvis to run: projects/detection/README.md"
    pytest.importorskip("lvis", reason=reason)
    register("lvis", thing_classes=["owl"])
    image = {"id": 1, "height": 9, "width": 9, "neg_category_ids": []}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5], "area": 25}
    truth = {
        "images": [{**image, "not_exhaustive_category_ids": []}],
        "annotations": [{**box, "segmentation": [[1, 1, 6, 1, 6, 6, 1, 6]]}],
        "categories": [{"id": 1, "name": "owl", "frequency": "f"}],
    }
    (tmp_path / "annotations.json").write_text(json.dumps(truth))
    MetadataCatalog.get(NAME).thing_dataset_id_to_contiguous_id[1] = 0
    evaluator = Trainer.build_evaluator(get_cfg(), NAME, str(tmp_path))
    assert type(evaluator) is LVISEvaluator
    evaluator.reset()
    found = Instances((9, 9), scores=torch.ones(1), pred_classes=torch.zeros(1).long())
    found.pred_boxes = Boxes(torch.tensor([[1.0, 1, 6, 6]]))
    evaluator.process([{"image_id": 1}], [{"instances": found}])
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100)


@pytest.mark.parametrize("kind", [None, "coco_lvis"])
def test_unknown(register, tmp_path: Path, kind: str | None) -> None:
    register(kind)
    with pytest.raises(ValueError, match=rf"evaluator_type of {NAME} must be one of coco, lvis"):
        Trainer.build_evaluator(get_cfg(), NAME, str(tmp_path))
