"""An average of the weights, accumulation and more under PySlowFast's unmodified trainer.

The trainer reaches its parts as ``module.function``: ``plugin.connect`` puts a function around
six of them. For models that are not this project's, and for keys of the node ``MVITV2`` that are
left at their defaults, each does what it did.
"""

from __future__ import annotations

import functools
import logging
import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset, Subset

from mvitv2_core.checkpoint import CheckpointError, read_checkpoint
from mvitv2_core.checkpoint.files import check_sums
from mvitv2_core.checks import check_flag, check_whole, refuse
from mvitv2_core.training import (
    EMA_KEY,
    Accumulation,
    Average,
    average_of,
    train_deterministically,
)

from .model import MViTv2

logger = logging.getLogger(__name__)


def connect_trainer() -> None:
    """Let PySlowFast's trainer read the training keys of ``MVITV2``; once is enough."""
    from slowfast.datasets import loader
    from slowfast.models import optimizer
    from slowfast.utils import checkpoint
    from vision.fair.slowfast.tools import train_net

    _wrap(optimizer, "construct_optimizer", _prepare)
    _wrap(train_net, "train_epoch", _train_epoch)
    _wrap(checkpoint, "save_checkpoint", functools.partial(_save, checkpoint))
    _wrap(checkpoint, "load_checkpoint", functools.partial(_load, checkpoint))
    _wrap(checkpoint, "load_test_checkpoint", functools.partial(_load_test, checkpoint))
    _wrap(loader, "build_dataset", _build_dataset)


def _wrap(module: Any, name: str, around: Callable[..., Any]) -> None:
    """Let ``around(original, *arguments)`` stand for a module's function."""
    original = getattr(module, name)
    if hasattr(original, "_mvitv2_training"):
        return
    wrapped = functools.wraps(original)(functools.partial(around, original))
    wrapped._mvitv2_training = True  # type: ignore[attr-defined]
    setattr(module, name, wrapped)


def _ours(model: nn.Module) -> MViTv2 | None:
    """The model, out of DistributedDataParallel, if it is this project's."""
    model = getattr(model, "module", model)
    return model if isinstance(model, MViTv2) else None


def check_training(cfg: Any) -> None:
    """ValueError for a training key out of range, or beside one that it does not go with."""
    node = cfg.MVITV2
    check_whole("MVITV2.ACCUMULATE", node.ACCUMULATE)
    check_whole("MVITV2.VAL_SAMPLE", node.VAL_SAMPLE, least=0)
    check_flag("MVITV2.DETERMINISTIC", node.DETERMINISTIC)
    if node.BFLOAT16 and cfg.TRAIN.MIXED_PRECISION:
        refuse("TRAIN.MIXED_PRECISION (float16)", "False with MVITV2.BFLOAT16", True)
    if cfg.TRAIN.MIXED_PRECISION and cfg.MODEL.LOSS_FUNC == "bce":
        # The trainer takes the loss under autocast too, where PyTorch refuses this one.
        must = "False with MODEL.LOSS_FUNC bce, AVA's (MVITV2.BFLOAT16 is the trunk's alone)"
        refuse("TRAIN.MIXED_PRECISION (float16)", must, True)
    if cfg.SOLVER.LARS_ON and (node.ACCUMULATE > 1 or node.EMA_DECAY):
        refuse("SOLVER.LARS_ON", "False with MVITV2.ACCUMULATE or MVITV2.EMA_DECAY", True)


def _prepare(original: Any, model: nn.Module, cfg: Any) -> Any:
    ours = _ours(model)
    if ours is None:
        return original(model, cfg)
    check_training(cfg)
    optimizer, node = original(model, cfg), cfg.MVITV2
    if node.EMA_DECAY and cfg.SOLVER.MAX_EPOCH:  # of no epochs it is a test: see _load
        Average(ours, optimizer, node.EMA_DECAY)
    if node.ACCUMULATE > 1:
        Accumulation(optimizer, node.ACCUMULATE, _clip(ours, cfg.SOLVER))
    if node.DETERMINISTIC:
        train_deterministically()
        random.seed(cfg.RNG_SEED)  # the trainer seeds NumPy and PyTorch, its transforms draw here
    return optimizer


def _clip(model: nn.Module, solver: Any) -> Callable[[], object] | None:
    """What the trainer does to gradients, for those of several batches together."""
    clip = torch.nn.utils
    if solver.CLIP_GRAD_VAL:
        return lambda: clip.clip_grad_value_(model.parameters(), solver.CLIP_GRAD_VAL)
    if solver.CLIP_GRAD_L2NORM:
        return lambda: clip.clip_grad_norm_(model.parameters(), solver.CLIP_GRAD_L2NORM)
    return None


