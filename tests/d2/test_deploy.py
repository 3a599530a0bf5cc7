"""TorchScript programs: equal to eager, and loaded where this package is not importable."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("detectron2", reason="install detectron2 to run: make setup")
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.export import TracingAdapter
from detectron2.modeling import GeneralizedRCNN, build_model

from mvitv2_d2 import MViT, add_mvitv2_config
from tests.compare import error, randomize
from tests.d2.parity import SMALL
from tests.d2.running import ROOT

YAML = ROOT / "configs/COCO/toy_mask_rcnn_mvitv2.yaml"
EXPORT = Path(os.environ.get("DETECTRON2_ROOT", "")) / "tools/deploy/export_model.py"
ALONE = """
import sys
for name in ("mvitv2_core", "mvitv2_d2", "mvitv2_slowfast", "detectron2"):
    sys.modules[name] = None  # importing it is an error from here on
import torch, torchvision  # torchvision for the operations that it registers: NMS, RoIAlign
program, image, output = sys.argv[1:]
with torch.no_grad():
    torch.save(torch.jit.load(program)(torch.load(image, weights_only=True)), output)
"""


def run_alone(program: Path, image: Tensor, folder: Path) -> dict[str, Tensor] | list[Tensor]:
    """Outputs of a saved program in a process that has torch and torchvision alone."""
    torch.save(image, folder / "image.pt")
    files = [program, folder / "image.pt", folder / "output.pt"]
    process = subprocess.run(
        [sys.executable, "-c", ALONE, *map(str, files)],
        cwd=folder,
        env={"PATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr[-4000:]
    return torch.load(files[-1], weights_only=True)


def test_a_traced_backbone_needs_nothing_of_ours(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = randomize(MViT(**SMALL, adaptive_window_size=16).eval())
    first, second = torch.randn(2, 1, 3, 97, 131)
    with torch.no_grad():  # what a dict holds is fixed by the model, not by its input
        program = torch.jit.trace(model, first, strict=False, check_trace=True)
        expected = model(second)
    torch.jit.save(program, tmp_path / "model.ts")
    got = run_alone(tmp_path / "model.ts", second, tmp_path)
    assert list(got) == list(expected)
    for name, feature in expected.items():
        assert error(got[name], feature) < 1e-5, name


@pytest.mark.skipif(
    not EXPORT.exists(),
    reason="its export tool is in no wheel: set DETECTRON2_ROOT to a checkout of detectron2",
)
def test_detectron2s_export_tool(run: Callable[..., str], tmp_path: Path) -> None:
    """A whole Mask R-CNN by ``export_model.py --export-method tracing --format torchscript``."""
    import cv2

    cfg = get_cfg()
    add_mvitv2_config(cfg)
    cfg.merge_from_file(str(YAML))
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    assert isinstance(model, GeneralizedRCNN)
    randomize(model.backbone.bottom_up)
    torch.save({"model": model.state_dict()}, tmp_path / "w.pth")
    DetectionCheckpointer(model).load(str(tmp_path / "w.pth"))

    # 128 x 160: what the config's resizing leaves as it is.
    first, second = torch.randint(256, (2, 128, 160, 3), dtype=torch.uint8)
    assert cv2.imwrite(str(tmp_path / "sample.png"), first.numpy())
    run(
        *(EXPORT, "--config-file", YAML, "--sample-image", tmp_path / "sample.png"),
        *("--export-method", "tracing", "--format", "torchscript", "--output", tmp_path / "out"),
        *("MODEL.WEIGHTS", tmp_path / "w.pth", "MODEL.DEVICE", "cpu"),
        *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"),
        DETECTRON2_ENV_MODULE="projects.detection.toy_env",
    )

    def inference(model: GeneralizedRCNN, inputs: list[dict]) -> list[dict]:
        return [{"instances": model.inference(inputs, do_postprocess=False)[0]}]

    image = second.permute(2, 0, 1).contiguous()
    with torch.no_grad():
        expected = TracingAdapter(model, [{"image": image}], inference)(image)
    got = run_alone(tmp_path / "out/model.ts", image, tmp_path)
    assert len(got) == len(expected) >= 4  # boxes, classes, masks, scores
    assert len(expected[0]) == 100
    for ours, reference in zip(got, expected, strict=True):
        if reference.is_floating_point():
            assert error(ours, reference) < 1e-4
        else:
            assert torch.equal(ours, reference)
