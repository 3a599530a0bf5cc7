"""``tests.slowfast.kill_driver`` on gloo ranks: ``python -m tests.slowfast.machines_driver ...``.

PySlowFast starts ranks for GPUs alone. What asks for one here gets the CPU; each rank records into
a folder of its own.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mvitv2_slowfast import run_net
from tests.machines import RANKS
from tests.slowfast import kill_driver


def itself(self: Any, *args: Any, **kwargs: Any) -> Any:
    return self


def nothing(*args: Any, **kwargs: Any) -> int:
    return 0


def set_device(local_rank: int) -> None:
    """Called by each rank once it is in the process group."""
    folder = Path(os.environ["KILL_FOLDER"])
    if not folder.name.startswith("rank"):
        folder /= f"rank{torch.distributed.get_rank()}"
        folder.mkdir(exist_ok=True)
        os.environ["KILL_FOLDER"] = str(folder)


class OnCpus(nn.parallel.DistributedDataParallel):
    """DDP as PySlowFast calls it, which names a GPU of each rank."""

    def __init__(self, module: nn.Module, device_ids: Any, output_device: Any, **options: Any):
        super().__init__(module, **options)


def install() -> None:
    torch.Tensor.cuda, nn.Module.cuda = itself, itself  # type: ignore[assignment]
    torch.cuda.device_count = lambda: RANKS
    torch.cuda.set_device = set_device  # type: ignore[assignment]
    for name in ("current_device", "synchronize", "empty_cache"):
        setattr(torch.cuda, name, nothing)
    nn.parallel.DistributedDataParallel = OnCpus  # type: ignore[misc]
    kill_driver.install()
    from slowfast import models

    real, build = torch.cuda.is_available, models.build_model

    def build_model(*args: Any, **kwargs: Any) -> nn.Module:
        torch.cuda.is_available = lambda: True  # it asks whether there are so many
        try:
            return build(*args, **kwargs)
        finally:
            torch.cuda.is_available = real

    models.build_model = build_model


if __name__ in ("__main__", "__mp_main__"):  # the launcher, and each rank that it spawns
    install()
    run_net.prepare()
if __name__ == "__main__":
    run_net.main()
