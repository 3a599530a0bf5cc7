"""The launcher under ``tests.killing``: ``python -m tests.slowfast.kill_driver --cfg FILE``."""

from __future__ import annotations

import random
import runpy
from typing import Any

import numpy as np
import torch

from mvitv2_slowfast.plugin import connect
from tests import killing


def install() -> None:
    """Record and kill in PySlowFast's trainer; seed every epoch by its number."""
    connect()  # makes slowfast importable
    from slowfast.datasets import loader
    from slowfast.utils.meters import TrainMeter, ValMeter

    shuffle, log = loader.shuffle_dataset, TrainMeter.log_iter_stats

    def shuffle_dataset(train_loader: Any, epoch: int) -> None:
        random.seed(epoch)
        np.random.seed(epoch)
        torch.manual_seed(epoch)
        shuffle(train_loader, epoch)

    def log_iter_stats(self: Any, epoch: int, step: int) -> None:
        steps = self.epoch_iters
        killing.record(epoch * steps + step, float(self.loss.deque[-1]))
        log(self, epoch, step)

    loader.shuffle_dataset = shuffle_dataset
    TrainMeter.log_iter_stats = log_iter_stats
    TrainMeter.data_toc = killing.before(TrainMeter.data_toc, lambda: killing.enter("step"))
    ValMeter.data_toc = killing.before(ValMeter.data_toc, lambda: killing.enter("eval"))
    killing.install_saving()


if __name__ == "__main__":
    install()
    runpy.run_module("mvitv2_slowfast.run_net", run_name="__main__", alter_sys=True)
