"""detectron2's side of ``tests.killing``: an environment hook, data by iteration, a LazyConfig.

As ``DETECTRON2_ENV_MODULE`` it serves the trainers of YAML files, ``DefaultTrainer`` included,
whose sampler starts afresh when a run is resumed; kill_config.py serves lazyconfig_train_net.py.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np

from tests import killing


class ByIteration:
    """Batches that depend on the trainer's iteration alone, as do all random choices after them."""

    def __init__(self, dataset: list, mapper: Any, total_batch_size: int) -> None:
        self.dataset, self.mapper, self.size = dataset, mapper, total_batch_size

    def __iter__(self) -> Iterator[list]:
        from detectron2.utils.env import seed_all_rng
        from detectron2.utils.events import get_event_storage

        while True:
            seed_all_rng(1 + get_event_storage().iter)
            killing.enter("step")
            chosen = np.random.permutation(len(self.dataset))[: self.size]
            yield [self.mapper(copy.deepcopy(self.dataset[i])) for i in chosen]


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
