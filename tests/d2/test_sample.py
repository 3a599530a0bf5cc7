"""Validation on a part of a data set: its registration, and when a trainer takes it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("detectron2", reason="install detectron2 to run: make setup")
from detectron2 import model_zoo
from detectron2.config import LazyCall, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator, DatasetEvaluators
from detectron2.utils.events import EventStorage

from mvitv2_d2.own_data import own_coco
from mvitv2_d2.sample import sample
from mvitv2_d2.training import prepare_from_cfg
from projects.detection.train_net import Trainer
from tests.d2.running import ROOT
from tests.d2.yaml_cfg import small

NAME = "mvitv2_test_data"


def forget() -> None:
    for catalogue in (DatasetCatalog, MetadataCatalog):
        for name in [name for name in catalogue.list() if name.startswith(NAME)]:
            catalogue.remove(name)


@pytest.fixture
def json_file(tmp_path: Path) -> Iterator[Path]:
    """COCO's json of ten images with a box each; its areas are no outlines'."""
    images = [{"id": i, "file_name": f"{i}.png", "height": 8, "width": 8} for i in range(10)]
    box = {"bbox": [1, 1, 4, 4], "iscrowd": 0, "category_id": 7, "area": 9.5}
    truth = {
        "images": images,
        "annotations": [{**box, "id": i + 1, "image_id": i} for i in range(10)],
        "categories": [{"id": 7, "name": "owl"}],
    }
    path = tmp_path / "val.json"
    path.write_text(json.dumps(truth))
    forget()
    yield path
    forget()


def truth_of(evaluator: COCOEvaluator) -> dict[int, float]:
    """The area of each image's box."""
    return {box["image_id"]: box["area"] for box in evaluator._coco_api.dataset["annotations"]}


def test_sample(json_file: Path) -> None:
    register_coco_instances(NAME, {}, str(json_file), "images")
    part = sample(NAME, 4)
    assert part == sample(NAME, 4) == f"{NAME}_sample_4"
    for _ in range(2):  # a loader is made for each evaluation
        assert [image["image_id"] for image in DatasetCatalog.get(part)] == [0, 2, 5, 7]
    known = MetadataCatalog.get(part)
    assert known.thing_classes == ["owl"] and known.evaluator_type == "coco"
    assert truth_of(COCOEvaluator(part)) == {0: 9.5, 2: 9.5, 5: 9.5, 7: 9.5}
    assert DatasetCatalog.get(sample(NAME, 99)) == DatasetCatalog.get(NAME)
    with pytest.raises(ValueError, match="count must be a positive whole number, got 0"):
        sample(NAME, 0)


def test_other_truth_in_the_same_folder(json_file: Path, tmp_path: Path) -> None:
    """As a later run has it; detectron2 makes a json in its folder, and takes it again by name."""
    for area in ("9.5", "3.5"):
        json_file.write_text(json_file.read_text().replace("9.5", area))
        forget()
        register_coco_instances(NAME, {}, str(json_file), "images")
        DatasetCatalog.get(part := sample(NAME, 2))
        found = truth_of(COCOEvaluator(part, output_dir=str(tmp_path)))
        assert found == {0: float(area), 5: float(area)}


def test_truth_goes_with_its_process(run: Any, json_file: Path) -> None:
    code = (
        "from detectron2.data import DatasetCatalog, MetadataCatalog\n"
        "from detectron2.data.datasets import register_coco_instances\n"
        "from mvitv2_d2.sample import sample\n"
        f"register_coco_instances('x', {{}}, {str(json_file)!r}, 'images')\n"
        "DatasetCatalog.get(sample('x', 2)); print(MetadataCatalog.get('x_sample_2').json_file)"
    )
    written = Path(run("-c", code).splitlines()[-1])
    assert written.name.startswith("x_sample_2_") and not written.exists()


def test_what_has_no_sample(json_file: Path) -> None:
    DatasetCatalog.register(NAME, lambda: [])
    MetadataCatalog.get(NAME).set(evaluator_type="lvis", json_file=str(json_file))
    other = f"{NAME}_dicts"
    DatasetCatalog.register(other, lambda: [])
    MetadataCatalog.get(other).set(evaluator_type="coco")
    texts = {NAME: "evaluator_type of .* must be 'coco' for a sample, got 'lvis'"}
    texts[other] = "json_file of .* must be COCO's json for a sample, got None"
    cfg, model = small(VAL_SAMPLE=4), torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ValueError, match=r"TEST\.EVAL_PERIOD must be positive with .*, got 0"):
        prepare_from_cfg(cfg, model, optimizer)
    cfg.TEST.EVAL_PERIOD = 10
    for name, text in texts.items():
        cfg.DATASETS.TEST = (name,)
        with pytest.raises(ValueError, match=text):
            prepare_from_cfg(cfg, model, optimizer)


@pytest.mark.parametrize("own", [False, True])
def test_the_documents_snippet(json_file: Path, own: bool) -> None:
    """Its last line on a LazyConfig's data, of a name that is known and of ``mvitv2 data``."""
    page = (ROOT / "docs/training.md").read_text()
    (line,) = [line for line in page.splitlines() if line.startswith("dataloader.test.dataset.n")]
    dataloader = model_zoo.get_config("common/data/coco.py").dataloader
    if own:
        facts = {"names": NAME, "json_file": str(json_file), "image_root": "x", "classes": ["owl"]}
        dataloader.test.dataset = LazyCall(own_coco)(**facts, filter_empty=False)
    else:
        register_coco_instances(NAME, {}, str(json_file), "images")
        dataloader.test.dataset.names = NAME
    exec(line.replace("500", "5"), {"dataloader": dataloader, "sample": sample})
    for _ in range(2):
        dataloader.test.num_workers = 0
        loader, evaluator = instantiate(dataloader.test), instantiate(dataloader.evaluator)
        assert [image["image_id"] for image in loader.dataset._dataset] == [0, 2, 4, 6, 8]
        assert list(truth_of(evaluator)) == [0, 2, 4, 6, 8]


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
