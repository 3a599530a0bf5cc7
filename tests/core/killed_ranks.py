"""Kills of two ranks that train: ``python -m tests.core.killed_ranks FOLDER KILLS SEED``.

The launcher is PyTorch's, as detectron2's and PySlowFast's, around a plain loop that writes as they
do under this project. Ranks are forked from a process that imported torch, so that a kill costs
little. Every run is killed again and again until it is through, and then compared with one that
nothing interrupted. Prints the kills by victim, and the longest that a rank outlived its launcher.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mvitv2_core.path_manager import WholeWrites
from tests import killing
from tests.core.write_and_kill import Files
from tests.small import small_input, small_model

STEPS = 8
LAST = "out/last.pth"


def train(rank: int, ranks: int, folder: Path, meet: str) -> None:
    """Train from the last checkpoint on; rank 0 writes one after every step."""
    torch.set_num_threads(1)
    limit = timedelta(seconds=60)
    dist.init_process_group(
        "gloo", init_method=f"file://{meet}", rank=rank, world_size=ranks, timeout=limit
    )
    killing.install_saving()
    plain, first = small_model("image").train(), 0
    optimizer = torch.optim.AdamW(plain.parameters(), 1e-3)
    if (folder / LAST).exists():
        content = torch.load(folder / LAST, weights_only=True)
        plain.load_state_dict(content["model"])
        optimizer.load_state_dict(content["optimizer"])
        first = content["step"] + 1
    model = DistributedDataParallel(plain)
    for step in range(first, STEPS):
        torch.manual_seed(step)
        killing.enter("step")
        x = small_input("image", seed=step * ranks + rank)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), torch.arange(len(x)))
        loss.backward()
        optimizer.step()
        killing.record(step, loss.item())
        if rank == 0:
            content = {"model": plain.state_dict(), "optimizer": optimizer.state_dict()}
            with WholeWrites(Files()).open(str(folder / LAST), "wb") as stream:
                torch.save({**content, "step": step}, stream)
    dist.barrier()
    dist.destroy_process_group()


def launch(folder: Path, kill_at: str = "") -> tuple[bool, float]:
    """Start or resume; whether it was killed, and how long a rank outlived the launcher (s)."""
    (folder / "out").mkdir(parents=True, exist_ok=True)
    meet = f"{folder}/meet{len(list(folder.glob('meet*')))}"
    alive, held = os.pipe()  # its end comes when the last of them has ended
    child = os.fork()
    if child == 0:
        os.environ |= {"KILL": kill_at, "KILL_FOLDER": str(folder)}
        try:
            mp.start_processes(train, (2, folder, meet), nprocs=2, start_method="fork")
        except mp.ProcessExitedException as error:
            os._exit(1 if error.signal_name == "SIGKILL" else 2)
        except BaseException:
            os._exit(2)
        os._exit(0)
    os.close(held)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    begun = time.perf_counter()
    assert os.read(alive, 1) == b""
    os.close(alive)
    killed = -signal.SIGKILL if kill_at.endswith("launcher") else 1
    assert status in (0, killed), (kill_at, status)
    return status != 0, time.perf_counter() - begun


def main(folder: Path, kills: int, seed: int) -> None:
    importlib.import_module("torch._dynamo")
    reference, draw = folder / "reference", random.Random(seed)
    launch(reference)
    expected = torch.load(reference / LAST, weights_only=True)
    counts: Counter[str] = Counter()
    longest, run = 0.0, 0
    while sum(counts.values()) < kills:
        run += 1
        place, through = folder / f"run{run}", False
        while not through and sum(counts.values()) < kills:
            who = killing.WHO[sum(counts.values()) % len(killing.WHO)]
            phase, amount = draw.choice((("step", draw.uniform(0, 0.1)), ("save", draw.random())))
            killed, after = launch(place, f"{phase} {draw.randint(1, 2)} {amount:.4f} {who}")
            through = not killed
            if killed:
                counts[who] += 1
                longest = max(longest, after * (who == "launcher"))
        launch(place)
        killing.check_curve(place, reference)
        assert killing.same(torch.load(place / LAST, weights_only=True), expected)
    print(json.dumps({"kills": counts, "runs": run, "longest": longest}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
