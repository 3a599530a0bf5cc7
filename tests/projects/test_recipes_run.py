"""Small versions of the recipes, run by detectron2's own trainers as a user runs them."""

import ast
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytest.importorskip("detectron2", reason="install detectron2 to run: make setup")
pytest.importorskip("shapely", reason="install shapely to run (crops of polygons): make setup")
from detectron2.config import LazyConfig

from projects.detection.check_config import load
from projects.detection.cost import backbone_flops, detector_flops
from projects.detection.find_tools import find_tool
from tests.d2.running import ROOT

Run = Callable[..., str]
SMALL = ROOT / "projects/detection/configs/small.py"
YAML = ROOT / "configs/COCO"
HOOK = {"DETECTRON2_ENV_MODULE": "projects.detection.toy_heads"}
slow = pytest.mark.slow
LAZY_FAMILIES = [
    "mask_rcnn_mvitv2_t_3x",
    *(
        pytest.param(name, marks=slow)
        for name in (
            "mask_rcnn_mvitv2_l_3x",
            "cascade_mask_rcnn_mvitv2_t_3x",
            "cascade_mask_rcnn_mvitv2_l_in21k_lsj_50ep",
            "cascade_mask_rcnn_mvitv2_h_in21k_lsj_3x",
            "vitdet/COCO/cascade_mask_rcnn_mvitv2_b_in21k_100ep",
            "vitdet/LVIS/cascade_mask_rcnn_mvitv2_b_in21k_100ep",
            "ablations/mask_rcnn_mvitv2_s_pooling_kv4",
            "ablations/mask_rcnn_mvitv2_s_pooling_kv8",
            "ablations/mask_rcnn_mvitv2_s_hwin_kv4",
            "ablations/mask_rcnn_mvitv2_s_hwin_kv8",
            "ablations/mask_rcnn_mvitv2_s_no_pos",
            "ablations/mask_rcnn_mvitv2_s_abs_pos",
            "ablations/mask_rcnn_mvitv2_s_no_residual_pooling",
            "ablations/mask_rcnn_mvitv2_s_single_scale",
        )
    ),
]
YAML_FAMILIES = [
    "retinanet_mvitv2_t_3x",
    *(
        pytest.param(name, marks=slow)
        for name in (
            "mask_rcnn_mvitv2_t_3x",
            "cascade_mask_rcnn_mvitv2_t_3x",
            "panoptic_fpn_mvitv2_t_3x",
            "keypoint_rcnn_mvitv2_t_3x",
        )
    ),
]


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def check_trained(output: str, folder: Path) -> None:
    """20 steps with finite losses, a checkpoint, and an evaluation that went to its end."""
    rows = [row for row in metrics(folder) if "total_loss" in row]
    assert rows[-1]["iteration"] == 19 and all(math.isfinite(row["total_loss"]) for row in rows)
    assert (folder / "model_final.pth").exists()
    assert "copypaste: AP,AP50,AP75,APs,APm,APl" in output


@pytest.mark.parametrize("recipe", LAZY_FAMILIES)
def test_lazy_family(recipe: str, run: Run, tmp_path: Path) -> None:
    """Trains 20 steps and evaluates with lazyconfig_train_net.py."""
    tool = find_tool("lazyconfig_train_net.py")
    options = [f"train.output_dir={tmp_path}/out"]
    output = run(tool, "--config-file", SMALL, *options, RECIPE=f"{recipe}.py")
    check_trained(output, tmp_path / "out")


def opts(recipe: str) -> list[str]:
    """What ``$(cat small.opts)`` gives in a shell."""
    files = ["small.opts"]
    for head in ("keypoint", "panoptic"):
        if head in recipe:
            files.append(f"small_{head}.opts")
    return [word for name in files for word in (YAML / name).read_text().split()]


@pytest.mark.parametrize("recipe", YAML_FAMILIES)
def test_yaml_family(recipe: str, run: Run, tmp_path: Path) -> None:
    """Trains 20 steps and evaluates with train_net.py under the environment hook."""
    values = [*opts(recipe), "OUTPUT_DIR", f"{tmp_path}/out"]
    # RetinaNet has no box above 0.05 after 20 steps; evaluating none says nothing.
    values += [
        "MODEL.RETINANET.SCORE_THRESH_TEST",
        "0.0",
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST",
        "0.0",
    ]
    output = run(
        find_tool("train_net.py"), "--config-file", YAML / f"{recipe}.yaml", *values, **HOOK
    )
    check_trained(output, tmp_path / "out")
    assert "No predictions from the model" not in output
    if "keypoint" in recipe:
        assert "Task: keypoints" in output


def test_small_opts_survive_a_shell(run: Run, tmp_path: Path) -> None:
    """Unquoted words are matched against file names: none may be a pattern."""
    words = [word for path in YAML.glob("small*.opts") for word in path.read_text().split()]
    assert len(words) > 60 and not any(set(word) & set("[]*?$`\\'") for word in words)


def test_small_keeps_the_recipe() -> None:
    """Shrinking changes sizes, not what is trained: heads, norms, decay and pipeline stay."""
    path = ROOT / "projects/detection/configs"
    recipe = "vitdet/LVIS/cascade_mask_rcnn_mvitv2_b_in21k_100ep.py"
    whole = LazyConfig.load(str(path / recipe))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RECIPE", recipe)
        small = LazyConfig.load(str(SMALL))
        patch.delenv("RECIPE")
        with pytest.raises(ValueError, match="RECIPE must name"):
            LazyConfig.load(str(SMALL))
    assert small.optimizer == whole.optimizer
    assert small.lr_multiplier.scheduler == whole.lr_multiplier.scheduler
    kinds = [
        [augmentation._target_ for augmentation in cfg.dataloader.train.mapper.augmentations]
        for cfg in (small, whole)
    ]
    assert kinds[0] == kinds[1]
    heads, before = small.model.roi_heads, whole.model.roi_heads
    assert len(heads.box_heads) == len(before.box_heads) == 3
    assert len(heads.box_heads[0].conv_dims) == len(before.box_heads[0].conv_dims)
    assert heads.box_heads[0].conv_norm == before.box_heads[0].conv_norm == "LN"
    assert small.model.backbone.norm == "LN" and small.model.backbone.square_pad == 128


