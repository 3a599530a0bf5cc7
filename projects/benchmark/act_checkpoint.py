"""Memory of one training step without and with activation checkpointing, on this CPU.

    python projects/benchmark/act_checkpoint.py [--keep]    # --keep: for docs/training.md

Each measurement has a process of its own: what its resident memory (Linux) grows by over the model
and its input, after the forward pass and at most until the backward pass is done.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mvitv2_core import MViTClassifier, MViTConfig
from projects.benchmark.kept import keep, machine

EVERY = 0.002  # seconds between two looks at the memory


def image(act_checkpoint: bool) -> tuple[nn.Module, Tensor]:
    config = MViTConfig.variant("T", (224, 224))
    return MViTClassifier(config, act_checkpoint=act_checkpoint), torch.randn(8, 3, 224, 224)


def clip(act_checkpoint: bool) -> tuple[nn.Module, Tensor]:
    config = MViTConfig.variant("S", (16, 224, 224), num_classes=400)
    return MViTClassifier(config, act_checkpoint=act_checkpoint), torch.randn(1, 3, 16, 224, 224)


def detection(act_checkpoint: bool) -> tuple[nn.Module, Tensor]:
    from mvitv2_d2 import MViT

    norm = partial(nn.LayerNorm, eps=1e-6)
    kwargs = {"depth": 10, "last_block_indexes": (0, 2, 7, 9), "norm_layer": norm}
    return MViT(use_act_checkpoint=act_checkpoint, **kwargs), torch.randn(1, 3, 512, 512)


WORK: dict[str, Callable[[bool], tuple[nn.Module, Tensor]]] = {
    "image T, 8 images of 224 x 224": image,
    "video S, 1 clip of 16 x 224 x 224": clip,
    "detection backbone T, 1 image of 512 x 512": detection,
}


def resident_mib() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def measure(work: str, act_checkpoint: bool) -> dict[str, float]:
    """Forward and backward once, with another thread looking on."""
    torch.manual_seed(0)
    model, x = WORK[work](act_checkpoint)
    model.train()
    before, peak, done = resident_mib(), 0.0, threading.Event()

    def look_on() -> None:
        nonlocal peak
        while not done.wait(EVERY):
            peak = max(peak, resident_mib())

    thread = threading.Thread(target=look_on)
    thread.start()
    outputs = model(x)
    tensors = outputs.values() if isinstance(outputs, dict) else [outputs]
    loss = torch.stack([tensor.sum() for tensor in tensors]).sum()
    kept = resident_mib()
    loss.backward()
    done.set()
    thread.join()
    return {"kept_mib": kept - before, "peak_mib": peak - before}


def main() -> None:
    """Measure everything, each time in a fresh process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="processes of each (%(default)s)")
    parser.add_argument("--keep", action="store_true", help="for docs/training.md")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work, state = args.worker
        print(json.dumps(measure(work, state == "on")))
        return
    rows = []
    for work in WORK:
        for state in ("off", "on"):
            command = [sys.executable, __file__, "--worker", work, state]
            runs = [json.loads(subprocess.check_output(command)) for _ in range(args.runs)]
            rows.append({"work": work, "act_checkpoint": state == "on", "runs": runs})
            print(json.dumps(rows[-1]), flush=True)
    if args.keep:
        keep("act_checkpoint", {"machine": machine(runs=args.runs), "rows": rows})


if __name__ == "__main__":
    main()
