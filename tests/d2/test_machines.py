"""detectron2's own trainer on two machines of two gloo ranks, one of them lost, and resumed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("detectron2", reason="install detectron2 to run: make setup")

from projects.detection.find_tools import find_tool
from tests import killing, machines
from tests.d2.test_kill import last

CONFIG = str(machines.ROOT / "tests/d2/machines_config.py")
STEPS = 8


def command(folder: Path) -> Callable[[int, str], list[str]]:
    def of_machine(number: int, url: str) -> list[str]:
        return [
            *(str(find_tool("lazyconfig_train_net.py")), "--config-file", CONFIG, "--resume"),
            *("--num-gpus", str(machines.RANKS), "--num-machines", str(machines.MACHINES)),
            *("--machine-rank", str(number), "--dist-url", url),
            *(f"train.output_dir={folder}/out", f"train.max_iter={STEPS}"),
            *(f"train.eval_period={STEPS}", "train.checkpointer.period=2"),
        ]

    return of_machine


@pytest.mark.slow
def test_a_lost_machine(datasets: Path, tmp_path: Path, tally: Callable[..., None]) -> None:
    """Every loss of every rank is that of a run that lost nothing, up to rounding.

    Its evaluation, of 6 pictures on 4 ranks, finds what one process finds.
    """
    environment = {"DETECTRON2_DATASETS": str(datasets)}
    whole, lost = tmp_path / "whole", tmp_path / "lost"
    machines.run(command(whole), whole, **environment)
    machines.lose_one(command(lost), lost, steps=STEPS // 2, **environment)
    machines.run(command(lost), lost, **environment)
    for rank in range(machines.MACHINES * machines.RANKS):
        killing.check_curve(lost / f"rank{rank}", whole / f"rank{rank}", machines.WITHIN)
    assert last(lost)["iteration"] == last(whole)["iteration"] == STEPS - 1
    tally("machines lost, detectron2")
    alone = tmp_path / "alone"
    killing.run(
        [
            *(str(find_tool("lazyconfig_train_net.py")), "--config-file"),
            *(str(machines.ROOT / "tests/d2/kill_config.py"), "--eval-only"),
            *(f"train.init_checkpoint={whole}/out/model_final.pth", f"train.output_dir={alone}"),
        ],
        alone,
        **environment,
    )
    found, expected = (
        json.loads((folder / "inference/coco_instances_results.json").read_text())
        for folder in (whole / "out", alone)
    )
    assert len(found) == len(expected) > 0
    keys = ("image_id", "category_id", "score", "bbox")
    found, expected = (sorted([row[key] for key in keys] for row in r) for r in (found, expected))
    assert found == expected