@slow
def test_two_processes_are_one_with_the_doubled_batch(run: Run, tmp_path: Path) -> None:
    """The same curve and weights within rounding: one image each on two, or two on one.

    The trainer writes running medians of the losses, so the weights after ten steps are compared
    too; Adam's eps is raised, or it would blow up the rounding of gradients that are nearly zero.
    All that is random or that is averaged otherwise is off. Drop path, subsampling of anchors and
    proposals, and flips are random. Images of different sizes would be padded in one batch only.
    Box losses are means over proposals, of which every image has 32 here; the mask loss is a mean
    over positive ones, whose number differs, so there is no mask head.
    """
    curves, weights = [], []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        run(
            *(find_tool("lazyconfig_train_net.py"), "--config-file", SMALL),
            *("--num-gpus", str(processes), "--dist-url", "auto"),
            *(f"train.output_dir={folder}", "train.max_iter=10", "train.eval_period=0"),
            *("train.log_period=1", "+train.seed=1", "optimizer.lr=0.001", "+optimizer.eps=0.01"),
            "model.backbone.bottom_up.drop_path_rate=0.0",
            "model.proposal_generator.batch_size_per_image=100000",
            "model.proposal_generator.positive_fraction=1.0",
            "model.proposal_generator.nms_thresh=1.0",
            "model.proposal_generator.post_nms_topk=[32,32]",
            "model.roi_heads.batch_size_per_image=100000",
            "model.roi_heads.positive_fraction=1.0",
            "+model.roi_heads.proposal_append_gt=false",
            "model.roi_heads.mask_in_features=null",
            "model.roi_heads.mask_head=null",
            "model.roi_heads.mask_pooler=null",
            "+dataloader.train.aspect_ratio_grouping=false",
            "dataloader.train.mapper.augmentations="
            "[{_target_:detectron2.data.transforms.Resize,shape:[96,96]}]",
            RECIPE="mask_rcnn_mvitv2_t_3x.py",
            OMP_NUM_THREADS="1",
        )
        curves.append(
            [
                {key: row[key] for key in row if "loss" in key}
                for row in metrics(folder)
                if "total_loss" in row
            ]
        )
        saved = torch.load(folder / "model_final.pth", weights_only=True)
        weights.append(saved["model"])
    one, two = curves
    assert len(one) == len(two) == 10
    assert one[0]["total_loss"] > 1.02 * one[-1]["total_loss"]  # it moves
    for step, (a, b) in enumerate(zip(one, two, strict=True)):
        assert set(a) == set(b) and len(a) == 5
        for key in a:
            assert abs(a[key] - b[key]) < 1e-5 * max(abs(a[key]), 1e-2), (step, key, a, b)
    for name, weight in weights[0].items():
        assert (weight - weights[1][name]).abs().max() < 1e-6, name


SIZE = 256
ANALYZED = [pytest.param(v, marks=slow) if v != "t" else v for v in "tsb"]


@pytest.mark.parametrize("variant", ANALYZED)
def test_analyze_model(variant: str, run: Run) -> None:
    """detectron2's tools/analyze_model.py counts what we count by hand, with its own rounding."""
    config = ROOT / f"projects/detection/configs/mask_rcnn_mvitv2_{variant}_3x.py"
    output = run(
        *(find_tool("analyze_model.py"), "--tasks", "flop", "parameter", "-n", "1"),
        *("--config-file", config, "dataloader.test.dataset.names=toy_shapes_val"),
        *("dataloader.test.num_workers=0", "train.device=cpu", "train.init_checkpoint=''"),
        # Both edges, so that every image is a square that needs no padding.
        "dataloader.test.mapper.augmentations="
        f"[{{_target_:detectron2.data.transforms.Resize,shape:[{SIZE},{SIZE}]}}]",
        **HOOK,
    )
    model, _, _ = load(str(config))
    parts, terms = (
        detector_flops(model, (SIZE, SIZE)),
        backbone_flops(model.backbone.bottom_up, (SIZE, SIZE)),
    )
    match = re.search(r"Average GFlops for each type of operators:\n(.*)", output)
    assert match is not None, output[-3000:]
    counted = {name: round(gflops * 1e9) for name, gflops in ast.literal_eval(match.group(1))}
    # The box head's linears depend on the proposals, and untrained heads detect nothing to mask.
    products = sum(counted.get(name, 0) for name in ("matmul", "bmm", "einsum"))
    assert products == terms["attention"] + terms["positions"]
    assert counted["layer_norm"] == terms["norms"]
    assert counted["conv"] == terms["convolutions"] + terms["pools"] + parts["fpn"] + parts["rpn"]
    assert counted["linear"] > terms["linears"]
    rows = re.findall(r"\| backbone\.bottom_up +\| ([\d.]+)M", output)
    expected = sum(p.numel() for p in model.backbone.bottom_up.parameters()) / 1e6
    # Three decimals beside the FLOPs, then one in the table of parameters.
    assert [float(row) for row in rows] == [round(expected, 3), round(expected, 1)]
