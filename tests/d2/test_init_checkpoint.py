"""Checkpoints through detectron2's own, unmodified ``DetectionCheckpointer``."""

import logging
import pickle
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mvitv2_core import MViTClassifier, MViTConfig
from mvitv2_core.checkpoint import CheckpointError, convert_state_dict
from mvitv2_core.rel_pos import resample_table
from tests.compare import randomize
from tests.small import stage_blocks

pytest.importorskip("detectron2", reason="install detectron2 to run: make setup")
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.modeling import MViT as Official
from detectron2.modeling import build_model

from mvitv2_d2 import MViT, add_mvitv2_config

PREFIX = "backbone.bottom_up."
KWARGS = {
    "embed_dim": 16,
    "depth": 6,
    "num_heads": 1,
    "last_block_indexes": (0, 2, 4, 5),
    "adaptive_window_size": 16,
    "norm_layer": partial(nn.LayerNorm, eps=1e-6),
}


def detector(**options: object) -> nn.Module:
    """A Mask R-CNN from YAML keys, with a backbone of 6 blocks."""
    cfg = get_cfg()
    add_mvitv2_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.BACKBONE.NAME = "build_mvitv2_fpn_backbone"
    cfg.MODEL.MVITV2.VARIANT = ""
    cfg.MODEL.MVITV2.DEPTHS = [1, 2, 2, 1]
    cfg.MODEL.MVITV2.EMBED_DIM, cfg.MODEL.MVITV2.NUM_HEADS = 16, 1
    cfg.MODEL.MVITV2.WINDOW_SIZE = 16
    for key, value in options.items():
        cfg.MODEL.MVITV2[key] = value
    cfg.MODEL.FPN.IN_FEATURES = ["scale2", "scale3", "scale4", "scale5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 128  # the width of the classifier's last norm, see below
    cfg.MODEL.FPN.NORM = "LN"
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64], [128], [256], [512]]
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC, cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 1, 32
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 2
    cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV, cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 1, 16
    return build_model(cfg)


def image_state(in_att: bool = True, **options: object) -> dict[str, torch.Tensor]:
    """State dict of an image classifier that fits the detector's backbone."""
    blocks = stage_blocks((1, 2, 2, 1), 16, 1, (56, 56), (4, 4), dim_mul_in_att=in_att)
    config = MViTConfig(blocks, (224, 224), (7, 7), (4, 4), (3, 3), num_classes=5, **options)
    return randomize(MViTClassifier(config)).state_dict()


def load(model: nn.Module, path: Path) -> None:
    DetectionCheckpointer(model).load(str(path))


def check_backbone(model: nn.Module, image: dict[str, torch.Tensor]) -> int:
    """Every tensor of the backbone is the image's, resampled where it must be; returns how many
    were."""
    loaded, resampled = model.backbone.bottom_up.state_dict(), 0
    for name, value in loaded.items():
        if name.startswith("scale"):
            continue
        expected = image[name].view(image[name].shape)
        if "rel_pos" in name and expected.shape != value.shape:
            expected, resampled = resample_table(expected, value.shape[0]), resampled + 1
        assert torch.equal(value, expected.reshape(value.shape)), name
    return resampled


# The extras are what trainers leave beside the weights: numpy scalars are refused by torch.load's
# default since 2.6.
EXTRAS = {"epoch": np.float64(99), "best": np.float32(1), "cfg": "TRAIN: {}", "step": np.int64(7)}


def test_official_weights_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``mvitv2://NAME``, here in torch.hub's cache already; the download has its own test."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    image = image_state()
    cache = tmp_path / "hub/checkpoints"
    cache.mkdir(parents=True)
    torch.save({"model_state": image, **EXTRAS}, cache / "MViTv2_T_in1k.pyth")
    model = detector()
    DetectionCheckpointer(model).load("mvitv2://mvitv2_tiny_in1k")
    check_backbone(model, image)


@pytest.mark.parametrize("size", [224, 96, 512])
def test_official_image_file(tmp_path: Path, size: int) -> None:
    image = image_state()
    torch.save({"model_state": image, **EXTRAS}, tmp_path / "MViTv2_T_in1k.pyth")
    model = detector(IMG_SIZE=size)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    load(model, tmp_path / "MViTv2_T_in1k.pyth")
    resampled = check_backbone(model, image)
    assert resampled == (0 if size == 224 else 12)
    for name, value in model.state_dict().items():
        if not name.startswith(PREFIX) or "scale" in name:
            assert torch.equal(value, before[name]), name


def test_width_growing_in_the_mlp(tmp_path: Path) -> None:
    """The published L from ImageNet-1K."""
    image = image_state(in_att=False)
    torch.save({"model_state": image}, tmp_path / "MViTv2_L_in1k.pyth")
    model = detector(DIM_MUL_IN_ATT=False, IMG_SIZE=96)
    load(model, tmp_path / "MViTv2_L_in1k.pyth")
    assert check_backbone(model, image) == 12


def test_class_token_and_absolute_positions(tmp_path: Path) -> None:
    """An ImageNet-21K file: its class token has no place, its positions' first row has."""
    image = image_state(cls_token=True, abs_pos="joint")
    torch.save({"model_state": image}, tmp_path / "in21k.pyth")
    model = detector(USE_ABS_POS=True)
    load(model, tmp_path / "in21k.pyth")
    check_backbone(model, image)


