"""PySlowFast's own trainer on two machines of two gloo ranks, one of them lost, and resumed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests import killing, machines
from tests.slowfast import toy
from tests.slowfast.launch import needs_pyslowfast, run_net, stats, write_config

pytestmark = [needs_pyslowfast, pytest.mark.slow]
EPOCHS, STEPS = 3, 3  # of an epoch
CHANGES = {
    "MVIT": {"DROPPATH_RATE": 0.0},
    "TRAIN": {"BATCH_SIZE": 4, "AUTO_RESUME": True},  # of a machine
    "TEST": {"BATCH_SIZE": 4},
    "SOLVER": {"MAX_EPOCH": EPOCHS},
    "NUM_GPUS": machines.RANKS,
    "DIST_BACKEND": "gloo",
}


def test_a_lost_machine(tmp_path: Path, tally: Callable[..., None]) -> None:
    """Every loss is that of a run that lost nothing, up to rounding.

    Its test, of 8 clips by 6 views on 4 ranks, finds what one process finds.
    """
    data = tmp_path / "data"
    toy.make_kinetics(data, train=8 * STEPS, val=6, test=8)

    def command(folder: Path) -> Callable[[int, str], list[str]]:
        config = write_config(folder, CHANGES, data=data)
        return lambda number, url: [
            *("-m", "tests.slowfast.machines_driver", "--cfg", str(config)),
            *("--num_shards", str(machines.MACHINES), "--shard_id", str(number)),
            *("--init_method", url),
        ]

    whole, lost = tmp_path / "whole", tmp_path / "lost"
    machines.run(command(whole), whole)
    machines.lose_one(command(lost), lost, steps=STEPS + 1)
    machines.run(command(lost), lost)
    for rank in range(machines.MACHINES * machines.RANKS):
        killing.check_curve(lost / f"rank{rank}", whole / f"rank{rank}", machines.WITHIN)
    tally("machines lost, PySlowFast")
    (found,) = stats((whole / "machine0.log").read_text(), "test_final")
    weights = whole / f"out/checkpoints/checkpoint_epoch_{EPOCHS:05d}.pyth"
    alone = write_config(tmp_path / "alone", {"TRAIN": {"ENABLE": False}}, data=data)
    (expected,) = stats(run_net(alone, "TEST.CHECKPOINT_FILE_PATH", str(weights)), "test_final")
    assert {k: found[k] for k in found if "acc" in k} == {
        k: expected[k] for k in expected if "acc" in k
    }
