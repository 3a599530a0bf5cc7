"""detectron2's own trainers, unmodified, and ours, as subprocesses on the toy data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytest.importorskip("detectron2", reason="install detectron2 to run: make setup")

from projects.detection.find_tools import find_tool
from tests.d2.running import ROOT

Run = Callable[..., str]
HOOK = {"DETECTRON2_ENV_MODULE": "projects.detection.toy_env"}
YAML = ROOT / "configs/COCO/toy_mask_rcnn_mvitv2.yaml"
LAZY = ROOT / "projects/detection/configs/toy_mask_rcnn_mvitv2.py"
# Threshold 0: after a few iterations there are detections to compare, whatever their scores.
LAZY_OPTIONS = [
    "train.eval_period=100",
    "train.checkpointer.period=100",
    "train.log_period=1",
    "dataloader.train.total_batch_size=2",
    "model.roi_heads.box_predictor.test_score_thresh=0.0",
]
YAML_OPTIONS = [
    *("TEST.EVAL_PERIOD", "100", "SOLVER.CHECKPOINT_PERIOD", "100", "SOLVER.IMS_PER_BATCH", "2"),
    *("SOLVER.STEPS", "()", "SOLVER.WARMUP_ITERS", "2"),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"),
]


def detections(folder: Path, inference: str = "inference") -> list[dict]:
    found = json.loads((folder / f"{inference}/coco_instances_results.json").read_text())
    assert len(found) > 20 and any("segmentation" in entry for entry in found)
    return found


def ap(folder: Path) -> dict[str, float]:
    """AP values of the last evaluation, from metrics.json; NaN where a class has no truth."""
    rows = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    last = [row for row in rows if "bbox/AP" in row][-1]
    return {key: last[key] for key in last if key.startswith(("bbox/AP", "segm/AP"))}


def printed_ap(output: str) -> list[str]:
    """The numbers that detectron2 prints for copying, of the last evaluation."""
    lines = [line.split("copypaste: ")[1] for line in output.splitlines() if "copypaste" in line]
    assert len(lines) >= 6, output[-3000:]
    return lines[-6:]


def iterations(folder: Path) -> int:
    """Optimizer steps in the final checkpoint."""
    saved = torch.load(folder / "model_final.pth", weights_only=True)
    trainer = saved["trainer"].get("_trainer", saved["trainer"])
    states = trainer["optimizer"]["state"].values()
    assert states
    for state in states:  # SGD counts no steps
        assert "momentum_buffer" in state or int(state["step"]) == saved["iteration"] + 1
    return saved["iteration"] + 1


def same_again(first: str, run_folder: Path, again: str, folder: Path) -> None:
    """Evaluating a checkpoint gives what the end of training gave, to the last digit."""
    assert printed_ap(first) == printed_ap(again)
    assert detections(run_folder) == detections(folder)


def test_lazy_trainer(run: Run, tmp_path: Path) -> None:
    """Training, evaluation, resuming and --eval-only of lazyconfig_train_net.py."""
    tool, folder = find_tool("lazyconfig_train_net.py"), tmp_path / "lazy"
    command = [tool, "--config-file", LAZY]
    options = [*LAZY_OPTIONS, f"train.output_dir={folder}"]
    run(*command, *options, "train.max_iter=2")
    assert iterations(folder) == 2
    resumed = run(*command, "--resume", *options, "train.max_iter=5")
    assert "Starting training from iteration 2" in resumed and iterations(folder) == 5
    assert {"bbox/AP", "segm/AP"} <= ap(folder).keys()

    other = tmp_path / "eval"
    again = run(
        *(*command, "--eval-only", *options, f"train.output_dir={other}"),
        f"train.init_checkpoint={folder}/model_final.pth",
    )
    same_again(resumed, folder, again, other)


@pytest.mark.slow
def test_lazy_trainer_on_two_processes(run: Run, tmp_path: Path) -> None:
    """DistributedDataParallel over gloo: each process takes its half, one result is evaluated."""
    tool, folder = find_tool("lazyconfig_train_net.py"), tmp_path / "ddp"
    output = run(
        *(tool, "--config-file", LAZY, "--num-gpus", "2", "--dist-url", "auto"),
        *(*LAZY_OPTIONS, f"train.output_dir={folder}", "train.max_iter=3"),
        *("train.ddp.device_ids=null", "dataloader.train.num_workers=0"),
    )
    assert "Rank of current process: 0. World size: 2" in output
    assert iterations(folder) == 3
    assert {entry["image_id"] for entry in detections(folder)} == set(range(1, 7))


@pytest.mark.parametrize("trainer", [pytest.param("detectron2", marks=pytest.mark.slow), "ours"])
def test_yaml_trainers(run: Run, tmp_path: Path, trainer: str) -> None:
    """The same of train_net.py under the hook (SGD), and of the project's own (AdamW).

    Both evaluate on several sizes too, where they are asked to.
    """
    ours = ROOT / "projects/detection/train_net.py"
    tool = ours if trainer == "ours" else find_tool("train_net.py")
    folder, other = tmp_path / "yaml", tmp_path / "eval"
    rate = ["SOLVER.BASE_LR", "0.001"] if trainer == "ours" else []
    command, options = [tool, "--config-file", YAML], [*YAML_OPTIONS, *rate]
    augmented = ["TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(96, 128)"]
    run(*command, *options, "SOLVER.MAX_ITER", "2", "OUTPUT_DIR", folder, **HOOK)
    assert iterations(folder) == 2
    options += augmented
    resumed = run(
        *command, "--resume", *options, "SOLVER.MAX_ITER", "5", "OUTPUT_DIR", folder, **HOOK
    )
    assert "Starting training from iteration 2" in resumed and iterations(folder) == 5

    weights = ["MODEL.WEIGHTS", folder / "model_final.pth", "OUTPUT_DIR", other]
    again = run(*command, "--eval-only", *options, *weights, **HOOK)
    same_again(resumed, folder, again, other)  # the numbers are of the sizes together, printed last
    assert detections(folder, "inference_TTA") == detections(other, "inference_TTA")
    assert detections(folder, "inference_TTA") != detections(folder)


def test_sizes_together_are_for_detectors_that_have_them(tmp_path: Path) -> None:
    """Refused before a training, not at its end."""
    from argparse import Namespace

    from projects.detection.train_net import setup

    for keys in (["MODEL.META_ARCHITECTURE", "RetinaNet"], ["MODEL.KEYPOINT_ON", "True"]):
        opts = [*keys, "TEST.AUG.ENABLED", "True", "OUTPUT_DIR", str(tmp_path / "out")]
        with pytest.raises(ValueError, match=r"TEST\.AUG\.ENABLED must be False but for"):
            setup(Namespace(config_file=str(YAML), opts=opts))
    assert not (tmp_path / "out").exists()


def test_sizes_together_are_of_the_average(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a training keeps one: detectron2's augmentation calls the model past it."""
    from mvitv2_core.training import Average
    from projects.detection import train_net

    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    average = Average(model, optimizer, 0.5)
    monkeypatch.setattr(train_net, "GeneralizedRCNNWithTTA", lambda cfg, model: model)
    monkeypatch.setattr(train_net.Trainer, "test", lambda cfg, model, evaluators: {"of": model})
    cfg = train_net.get_cfg()
    cfg.DATASETS.TEST = ()
    assert train_net.Trainer.test_augmented(cfg, model) == {"of_TTA": model}
    optimizer.step()
    assert train_net.Trainer.test_augmented(cfg, model) == {"of_TTA": average.averaged.module}


