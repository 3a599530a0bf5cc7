"""detectron2's side of ``tests.killing``: an environment hook, data by iteration, a LazyConfig.

As ``DETECTRON2_ENV_MODULE`` it serves the trainers of YAML files, ``DefaultTrainer`` included,
whose sampler starts afresh when a run is resumed; kill_config.py serves lazyconfig_train_net.py.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import count
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from tests import killing


class Batches(IterableDataset):
    """This rank's share of every batch from iteration ``start`` on, each drawn by its number."""

    def __init__(self, dataset: list, mapper: Any, total_batch_size: int, start: int) -> None:
        from detectron2.utils import comm

        self.dataset, self.mapper = dataset, mapper
        self.size, self.start = total_batch_size, start
        self.rank, self.ranks = comm.get_rank(), comm.get_world_size()

    def __iter__(self) -> Iterator[list]:
        from detectron2.utils.env import seed_all_rng

        for iteration in count(self.start):
            seed_all_rng(1 + iteration)
            chosen = np.random.permutation(len(self.dataset))[: self.size]
            yield [self.sample(index) for index in chosen[self.rank :: self.ranks]]

    def sample(self, index: int) -> dict:
        sample = self.mapper(copy.deepcopy(self.dataset[index]))
        if get_worker_info() is not None and killing.enter("worker"):
            killing.kill()
        if killing.enter("nan"):
            sample["image"] = torch.full_like(sample["image"], torch.nan, dtype=torch.float32)
        return sample


class ByIteration:
    """Batches that depend on the trainer's iteration alone, as do all random choices after them.

    Args:
        num_workers: 1 to make them in a process of their own.
    """

    def __init__(
        self, dataset: list, mapper: Any, total_batch_size: int, num_workers: int = 0
    ) -> None:
        self.arguments, self.workers = (dataset, mapper, total_batch_size), num_workers

    def __iter__(self) -> Iterator[list]:
        from detectron2.utils.env import seed_all_rng
        from detectron2.utils.events import get_event_storage

        start = get_event_storage().iter
        batches = Batches(*self.arguments, start)
        loader = DataLoader(batches, None, num_workers=self.workers, collate_fn=list)
        for iteration, batch in enumerate(loader, start):
            seed_all_rng(1 + iteration)
            killing.enter("step")
            yield batch


def build_train_loader(cfg: Any) -> ByIteration:
    """``DefaultTrainer.build_train_loader`` in the order of ``ByIteration``."""
    from detectron2.data import DatasetMapper, get_detection_dataset_dicts

    dataset = get_detection_dataset_dicts(cfg.DATASETS.TRAIN)
    return ByIteration(dataset, DatasetMapper(cfg, is_train=True), cfg.SOLVER.IMS_PER_BATCH)


def install() -> None:
    """Record and kill in detectron2's trainers."""
    from detectron2.engine import DefaultTrainer, SimpleTrainer
    from detectron2.evaluation import COCOEvaluator
    from fvcore.common.checkpoint import Checkpointer

    write = SimpleTrainer._write_metrics

    def write_metrics(self: Any, losses: dict, *args: Any, **kwargs: Any) -> None:
        killing.record(self.iter, sum(loss.item() for loss in losses.values()))
        write(self, losses, *args, **kwargs)

    SimpleTrainer._write_metrics = write_metrics
    DefaultTrainer.build_train_loader = staticmethod(build_train_loader)
    COCOEvaluator.reset = killing.before(COCOEvaluator.reset, lambda: killing.enter("eval"))
    killing.install_saving()
    killing.install_tagging(Checkpointer)


def setup_environment() -> None:
    """detectron2's hook: MViTv2, the toy data, and this."""
    from projects.detection.toy_env import setup_environment as setup

    setup()
    install()
