"""``mvitv2_slowfast.run_net`` on ranks without GPUs: ``python -m tests.slowfast.machine_driver``.

PySlowFast refuses several ranks without CUDA, and moves model and clips to it. Here those calls
leave them where they are; nothing else of it changes. Its ranks import this file again.
"""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from mvitv2_slowfast import run_net
from tests import machines


def stay(value: Any, *args: Any, **kwargs: Any) -> Any:
    """``.cuda()`` of a tensor or module that stays on the CPU."""
    return value


def ddp_on_cpu(
    module: nn.Module, device_ids: list[int], output_device: int, **kwargs: Any
) -> nn.Module:
    """On no device; its buckets stay as they are (see tests/d2/machine_hooks.py)."""
    kwargs["find_unused_parameters"] = True
    return nn.parallel.DistributedDataParallel(module, **kwargs)


def install() -> None:
    """Stand in for CUDA, seed every epoch by its number and the rank, record losses."""
    from slowfast.datasets import loader
    from slowfast.models import build
    from slowfast.utils.meters import TrainMeter

    build.torch = SimpleNamespace(
        cuda=SimpleNamespace(
            is_available=lambda: True, device_count=lambda: 2, current_device=lambda: 0
        ),
        nn=SimpleNamespace(parallel=SimpleNamespace(DistributedDataParallel=ddp_on_cpu)),
    )
    torch.Tensor.cuda = nn.Module.cuda = stay
    shuffle, log = loader.shuffle_dataset, TrainMeter.log_iter_stats

    def shuffle_dataset(train_loader: Any, epoch: int) -> None:
        seed = 1000 * epoch + torch.distributed.get_rank()
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        shuffle(train_loader, epoch)

    def log_iter_stats(self: Any, epoch: int, step: int) -> None:
        loss = float(self.loss.deque[-1])  # the mean over all ranks
        machines.record(torch.distributed.get_rank(), epoch * self.epoch_iters + step, loss)
        log(self, epoch, step)

    loader.shuffle_dataset = shuffle_dataset
    TrainMeter.log_iter_stats = log_iter_stats


if __name__ in ("__main__", "__mp_main__"):
    run_net.prepare()
    install()
if __name__ == "__main__":
    run_net.main()