@pytest.mark.parametrize("format", ["slowfast", "timm", "detectron2"])
@pytest.mark.parametrize("suffix", [".pyth", ".pth", ".pkl"])
def test_other_formats(tmp_path: Path, format: str, suffix: str) -> None:
    image = image_state()
    state, _ = convert_state_dict(image, format)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pkl":
        arrays = {name: value.numpy() for name, value in state.items()}
        path.write_bytes(pickle.dumps({"model": arrays, "__author__": "someone"}))
    else:
        torch.save({"model_state": state} if suffix == ".pyth" else state, path)
    model = detector(IMG_SIZE=96)
    load(model, path)
    assert check_backbone(model, image) == 12


def official_detector() -> dict[str, torch.Tensor]:
    """State dict of the same detector around detectron2's own backbone class."""
    model = detector()
    model.backbone.bottom_up = Official(**KWARGS)
    return randomize(model).state_dict()


@pytest.mark.parametrize("suffix", [".pkl", ".pth"])
def test_official_detector_loads_with_nothing_skipped(tmp_path: Path, suffix: str) -> None:
    state = official_detector()
    path = tmp_path / f"model_final_1a1c30{suffix}"
    if suffix == ".pkl":
        arrays = {name: value.numpy() for name, value in state.items()}
        path.write_bytes(pickle.dumps({"model": arrays, "__author__": "detectron2"}))
    else:
        torch.save({"model": state}, path)
    model = detector()
    checkpointer = DetectionCheckpointer(model)
    seen = []
    checkpointer._log_incompatible_keys = seen.append
    checkpointer.load(str(path))
    (incompatible,) = seen
    assert not any((*incompatible,))
    assert set(model.state_dict()) == set(state)
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_resume_is_exact(tmp_path: Path) -> None:
    model, again = randomize(detector()), detector()
    checkpointer = DetectionCheckpointer(model, str(tmp_path))
    checkpointer.save("model_0000001", iteration=1)
    extra = DetectionCheckpointer(again, str(tmp_path)).resume_or_load("", resume=True)
    assert extra["iteration"] == 1
    for name, value in again.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


class Compiled(nn.Module):
    """``torch.compile``'s wrapper as far as names go."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._orig_mod = module


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("loaded", [False, True])
def test_compiled_backbones_load_by_name(tmp_path: Path, saved: bool, loaded: bool) -> None:
    """A detector whose backbone is compiled, or was when it was saved: every tensor arrives."""
    source, model = randomize(detector()), detector()
    expected = {name: value.clone() for name, value in source.state_dict().items()}
    for wrapped, detectors in ((saved, source), (loaded, model)):
        if wrapped:
            detectors.backbone.bottom_up = Compiled(detectors.backbone.bottom_up)
    DetectionCheckpointer(source, str(tmp_path)).save("model")
    load(model, tmp_path / "model.pth")
    assert any("_orig_mod" in name for name in model.state_dict()) == loaded
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected[name.replace("_orig_mod.", "")]), name


def test_backbone_by_itself(tmp_path: Path) -> None:
    image = image_state()
    torch.save({"model_state": image}, tmp_path / "image.pyth")
    model = MViT(**KWARGS, img_size=64)
    load(model, tmp_path / "image.pyth")
    loaded = model.state_dict()
    assert torch.equal(loaded["blocks.5.mlp.fc2.weight"], image["blocks.5.mlp.fc2.weight"])
    table = resample_table(image["blocks.1.attn.rel_pos_h"], 15)
    assert torch.equal(loaded["blocks.1.attn.rel_pos_h"], table)


def test_report_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save({"model_state": image_state()}, tmp_path / "image.pyth")
    logger = logging.getLogger("fvcore.common.checkpoint")
    logger.addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.INFO, "fvcore.common.checkpoint"):
            load(detector(IMG_SIZE=96), tmp_path / "image.pyth")
    finally:
        logger.removeHandler(caplog.handler)
    assert "12 resampled" in caplog.text and "head.projection.weight" in caplog.text


def test_other_models_are_left_to_detectron2(tmp_path: Path) -> None:
    """Same method, same result: a model without this project's backbone is none of our business."""
    image = image_state()
    torch.save({"model_state": image}, tmp_path / "image.pyth")
    model = randomize(Official(**KWARGS, img_size=64), seed=3)
    before = model.state_dict()["blocks.0.attn.rel_pos_h"].clone()
    load(model, tmp_path / "image.pyth")
    assert torch.equal(model.state_dict()["blocks.0.attn.rel_pos_h"], before)  # skipped there


def test_foreign_file_is_refused(tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Trap:
        def __reduce__(self) -> tuple:
            return Path.touch, (canary,)

    for name in ("trap.pkl", "trap.pyth"):
        content = {"model": {"x": Trap()}, "__author__": "x"}
        if name.endswith("pkl"):
            (tmp_path / name).write_bytes(pickle.dumps(content))
        else:
            torch.save(content, tmp_path / name)
        with pytest.raises(CheckpointError, match="asks for"):
            load(detector(), tmp_path / name)
    assert not canary.exists()
