"""``DETECTRON2_ENV_MODULE`` of ranks without GPUs: toy data by iteration, recorded losses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tests import machines


def setup_environment() -> None:
    """detectron2's hook: MViTv2, the toy data, and what these tests need."""
    from projects.detection.toy_env import setup_environment as setup

    setup()
    install()


def install() -> None:
    """Put the model on the CPU under DDP, and let data depend on iteration and rank alone.

    detectron2 names the rank's GPU to DistributedDataParallel, whatever the model's device. After
    its first step DDP puts gradients into other buckets, and gloo then adds those of four ranks in
    another order: a resumed run would equal an uninterrupted one only to rounding. Where it looks
    for unused parameters, it leaves the buckets as they are.
    """
    from functools import partial

    from detectron2.engine import DefaultTrainer, SimpleTrainer, defaults
    from detectron2.utils import comm

    options = {"device_ids": None, "find_unused_parameters": True}
    defaults.create_ddp_model = partial(defaults.create_ddp_model, **options)
    DefaultTrainer.build_train_loader = staticmethod(build_train_loader)
    write = SimpleTrainer._write_metrics

    def write_metrics(self: Any, losses: dict, *args: Any, **kwargs: Any) -> None:
        machines.record(comm.get_rank(), self.iter, sum(loss.item() for loss in losses.values()))
        write(self, losses, *args, **kwargs)

    SimpleTrainer._write_metrics = write_metrics


def build_train_loader(cfg: Any) -> RankByIteration:
    from detectron2.data import DatasetMapper, get_detection_dataset_dicts

    dataset = get_detection_dataset_dicts(cfg.DATASETS.TRAIN)
    return RankByIteration(dataset, DatasetMapper(cfg, is_train=True), cfg.SOLVER.IMS_PER_BATCH)


class RankByIteration:
    """This rank's part of batches that depend on the trainer's iteration alone."""

    def __init__(self, dataset: list, mapper: Any, total_batch_size: int) -> None:
        self.dataset, self.mapper, self.size = dataset, mapper, total_batch_size

    def __iter__(self) -> Iterator[list]:
        import copy

        from detectron2.utils import comm
        from detectron2.utils.env import seed_all_rng
        from detectron2.utils.events import get_event_storage

        rank, ranks = comm.get_rank(), comm.get_world_size()
        while True:
            step = get_event_storage().iter
            chosen = np.random.default_rng(step).permutation(len(self.dataset))[: self.size]
            seed_all_rng(1 + 1000 * step + rank)
            yield [self.mapper(copy.deepcopy(self.dataset[i])) for i in chosen[rank::ranks]]
