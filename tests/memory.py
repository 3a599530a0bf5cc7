"""Memory of a small detection backbone in training over inputs of changing sizes.

``python -m tests.memory ITERATIONS`` trains in a process of its own, so that nothing else shares
its resident memory, and prints one line per sample as JSON.
"""

from __future__ import annotations

import gc
import json
import os
import random
import sys

import torch
from torch import Tensor

from mvitv2_core.fast.memory import CACHE
from tests.compare import loss_of
from tests.curves import detector

EVERY = 20


def resident_mib() -> float:
    """Resident memory of this process (Linux)."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def main(iterations: int) -> None:
    torch.manual_seed(0)
    model = detector(act_checkpoint=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9)
    sizes = random.Random(0)
    for i in range(1, iterations + 1):
        height, width = (32 * sizes.randint(1, 5) for _ in range(2))
        loss = loss_of(model(torch.randn(1, 3, height, width)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        del loss
        if i % EVERY == 0:
            gc.collect()
            sample = {
                "iteration": i,
                "resident": round(resident_mib(), 1),
                "tensors": sum(isinstance(o, Tensor) for o in gc.get_objects()),
                "cache": CACHE.size,
            }
            print("sample", json.dumps(sample), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
