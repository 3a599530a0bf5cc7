"""The launcher under ``tests.killing``: ``python -m tests.slowfast.kill_driver --cfg FILE``.

With ``NUM_GPUS 2`` PySlowFast's launcher starts two ranks, as on two GPUs; they train on the CPU.
"""

from __future__ import annotations

import random
import runpy
from typing import Any

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import get_worker_info

from mvitv2_slowfast.plugin import connect
from tests import killing


def install() -> None:
    """Record and kill in PySlowFast's trainer; seed every epoch by its number."""
    connect()  # makes slowfast importable
    from slowfast.datasets import loader
    from slowfast.datasets.kinetics import Kinetics
    from slowfast.utils.meters import TrainMeter, ValMeter

    get_item, shuffle, log = Kinetics.__getitem__, loader.shuffle_dataset, TrainMeter.log_iter_stats

    def shuffle_dataset(train_loader: Any, epoch: int) -> None:
        random.seed(epoch)
        np.random.seed(epoch)
        torch.manual_seed(epoch)
        shuffle(train_loader, epoch)

    def log_iter_stats(self: Any, epoch: int, step: int) -> None:
        steps = self.epoch_iters
        killing.record(epoch * steps + step, float(self.loss.deque[-1]))
        log(self, epoch, step)

    def sample(self: Any, index: int) -> Any:
        frames, *rest = get_item(self, index)
        if get_worker_info() is not None and killing.enter("worker"):
            killing.kill()
        if self.mode == "train" and killing.enter("nan"):
            frames = [torch.full_like(frames[0], torch.nan)]
        return frames, *rest

    loader.shuffle_dataset = shuffle_dataset
    TrainMeter.log_iter_stats, Kinetics.__getitem__ = log_iter_stats, sample
    TrainMeter.data_toc = killing.before(TrainMeter.data_toc, lambda: killing.enter("step"))
    ValMeter.data_toc = killing.before(ValMeter.data_toc, lambda: killing.enter("eval"))
    killing.install_saving()


def train(cfg: Any) -> Any:
    """PySlowFast's ``train`` in a process of its own or in the launcher's."""
    install()
    from slowfast.models.build import MODEL_REGISTRY
    from vision.fair.slowfast.tools import train_net

    if cfg.NUM_GPUS:
        model = MODEL_REGISTRY.get(cfg.MODEL.MODEL_NAME)
        train_net.build_model = lambda cfg: DistributedDataParallel(model(cfg))
        torch.Tensor.cuda = lambda self, *args, **kwargs: self
    return train_net.train(cfg)


def main() -> None:
    connect()
    import vision.fair.slowfast.tools.run_net as upstream

    from tests.slowfast import kill_driver

    upstream.train = kill_driver.train  # ranks import it by this name
    runpy.run_module("mvitv2_slowfast.run_net", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
