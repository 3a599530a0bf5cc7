"""Memory of one training step without and with activation checkpointing, on this CPU.

    python projects/benchmark/act_checkpoint.py    # the table of docs/training.md, as JSON lines

Each measurement has a process of its own: what its resident memory (Linux) grows by over the model
and its input, after the forward pass and at most until the backward pass is done.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from mvitv2_core import MViTClassifier, MViTConfig

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
    "image": image,
    "clip": clip,
    "detection": detection,
}


def resident_mib() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def measure(work: str, act_checkpoint: bool) -> dict[str, object]:
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
    row = {"work": work, "act_checkpoint": act_checkpoint}
    return {**row, "kept_mib": round(kept - before), "peak_mib": round(peak - before)}


def main(arguments: list[str]) -> None:
    """Measure what is named, or everything, each in a fresh process."""
    if arguments:
        print(json.dumps(measure(arguments[0], arguments[1] == "on")), flush=True)
        return
    for work in WORK:
        for state in ("off", "on"):
            subprocess.run([sys.executable, __file__, work, state], check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