def _train_epoch(
    original: Any,
    train_loader: Any,
    model: nn.Module,
    optimizer: Any,
    scaler: Any,
    train_meter: Any,
    cur_epoch: int,
    cfg: Any,
    writer: Any = None,
) -> Any:
    if _ours(model) is None:
        return original(train_loader, model, optimizer, scaler, train_meter, cur_epoch, cfg, writer)
    if cfg.MVITV2.ACCUMULATE > 1:
        cfg = cfg.clone()  # each batch's gradients alone are not clipped: see _clip
        cfg.SOLVER.CLIP_GRAD_VAL = cfg.SOLVER.CLIP_GRAD_L2NORM = None
    loader = _Counted(train_loader)
    try:
        return original(loader, model, optimizer, scaler, train_meter, cur_epoch, cfg, writer)
    except RuntimeError as error:
        if "NaN losses" not in str(error):
            raise
        step = f"iteration {loader.given} of {len(loader)} in epoch {cur_epoch + 1}"
        raise FloatingPointError(f"the loss became NaN at {step}") from error


class _Counted:
    """A loader that knows how many batches it has given: the trainer names no step."""

    def __init__(self, loader: Any) -> None:
        self.loader, self.given = loader, 0

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            self.given += 1
            yield batch


class _TorchWithAverage:
    """``torch``, but for a ``save`` that puts an average into what it saves."""

    def __init__(self, average: Average) -> None:
        self._average = average

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def save(self, content: dict[str, Any], file: Any) -> None:
        torch.save({**content, EMA_KEY: self._average.state_dict()}, file)


def _save(
    checkpoint: Any, original: Any, job: Any, model: nn.Module, *args: Any, **kwargs: Any
) -> Any:
    average = average_of(model)
    if average is None:
        return original(job, model, *args, **kwargs)
    checkpoint.torch = _TorchWithAverage(average)
    try:
        return original(job, model, *args, **kwargs)
    finally:
        checkpoint.torch = torch


def _load(
    checkpoint: Any,
    original: Any,
    path: str,
    model: nn.Module,
    data_parallel: bool = True,
    optimizer: Any = None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    ours = _ours(model)
    if ours is not None:
        check_sums(checkpoint.pathmgr.get_local_path(path))
    epoch = original(path, model, data_parallel, optimizer, *args, **kwargs)
    if ours is None or not ours.adapter.ema_decay or kwargs.get("convert_from_caffe2"):
        return epoch
    average = average_of(ours)
    if average is not None and epoch < 0:
        return epoch  # a start from other weights, not a run that goes on
    try:
        file = checkpoint.pathmgr.get_local_path(path)
        state = read_checkpoint(file, ema=True).state
    except CheckpointError as error:
        logger.warning("MVITV2.EMA_DECAY: the weights themselves are taken: %s", error)
        return epoch
    if average is not None:
        average.load_state_dict(state)
    else:  # a test has the model alone, and takes the average as its weights
        ours.load_state_dict(state)
        logger.info("MVITV2.EMA_DECAY: the average of the weights in %s is tested", path)
    return epoch


def _load_test(checkpoint: Any, original: Any, cfg: Any, model: nn.Module) -> Any:
    """Upstream says at level INFO, among other lines, what it tests that was not trained here."""
    named, start = cfg.TEST.CHECKPOINT_FILE_PATH, cfg.TRAIN.CHECKPOINT_FILE_PATH
    if _ours(model) is not None and not named and not checkpoint.has_checkpoint(cfg.OUTPUT_DIR):
        logger.warning(
            "%s tested: OUTPUT_DIR %s has no checkpoint, and TEST.CHECKPOINT_FILE_PATH names none",
            f"what training starts from, {start} (TRAIN.CHECKPOINT_FILE_PATH), is"
            if start
            else "random weights are",
            cfg.OUTPUT_DIR,
        )
    return original(cfg, model)


def _build_dataset(original: Any, name: str, cfg: Any, split: str) -> Dataset:
    dataset, count = original(name, cfg, split), cfg.MVITV2.VAL_SAMPLE
    if split != "val" or not count or count >= len(dataset):
        return dataset
    if cfg.DETECTION.ENABLE:
        refuse("MVITV2.VAL_SAMPLE", "0 with DETECTION.ENABLE: AVA samples by itself", count)
    return Subset(dataset, [index * len(dataset) // count for index in range(count)])
