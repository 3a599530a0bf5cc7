"""``mvitv2 predict`` with a panoptic model: detectron2's own answer, printed and drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("detectron2", reason="detectors need detectron2: make setup")
pytest.importorskip("cv2", reason="detectron2's visualizer needs opencv-python-headless")

from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from PIL import Image
from pycocotools.mask import decode

from mvitv2_d2.env import setup_environment
from tests.media_files import picture
from tests.tools.conftest import Predict

ROOT = Path(__file__).parents[2]
DATA = "coco_2017_val_panoptic_separated"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy recipe's backbone under the panoptic recipe's heads, with random weights."""
    folder = tmp_path_factory.mktemp("panoptic")
    setup_environment()
    cfg = get_cfg()
    cfg.merge_from_file(str(ROOT / "configs/COCO/toy_mask_rcnn_mvitv2.yaml"))
    cfg.MODEL.META_ARCHITECTURE = "PanopticFPN"
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 32
    cfg.MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT = 8
    cfg.MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH = 0.0
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.TEST.DETECTIONS_PER_IMAGE = 4
    cfg.DATASETS.TEST = (DATA,)
    torch.manual_seed(0)
    (folder / "config.yaml").write_text(cfg.dump())
    model = build_model(cfg)
    for name, parameter in model.named_parameters():
        if "predictor" in name:  # initial heads hardly tell classes apart
            parameter.data += torch.randn(parameter.shape) * (0.02 if "bbox" in name else 0.3)
    torch.save({"model": model.state_dict()}, folder / "model_final.pth")
    return folder


@pytest.mark.parametrize("labels", ["known", "unknown"])
def test_panoptic(labels: str, predict: Predict, run: Path, tmp_path: Path) -> None:
    cfg = get_cfg()
    cfg.merge_from_file(str(run / "config.yaml"))
    cfg.MODEL.WEIGHTS = str(run / "model_final.pth")
    Image.fromarray(picture(120, 100)).save(tmp_path / "a.png")
    bgr = np.array(Image.open(tmp_path / "a.png"))[:, :, ::-1]
    panoptic, segments = DefaultPredictor(cfg)(bgr)["panoptic_seg"]
    stuff = {s["category_id"]: s for s in segments if not s["isthing"]}
    assert stuff and any(s["isthing"] for s in segments)
    names = MetadataCatalog.get(DATA).stuff_classes
    model = run
    if labels == "unknown":  # a data set of one's own
        model = tmp_path / "run"
        model.mkdir()
        cfg.DATASETS.TEST = ("my_own_val",)
        (model / "config.yaml").write_text(cfg.dump())
        (model / "model_final.pth").symlink_to(run / "model_final.pth")
    out = tmp_path / "out"
    result = predict(model, tmp_path / "a.png", "--json", "--score", 0, "--out", out)
    assert result.code == 0, result.err
    (row,) = result.rows
    assert row["objects"] and len(row["stuff"]) == len(stuff)
    assert [r["share"] for r in row["stuff"]] == sorted(r["share"] for r in row["stuff"])[::-1]
    for region in row["stuff"]:
        expected = (panoptic == stuff[region["index"]]["id"]).numpy()
        assert np.array_equal(decode(region["mask"]).astype(bool), expected)
        assert region["share"] == pytest.approx(expected.mean(), abs=1e-6)
        assert region["label"] == (names[region["index"]] if labels == "known" else None)
    drawn = np.array(Image.open(out / "a.jpg").resize((120, 100))).astype(int)
    largest = decode(row["stuff"][0]["mask"]).astype(bool)
    assert np.abs(drawn - picture(120, 100))[largest].mean() > 10  # stuff is painted over
    text = predict(model, tmp_path / "a.png", "--score", 0).out
    first = row["stuff"][0]
    shown = first["label"] or f"class {first['index']}"
    assert f"{100 * first['share']:7.2f} %  of the picture: {shown}" in text
