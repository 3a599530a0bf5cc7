"""Memory over time: training on inputs of changing sizes holds no more than it did."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mvitv2_core import linear as linear_module
from mvitv2_core.linear import linear
from mvitv2_core.rel_pos import CACHE_BYTES

ROOT = Path(__file__).resolve().parents[2]
# Resident memory may grow by the bound of the cache of positions, once.
BOUND_MIB = CACHE_BYTES / 2**20


def samples(iterations: int) -> list[dict[str, float]]:
    """Of ``tests.memory`` in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [sys.executable, "-m", "tests.memory", str(iterations)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=3600,
    )
    assert process.returncode == 0, process.stderr[-5000:]
    lines = [line for line in process.stdout.splitlines() if line.startswith("sample ")]
    return [json.loads(line.removeprefix("sample ")) for line in lines]


def check(iterations: int, warm_up: int, tally: Callable[..., None]) -> None:
    """After the warm-up: as many tensors, positions within bounds, and resident memory as well."""
    pytest.importorskip("detectron2", reason="install detectron2 to run: make setup")
    if not Path("/proc/self/statm").exists():
        pytest.skip("reads resident memory from /proc: run on Linux")
    found = [sample for sample in samples(iterations) if sample["iteration"] >= warm_up]
    assert len({sample["tensors"] for sample in found}) == 1
    assert all(0 < sample["cache"] <= CACHE_BYTES for sample in found)
    grown = max(sample["resident"] for sample in found) - found[0]["resident"]
    assert grown < BOUND_MIB, found
    tally("memory: training iterations over changing sizes, resident memory bounded", iterations)


def test_changing_sizes(tally: Callable[..., None]) -> None:
    check(200, 100, tally)


@pytest.mark.soak
def test_changing_sizes_for_long(tally: Callable[..., None]) -> None:
    check(2000, 400, tally)


class Rows(TorchDispatchMode):
    """Collects the numbers of rows that oneDNN's linear is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if "_linear_pointwise" in str(func):
            self.seen.add(args[0].shape[0])
        return func(*args, **(kwargs or {}))


@pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="needs a PyTorch build with oneDNN"
)
@pytest.mark.parametrize("with_grad", [False, True])
def test_onednn_meets_few_sizes(
    with_grad: bool, tally: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It keeps a kernel for each, between buffers that malloc then cannot join."""
    monkeypatch.setattr(linear_module, "_met", set())
    weight = torch.randn(6, 4, requires_grad=with_grad)
    bias = torch.randn(6, requires_grad=with_grad)
    with Rows() as rows:
        for count in [*range(1, 300), *range(4000, 9000, 97)]:
            x = torch.randn(count, 4)
            out = linear(x, weight, bias)
            assert torch.allclose(out, x @ weight.t() + bias, atol=1e-5)
            if with_grad:
                out.sum().backward()
    assert len(rows.seen) == linear_module.ONEDNN_SIZES
    tally("memory: sizes that leave no kernel of their own behind", 299 + 52 - len(rows.seen))