def test_our_optimizer(datasets: Path) -> None:
    """AdamW: decay on weights and biases, none on norms and positions; clipping as asked."""
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model

    from mvitv2_d2 import add_mvitv2_config
    from projects.detection.train_net import Trainer

    cfg = get_cfg()
    add_mvitv2_config(cfg)
    cfg.merge_from_file(str(YAML))
    cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY = 1.6e-4, 0.1
    cfg.MODEL.MVITV2.USE_ABS_POS = True
    cfg.MODEL.BACKBONE.FREEZE_AT = 2
    model = build_model(cfg)
    optimizer = Trainer.build_optimizer(cfg, model)
    assert isinstance(optimizer, torch.optim.AdamW)
    decay = {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert set(decay) == set(trained.values())
    assert not any(name.startswith("backbone.bottom_up.blocks.0.") for name in trained)
    norms = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, torch.nn.LayerNorm)
        for parameter in module.parameters()
    }
    for name, parameter in trained.items():
        free = "rel_pos" in name or "pos_embed" in name or id(parameter) in norms
        assert decay[parameter] == (0.0 if free else 0.1), name
    assert all(group["lr"] == 1.6e-4 for group in optimizer.param_groups)

    for parameter in trained.values():
        parameter.grad = torch.full_like(parameter, 3.0)
    optimizer.step()
    norms_after = [parameter.grad.norm().item() for parameter in trained.values()]
    assert norms_after == pytest.approx([1.0] * len(trained), abs=1e-3)

    cfg.SOLVER.MOMENTUM = 0.8
    with pytest.raises(ValueError, match=r"SOLVER\.MOMENTUM must be left at 0\.9"):
        Trainer.build_optimizer(cfg, model)


def test_find_tool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DETECTRON2_ROOT", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="set DETECTRON2_ROOT"):
        find_tool("train_net.py")
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools/train_net.py").touch()
    assert find_tool("train_net.py") == tmp_path / "tools/train_net.py"


def test_missing_data_is_named(run: Run, tmp_path: Path) -> None:
    code = (
        "from projects.detection.toy_env import register_toy_shapes as r; r(); r()\n"
        "from detectron2.data import DatasetCatalog as d; d.get('toy_shapes_val')"
    )
    output = run("-c", code, status=1, DETECTRON2_DATASETS=str(tmp_path / "none"))
    assert "FileNotFoundError" in output and "projects.detection.toy_coco makes" in output
