"""What a detector costs, counted from shapes, against fvcore's trace and against real tensors."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("detectron2", reason="install detectron2 to run: make setup")
from detectron2.config import LazyConfig, instantiate
from fvcore.nn import FlopCountAnalysis

from mvitv2_core.checkpoint.hub import OFFICIAL
from mvitv2_core.cost import trunk_cost
from mvitv2_d2 import MViT
from projects.detection.check_config import (
    fit,
    load,
    official_checkpoint,
    report,
    spread,
)
from projects.detection.cost import (
    backbone_flops,
    detector_flops,
    padded,
    training_bytes,
)
from tests.d2.parity import SMALL, check
from tests.forms import forced
from tests.golden_data import official_state_dicts

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "projects/detection/configs"
MASK_T = str(CONFIGS / "mask_rcnn_mvitv2_t_3x.py")
MASK_T_YAML = str(ROOT / "configs/COCO/mask_rcnn_mvitv2_t_3x.yaml")
SQUARES = str(CONFIGS / "vitdet/COCO/cascade_mask_rcnn_mvitv2_b_in21k_100ep.py")
IMAGES = [name for name, row in OFFICIAL.items() if row.format == "image"]
VARIANTS = {
    "T": {"depth": 10, "last_block_indexes": (0, 2, 7, 9)},
    "S": {"depth": 16, "last_block_indexes": (0, 2, 13, 15)},
    "B": {"depth": 24, "last_block_indexes": (1, 4, 20, 23)},
}


def traced(model: nn.Module, size: tuple[int, int]) -> int:
    with torch.no_grad():
        count = FlopCountAnalysis(model.eval(), torch.zeros(1, 3, *size))
        return count.unsupported_ops_warnings(False).total()


@pytest.mark.parametrize("variant", VARIANTS)
def test_backbone_flops_are_fvcores(variant: str) -> None:
    model = MViT(**VARIANTS[variant])
    assert backbone_flops(model, (96, 160)).total() == traced(model, (96, 160))


@pytest.mark.parametrize(
    "options",
    [
        {"adaptive_window_size": 0},
        {"adaptive_window_size": 0, "adaptive_kv_stride": 8},
        {"use_rel_pos": False, "adaptive_window_size": 16},
        {"use_abs_pos": True, "mlp_ratio": 2.0},
        {"dim_mul_in_att": False, "adaptive_window_size": 16},
        {"out_features": ("scale3", "scale4")},
    ],
    ids=lambda options: ",".join(options),
)
def test_backbone_flops_of_options(options: dict) -> None:
    """Odd sizes, so that pooled grids round up and windows are filled."""
    model = MViT(**{**SMALL, **options})
    assert backbone_flops(model, (97, 131)).total() == traced(model, (97, 131))


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_of_the_backbone(variant: str) -> None:
    """The official class has 23,405,664 (T), 34,102,560 (S) and 50,705,088 (B)."""
    with torch.device("meta"):
        model = MViT(**VARIANTS[variant])
    norms = sum(p.numel() for n, p in model.named_parameters() if n.startswith("scale"))
    counted = sum(row.parameters for row in trunk_cost(model.config)) + norms
    official = {"T": 23_405_664, "S": 34_102_560, "B": 50_705_088}[variant]
    assert counted == official == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    "options",
    [{"adaptive_kv_stride": 4}, {"adaptive_kv_stride": 8}, {"use_rel_pos": False}],
    ids=lambda options: ",".join(options),
)
def test_no_windows_is_what_detectron2_computes(options: dict) -> None:
    """``adaptive_window_size=0``, pooling only: every block attends globally."""
    check((97, 131), adaptive_window_size=0, **{**SMALL, **options})


def test_no_windows_builds_no_windows() -> None:
    model = MViT(**SMALL, adaptive_window_size=0)
    assert {spec.window_size for spec in model.config.blocks} == {0}


def test_training_bytes_are_those_of_real_tensors() -> None:
    """Of backbone and FPN, on the path that accelerators take."""
    with torch.device("meta"):
        model = instantiate(LazyConfig.load(MASK_T).model)
    estimated = training_bytes(model, (128, 160))
    real = instantiate(LazyConfig.load(MASK_T).model.backbone).train()
    parameters = {p.untyped_storage().data_ptr() for p in real.parameters()}
    held = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            held[storage.data_ptr()] = storage
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        forced(attention="folded"),
    ):
        real(torch.zeros(1, 3, 128, 160))
    kept = sum(storage.nbytes() for storage in held.values())
    assert abs((estimated["backbone"] + estimated["fpn"]) / kept - 1) < 0.01


def test_checkpointing_keeps_less() -> None:
    kept = []
    for option in ("False", "True"):
        model, _, _ = load(MASK_T, [f"model.backbone.bottom_up.use_act_checkpoint={option}"])
        kept.append(training_bytes(model, (256, 256))["backbone"])
    assert kept[1] < 0.3 * kept[0]


@pytest.mark.parametrize("name", IMAGES)
def test_official_checkpoints_are_as_published(name: str) -> None:
    """Names and shapes of the models behind the file names, from the official repository."""
    file = OFFICIAL[name].file
    variant, data = re.fullmatch(r"MViTv2_(.)_(in\d+k)\.pyth", file).groups()
    golden = {
        "in1k": f"mvit/image_{variant}_in1k",
        "in21k": f"mvit/image_{variant}_cls_in21k_19168",
    }
    state = official_state_dicts()[golden[data]]["state"]
    for path in (f"detectron2://ImageNetPretrained/mvitv2/{file}", f"mvitv2://{name}"):
        built = official_checkpoint(path)
        assert {n: list(t.shape) for n, t in built.state_dict().items()} == state


def test_fit_tells_what_differs() -> None:
    checkpoint = official_checkpoint("MViTv2_T_in1k.pyth")
    assert official_checkpoint("my_own.pyth") is None
    assert official_checkpoint("mvitv2://mask_rcnn_mvitv2_t_3x") is None
    with torch.device("meta"):
        same, other = MViT(**VARIANTS["T"]), MViT(**VARIANTS["T"], use_rel_pos=False, num_heads=2)
    result = fit(same, checkpoint)
    assert result.complete and not result.other_shape
    assert {name.split("_")[0] for name in result.new} == {"scale2", "scale3", "scale4", "scale5"}
    assert set(result.unused) == {
        "norm.weight",
        "norm.bias",
        "head.projection.weight",
        "head.projection.bias",
    }
    worse = fit(other, checkpoint)
    assert not worse.complete
    assert "blocks.0.attn.pool_q.weight" in worse.other_shape
    assert "blocks.0.attn.rel_pos_h" in worse.unused


@pytest.mark.parametrize("path", [MASK_T, MASK_T_YAML])
def test_report(path: str) -> None:
    text, fits = report(path, (800, 1280))
    assert fits and "padded to 800 x 1280" in text
    line = next(line for line in text.splitlines() if line.startswith("all"))
    assert line.split()[1:3] == ["43.68", "278.23"]
    stages = [line.split("  ") for line in text.splitlines() if line.startswith("scale")]
    assert len(stages) == 4
    readme = (ROOT / "projects/detection/README.md").read_text()
    shown = [line for line in text.splitlines()[1:] if not line.startswith(("GFLOPs:", "Initial"))]
    for line in shown if path == MASK_T else []:
        assert line in readme
    assert "fits" in text and "load        238 tensors" in text


def test_report_of_squares_and_of_what_does_not_fit() -> None:
    text, fits = report(SQUARES)
    assert fits and "padded to 1024 x 1024" in text
    options = ["model.backbone.bottom_up.dim_mul_in_att=True"]
    text, fits = report(str(CONFIGS / "mask_rcnn_mvitv2_l_3x.py"), (64, 64), options)
    assert not fits and "DOES NOT FIT" in text and "blocks.1.mlp.fc2.weight" in text
    options = ["MODEL.WEIGHTS", "mvitv2://mvitv2_small_in1k"]
    text, fits = report(MASK_T_YAML, (64, 64), options)
    assert not fits and f"{options[1]}: DOES NOT FIT" in text


def test_report_refuses_what_it_cannot_check() -> None:
    with pytest.raises(ValueError, match="must end with"):
        report("recipe.json")
    with pytest.raises(ValueError, match="square_pad=1024"):
        report(SQUARES, (800, 1333))
    with pytest.raises(ValueError, match=r"NAME must be one of .*got 'mvitv2://mvitv2_tiny'"):
        report(MASK_T_YAML, opts=["MODEL.WEIGHTS", "mvitv2://mvitv2_tiny"])
    features = "('res2', 'res3', 'res4', 'res5')"
    resnet = ["MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"]
    for key in ("MODEL.RESNETS.OUT_FEATURES", "MODEL.FPN.IN_FEATURES"):
        resnet += [key, features]
    with pytest.raises(ValueError, match=r"mvitv2_d2\.MViT"):
        report(MASK_T_YAML, opts=resnet)


def test_spread() -> None:
    assert spread([56, 28, 28, 0]) == "56, 28 x2, 0"


def test_the_command_needs_no_installation() -> None:
    """As in the README, from the root, with its exit status."""
    command = [sys.executable, "projects/detection/check_config.py", MASK_T, "--size", "64", "64"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0 and "mvitv2_T".lower() in run.stdout.lower(), run.stderr
    run = subprocess.run(
        [*command, "model.backbone.bottom_up.num_heads=2"], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 1 and "DOES NOT FIT" in run.stdout, run.stderr


def test_padding() -> None:
    model, _, _ = load(MASK_T)
    assert padded(model, (800, 1333)) == (800, 1344)
    assert detector_flops(model, (800, 1333)) == detector_flops(model, (800, 1344))
