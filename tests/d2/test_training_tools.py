"""The training options through detectron2's unmodified tools and the project's, as a user does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("detectron2", reason="install detectron2 to run: make setup")

from projects.detection.find_tools import find_tool
from tests.d2.running import ROOT

pytestmark = pytest.mark.slow
Run = Callable[..., str]
HOOK = {"DETECTRON2_ENV_MODULE": "projects.detection.toy_env"}
YAML = ROOT / "configs/COCO/toy_mask_rcnn_mvitv2.yaml"
LAZY = ROOT / "projects/detection/configs/toy_mask_rcnn_mvitv2.py"
SHORT = ["TEST.EVAL_PERIOD", "100", "SOLVER.CHECKPOINT_PERIOD", "100", "SOLVER.IMS_PER_BATCH", "2"]
SHORT += ["SOLVER.STEPS", "()", "SOLVER.WARMUP_ITERS", "2", "SOLVER.BASE_LR", "0.001"]
SHORT += ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "SEED", "1"]
EVERYTHING = ["MODEL.MVITV2.EMA_DECAY", "0.5", "MODEL.MVITV2.ACCUMULATE", "2"]
EVERYTHING += ["MODEL.MVITV2.BFLOAT16", "True", "MODEL.MVITV2.LAYER_DECAY", "0.8"]
EVERYTHING += ["MODEL.MVITV2.DETERMINISTIC", "True", "MODEL.MVITV2.ACT_CHECKPOINT", "True"]


def saved(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "model_final.pth", weights_only=True)


def check_run(folder: Path, iterations: int, depth: int) -> None:
    """Half as many steps as batches, a rate for each layer, and an average that is another."""
    content = saved(folder)
    assert content["iteration"] == iterations - 1
    trainer = content["trainer"].get("_trainer", content["trainer"])
    groups, states = (trainer["optimizer"][key] for key in ("param_groups", "state"))
    assert len({group["lr"] for group in groups}) == depth + 2
    steps = {int(state["step"]) for state in states.values() if "step" in state}
    assert steps in (set(), {iterations // 2})  # SGD counts none
    weights, average = content["model"], content["model_ema"]
    assert weights.keys() == average.keys()
    assert any(not torch.equal(value, average[name]) for name, value in weights.items())
    assert list(folder.glob("events.out.tfevents.*"))


def found(folder: Path) -> list[dict]:
    return json.loads((folder / "inference/coco_instances_results.json").read_text())


@pytest.mark.parametrize("trainer", ["detectron2", "ours"])
def test_yaml(run: Run, tmp_path: Path, trainer: str) -> None:
    """Trained, resumed, evaluated on the average, which the file gives again."""
    ours = ROOT / "projects/detection/train_net.py"
    tool = ours if trainer == "ours" else find_tool("train_net.py")
    command = [tool, "--config-file", YAML]
    folder = tmp_path / "all"
    options = [*SHORT, *EVERYTHING, "OUTPUT_DIR", folder]
    run(*command, *options, "SOLVER.MAX_ITER", "4", **HOOK)
    check_run(folder, 4, 5)
    output = run(*command, "--resume", *options, "SOLVER.MAX_ITER", "8", **HOOK)
    assert "Loading model_ema from" in output and "Starting training from iteration 4" in output
    check_run(folder, 8, 5)
    results = {}
    for query in ("", "?ema=True"):
        other = tmp_path / f"eval{query}"
        weights = ["MODEL.WEIGHTS", f"{folder}/model_final.pth{query}", "OUTPUT_DIR", other]
        run(*command, "--eval-only", *SHORT, *weights, **HOOK)
        results[query] = found(other)
    assert found(folder) == results["?ema=True"] != results[""]


def test_yaml_validates_on_a_sample(run: Run, tmp_path: Path) -> None:
    """Three images after two iterations, all six at the end."""
    tool = find_tool("train_net.py")
    options = [*SHORT, "TEST.EVAL_PERIOD", "2", "MODEL.MVITV2.VAL_SAMPLE", "3"]
    options += ["SOLVER.MAX_ITER", "4", "OUTPUT_DIR", tmp_path / "out"]
    output = run(tool, "--config-file", YAML, *options, **HOOK)
    assert "Evaluation results for toy_shapes_val_sample_3 in csv" in output
    assert "Evaluation results for toy_shapes_val in csv" in output
    assert output.count("Start inference on 3 batches") == 1
    assert {entry["image_id"] for entry in found(tmp_path / "out")} == set(range(1, 7))


def test_deterministic_runs_are_equal(run: Run, tmp_path: Path) -> None:
    """Two runs of one seed, to the last bit; another seed gives other weights."""
    weights = []
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        options = [*SHORT, *EVERYTHING, "SOLVER.MAX_ITER", "3", "SEED", seed]
        options += ["TEST.EVAL_PERIOD", "0", "DATALOADER.NUM_WORKERS", "0"]
        tool = find_tool("train_net.py")
        run(tool, "--config-file", YAML, *options, "OUTPUT_DIR", tmp_path / name, **HOOK)
        weights.append(saved(tmp_path / name)["model"])
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert any(not torch.equal(value, weights[2][name]) for name, value in weights[0].items())


def test_lazy(run: Run, tmp_path: Path) -> None:
    """The same with nothing but keys on the command line."""
    folder = tmp_path / "lazy"
    threshold = "model.roi_heads.box_predictor.test_score_thresh=0.0"
    decay = "{_target_: mvitv2_d2.training.LayerDecay, decay: 0.8, depth: 5}"
    options = [
        *("train.eval_period=100", "train.checkpointer.period=100", "train.seed=1"),
        *("dataloader.train.total_batch_size=2", "optimizer.ema_decay=0.5"),
        threshold,
        "optimizer._target_=mvitv2_d2.training.make_optimizer",
        "optimizer.params._target_=mvitv2_d2.training.make_groups",
        *("optimizer.accumulate=2", "optimizer.bfloat16=True", "optimizer.deterministic=True"),
        f"optimizer.params.lr_factor_func={decay}",
    ]
    command = [find_tool("lazyconfig_train_net.py"), "--config-file", LAZY]
    run(*command, *options, f"train.output_dir={folder}", "train.max_iter=4")
    check_run(folder, 4, 5)
    output = run(
        *(*command, "--resume", *options, f"train.output_dir={folder}", "train.max_iter=8")
    )
    assert "Loading model_ema from" in output
    check_run(folder, 8, 5)
    other = tmp_path / "eval"
    weights = f"train.init_checkpoint='{folder}/model_final.pth?ema=True'"
    run(*command, "--eval-only", threshold, f"train.output_dir={other}", weights)
    assert found(folder) == found(other)
