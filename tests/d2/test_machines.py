"""projects/detection/train_net.py on two "machines" of two gloo ranks each, one of them killed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("detectron2", reason="install detectron2 to run: make setup")

from tests.d2.running import ROOT
from tests.killing import same
from tests.machines import Machine, check_resumed, curve, finish, free_port, lose_one

pytestmark = pytest.mark.slow
STEPS = 6
TOOL = [sys.executable, str(ROOT / "projects/detection/train_net.py")]
CONFIG = ["--config-file", str(ROOT / "configs/COCO/toy_mask_rcnn_mvitv2.yaml")]
OPTIONS = [
    *("SEED", "1", "SOLVER.CHECKPOINT_PERIOD", "2", "SOLVER.MAX_ITER", str(STEPS)),
    *("TEST.EVAL_PERIOD", "0", "SOLVER.IMS_PER_BATCH", "4", "SOLVER.BASE_LR", "0.001"),
    *("SOLVER.STEPS", "()", "SOLVER.WARMUP_ITERS", "2", "DATALOADER.NUM_WORKERS", "0"),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"),
]


def environment(datasets: Path) -> dict[str, str]:
    hook = "tests.d2.machine_hooks"
    return {"DETECTRON2_DATASETS": str(datasets), "DETECTRON2_ENV_MODULE": hook}


def start(folder: Path, datasets: Path) -> list[Machine]:
    """The documented command on each machine; both see ``folder``."""
    meet = f"tcp://127.0.0.1:{free_port()}"
    return [
        Machine(
            f"machine{number}",
            [
                *(*TOOL, *CONFIG, "--resume", "--num-gpus", "2", "--num-machines", "2"),
                *("--machine-rank", str(number), "--dist-url", meet),
                *(*OPTIONS, "OUTPUT_DIR", f"{folder}/out"),
            ],
            folder,
            **environment(datasets),
        )
        for number in range(2)
    ]


def final(folder: Path) -> dict:
    return torch.load(folder / "out/model_final.pth", weights_only=True)


def detections(folder: Path) -> list[dict]:
    found = json.loads((folder / "inference/coco_instances_results.json").read_text())
    return sorted(found, key=lambda entry: (entry["image_id"], -entry["score"], entry["bbox"]))


def test_lost_machine_and_evaluation(datasets: Path, tmp_path: Path) -> None:
    """The resumed curve is the uninterrupted one's on all four ranks; six images, which four ranks
    cannot share evenly, are each evaluated once, as one process evaluates them."""
    reference, lost = tmp_path / "reference", tmp_path / "lost"
    output = finish(start(reference, datasets))
    assert "World size: 4" in output
    # In the third step, a whole step before the next checkpoint: losses are recorded before a
    # checkpoint is written, and the kill comes a little later than what it waits for.
    lose_one(start(lost, datasets), lambda: len(curve(lost, 0)) == 3)
    assert (lost / "out/last_checkpoint").read_text() == "model_0000001.pth"
    output = finish(start(lost, datasets))
    assert "Starting training from iteration 2" in output
    check_resumed(lost, reference, ranks=4, steps=STEPS)
    assert same(final(lost), final(reference))

    alone = Machine(
        "alone",
        [
            *(*TOOL, *CONFIG, "--eval-only", *OPTIONS, "OUTPUT_DIR", f"{tmp_path}/alone/out"),
            *("MODEL.WEIGHTS", f"{lost}/out/model_final.pth"),
        ],
        tmp_path / "alone",
        **environment(datasets),
    )
    finish([alone])
    whole, gathered = detections(tmp_path / "alone/out"), detections(lost / "out")
    assert {entry["image_id"] for entry in gathered} == set(range(1, 7))
    assert len(gathered) == len(whole) > 20
    for ours, theirs in zip(gathered, whole, strict=True):
        assert ours == theirs
