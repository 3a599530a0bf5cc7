"""Runs functions on several gloo ranks: ``python -m tests.ranks FOLDER MODULE:FUNCTION:RANKS ...``.

The modules are imported once; ranks are forked from there, so that a group of ranks costs no
imports. A function is called as ``function(rank, ranks, folder)`` on each rank of a fresh process
group, one job after another. What rank 0 returns is printed, as JSON, by job.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

REPOSITORY = Path(__file__).parents[1]


def start(folder: Path, *jobs: str, timeout: float = 600) -> list[Any]:
    """Run ``jobs``, each "module:function:ranks", in a fresh process; what their ranks 0 gave."""
    process = subprocess.run(
        [sys.executable, "-m", "tests.ranks", str(folder), *jobs],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert process.returncode == 0, process.stderr[-6000:]
    return [json.loads(line) for line in process.stdout.splitlines()[-len(jobs) :]]


def on_rank(
    rank: int, ranks: int, function: Callable[[int, int, Path], Any], folder: Path, job: int
) -> None:
    torch.set_num_threads(1)
    meet = f"file://{folder}/meet{job}"
    limit = timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=ranks, timeout=limit)
    result = function(rank, ranks, folder)
    if rank == 0:
        (folder / f"result{job}.json").write_text(json.dumps(result))
    dist.barrier()
    dist.destroy_process_group()


def main(folder: Path, jobs: list[str]) -> None:
    torch.set_num_threads(1)
    importlib.import_module("torch._dynamo")  # DTensor imports it when it is first used
    functions = []
    for job in jobs:
        module, name, ranks = job.split(":")
        functions.append((getattr(importlib.import_module(module), name), int(ranks)))
    for number, (function, ranks) in enumerate(functions):
        arguments = (ranks, function, folder, number)
        mp.start_processes(on_rank, arguments, nprocs=ranks, start_method="fork")
        print((folder / f"result{number}.json").read_text(), flush=True)


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter's gradient; one without any fails."""
    missing = [name for name, p in model.named_parameters() if p.grad is None]
    assert not missing, missing
    return {name: p.grad.detach().clone() for name, p in model.named_parameters()}


def worst(ours: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Largest difference of any gradient over the largest expected value."""
    assert ours.keys() == expected.keys()
    scale = max(value.abs().max() for value in expected.values())
    assert scale > 1e-3
    return max((ours[n] - expected[n]).abs().max().item() for n in expected) / scale.item()


def agree(tensors: dict[str, torch.Tensor]) -> bool:
    """Whether all ranks hold the same, to the last bit."""
    flat = torch.cat([tensor.flatten() for tensor in tensors.values()])
    first = flat.clone()
    dist.broadcast(first, 0)
    same = torch.tensor(int(torch.equal(flat, first)))
    dist.all_reduce(same, dist.ReduceOp.MIN)
    return bool(same)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
