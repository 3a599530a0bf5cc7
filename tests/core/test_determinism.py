"""Same seed, same loss curve, bit for bit: again, in another process, and with checkpointing."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch._subclasses import FakeTensorMode

from mvitv2_core import ops
from tests.curves import DETECTOR, NAMES, STEPS, curve

ROOT = Path(__file__).resolve().parents[2]
CLAIM = f"determinism: pairs of equal curves of {STEPS} steps with drop path"


first_curve = functools.cache(curve)


def names() -> list[str]:
    try:
        import detectron2  # noqa: F401
    except ImportError:
        return [name for name in NAMES if name != DETECTOR]
    return list(NAMES)


def in_another_process(*names: str) -> list[list[str]]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
        "PYTHONHASHSEED": "1",
    }
    process = subprocess.run(
        [sys.executable, "-m", "tests.curves", *names],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert process.returncode == 0, process.stderr[-5000:]
    lines = [line.split() for line in process.stdout.splitlines()]
    return [line[1:] for line in lines if line and line[0] == "curve"]


@pytest.mark.parametrize("name", NAMES)
def test_again_and_with_checkpointing(name: str, tally: Callable[..., None]) -> None:
    if name == DETECTOR:
        pytest.importorskip("detectron2", reason="install detectron2 to run: make setup")
    first = first_curve(name)
    assert curve(name) == first
    assert len(set(first)) == STEPS
    assert curve(name, act_checkpoint=True) == first
    tally(CLAIM, 2)


def test_in_another_process(tally: Callable[..., None]) -> None:
    for name, got in zip(names(), in_another_process(*names()), strict=True):
        assert got == first_curve(name), name
        tally(CLAIM)


def test_positions_repeat_on_a_gpu_where_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """There resampling a table, and max pools of clips, raise in deterministic mode."""
    monkeypatch.setattr(ops, "REFERENCE", False)
    with FakeTensorMode():
        tables = {device: torch.empty(27, 96, device=device) for device in ("cuda", "cpu")}

    def forms(device: str, thw: tuple[int, ...] = (8, 4, 4)) -> list[str]:
        table, skip = tables[device], (thw, (2,) * len(thw), False)
        calls = (("rows", table, 20, 10), ("max_pool_skip", table, *skip))
        return [ops.choose(*call).name for call in calls]

    assert forms("cuda") == forms("cpu") == ["remembered", "plain"]
    torch.use_deterministic_algorithms(True)
    try:
        assert forms("cuda") == ["repeatable", "frames"] and forms("cpu") == ["remembered", "plain"]
        assert forms("cuda", (4, 4)) == ["repeatable", "plain"]
    finally:
        torch.use_deterministic_algorithms(False)
