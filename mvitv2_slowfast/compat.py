"""Cures that let an unmodified PySlowFast checkout run on current packages, and resume.

PySlowFast's main branch does not import, or does not run, with current torchvision and
pytorchvideo, nor without a CUDA driver. Each function here mends one break from outside: it
first looks whether the break is there, says in one line what it did, and does nothing the second
time.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from . import video_io
from .saving import cure_checkpoint_writes

logger = logging.getLogger(__name__)
applied: list[str] = []


def apply_cures(root: Path) -> None:
    """Apply what this environment needs before ``slowfast`` is imported, and after.

    Args:
        root: PySlowFast's folder, as ``locate.find_root`` gives it.
    """
    cure_distributed_names()
    cure_soft_target_loss()
    cure_detectron2()
    cure_functional_tensor()
    cure_vision_package(root)
    cure_video_reader()
    cure_cuda_calls()
    cure_top5()
    log_cure(cure_checkpoint_writes())


def log_cure(line: str | None) -> None:
    """Remember and log what a cure did; None for nothing."""
    if line is not None:
        applied.append(line)
        logger.info(line)


def _add_module(name: str, **contents: object) -> ModuleType:
    """Put a module of ``contents`` into ``sys.modules`` and on its parent, as an import would."""
    module = ModuleType(name, "Stand-in made by mvitv2_slowfast.compat.")
    module.__dict__.update(contents)
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, module)
    return module


def cure_distributed_names() -> None:
    """pytorchvideo 0.1.5 lacks five names that ``slowfast.utils.distributed`` imports."""
    from pytorchvideo.layers import distributed

    missing = [name for name in _DISTRIBUTED if not hasattr(distributed, name)]
    for name in missing:
        setattr(distributed, name, _DISTRIBUTED[name])
    if missing:
        log_cure(f"pytorchvideo.layers.distributed: added {', '.join(missing)}")


class _LocalGroup:
    """The process group of this machine's ranks, once training is distributed."""

    group: Any = None


def init_distributed_training(num_gpus: int, shard_id: int) -> None:
    """Make the process group of each machine's ``num_gpus`` ranks; ``shard_id`` is this one."""
    if num_gpus <= 1:
        return
    for shard in range(torch.distributed.get_world_size() // num_gpus):
        ranks = list(range(shard * num_gpus, (shard + 1) * num_gpus))
        group = torch.distributed.new_group(ranks)  # every rank must take part in making each
        if shard == shard_id:
            _LocalGroup.group = group


def get_local_process_group() -> Any:
    """The process group of this machine, None where training is not distributed."""
    return _LocalGroup.group


def get_local_size() -> int:
    """Number of ranks on this machine."""
    return torch.distributed.get_world_size(_LocalGroup.group) if _distributed() else 1


def get_local_rank() -> int:
    """Rank on this machine."""
    return torch.distributed.get_rank(_LocalGroup.group) if _distributed() else 0


def cat_all_gather(tensor: Tensor, local: bool = False) -> Tensor:
    """(N, ...) of every rank, or of this machine's, joined along the first axis. No gradient."""
    size = get_local_size() if local else torch.distributed.get_world_size()
    parts = [torch.empty_like(tensor) for _ in range(size)]
    torch.distributed.all_gather(parts, tensor, group=_LocalGroup.group if local else None)
    return torch.cat(parts)


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


_DISTRIBUTED: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        cat_all_gather,
        get_local_process_group,
        get_local_rank,
        get_local_size,
        init_distributed_training,
    )
}


def cure_soft_target_loss() -> None:
    """pytorchvideo 0.1.5 lacks ``losses.soft_target_cross_entropy``."""
    if "pytorchvideo.losses" in sys.modules or importlib.util.find_spec("pytorchvideo.losses"):
        return
    import pytorchvideo  # noqa: F401  the parent of what is added

    _add_module("pytorchvideo.losses", __path__=[])
    _add_module(
        "pytorchvideo.losses.soft_target_cross_entropy",
        SoftTargetCrossEntropyLoss=SoftTargetCrossEntropyLoss,
    )
    log_cure("pytorchvideo.losses: added SoftTargetCrossEntropyLoss")


class SoftTargetCrossEntropyLoss(nn.Module):
    """Cross entropy against a distribution over the classes.

    Args:
        ignore_index: class index of samples that do not count.
        reduction: "mean" over the samples that count, or "none".
        normalize_targets: divide each target by its sum.

    Raises:
        ValueError: another ``reduction``.
    """

    def __init__(
        self, ignore_index: int = -100, reduction: str = "mean", normalize_targets: bool = True
    ) -> None:
        super().__init__()
        if reduction not in ("mean", "none"):
            raise ValueError(f"reduction must be mean or none, got {reduction!r}")
        self.ignore_index, self.reduction = ignore_index, reduction
        self.normalize_targets = normalize_targets

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """(B, classes) logits; (B, classes) distributions or (B,) class indices -> loss."""
        counts = torch.ones(input.shape[0], dtype=input.dtype, device=input.device)
        if target.ndim == 1:
            counts = (target != self.ignore_index).to(input.dtype)
            indices = target.where(target != self.ignore_index, torch.zeros_like(target))
            target = nn.functional.one_hot(indices, input.shape[1])
        target = target.to(input.dtype)
        if self.normalize_targets:
            target = target / target.sum(dim=-1, keepdim=True).clamp_min(1e-5)
        loss = -(target * input.log_softmax(dim=-1)).sum(dim=-1) * counts
        return loss if self.reduction == "none" else loss.sum() / counts.sum().clamp_min(1.0)


def cure_detectron2() -> None:
    """Without detectron2: ROIAlign over torchvision; its demo code raises when used."""
    if "detectron2" in sys.modules or importlib.util.find_spec("detectron2"):
        return
    from torchvision.ops import RoIAlign

    class ROIAlign(RoIAlign):
        """detectron2's argument order over torchvision's operator, which it wraps too."""

        def __init__(
            self,
            output_size: tuple[int, int],
            spatial_scale: float,
            sampling_ratio: int,
            aligned: bool = True,
        ) -> None:
            super().__init__(output_size, spatial_scale, sampling_ratio, aligned)

    class Missing:
        """Stands in for a class or function of PySlowFast's demo, which needs detectron2."""

        def __init__(self, *args: object, **kwargs: object) -> None:
            raise ImportError("PySlowFast's demo and its video visualizer need detectron2")

    _add_module("detectron2", __path__=[], __version__="0")
    _add_module("detectron2.layers", ROIAlign=ROIAlign)
    _add_module("detectron2.model_zoo", get_config_file=Missing, get_checkpoint_url=Missing)
    _add_module("detectron2.config", get_cfg=Missing)
    _add_module("detectron2.engine", DefaultPredictor=Missing)
    _add_module("detectron2.utils", __path__=[])
    _add_module("detectron2.utils.visualizer", Visualizer=Missing)
    log_cure("detectron2 is not installed: ROIAlign from torchvision stands in; demos will not run")


def cure_functional_tensor() -> None:
    """torchvision renamed the module that pytorchvideo's augmentations import."""
    package = "torchvision.transforms"
    old, new = f"{package}.functional_tensor", f"{package}._functional_tensor"
    if old in sys.modules or importlib.util.find_spec(old):
        return
    module = importlib.import_module(new)
    sys.modules[old] = module
    sys.modules[package].functional_tensor = module  # type: ignore[attr-defined]
    log_cure(f"{old}: now an alias of {new}")


def cure_vision_package(root: Path) -> None:
    """``vision.fair.slowfast`` is the checkout's name inside its authors' own repository."""
    name = "vision.fair.slowfast"
    if name in sys.modules or _importable(name):
        return
    for parent in ("vision", "vision.fair"):
        if parent not in sys.modules and not _importable(parent):
            _add_module(parent, __path__=[])
    if "vision.fair" not in sys.modules:
        importlib.import_module("vision.fair")
    _add_module(name, __path__=[str(root)])
    log_cure(f"{name}: now stands for PYSLOWFAST_ROOT")


def _importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def cure_video_reader() -> None:
    """torchvision removed the readers behind ``DATA.DECODING_BACKEND: torchvision``."""
    import torchvision.io

    readers = {
        "_probe_video_from_memory": video_io.probe_video_from_memory,
        "_read_video_from_memory": video_io.read_video_from_memory,
    }
    missing = [name for name in readers if not hasattr(torchvision.io, name)]
    for name in missing:
        setattr(torchvision.io, name, readers[name])
    if missing:
        log_cure(f"torchvision.io: added {', '.join(missing)} over PyAV")


def cure_cuda_calls() -> None:
    """The trainer calls ``synchronize``, and its ranks ``set_device``, with or without CUDA."""
    if torch.cuda.is_available() or getattr(torch.cuda.synchronize, "mvitv2_no_op", False):
        return

    def nothing(*args: object, **kwargs: object) -> None:
        """CUDA is not available: there is nothing to wait for and no device to choose."""

    nothing.mvitv2_no_op = True  # type: ignore[attr-defined]
    torch.cuda.synchronize = torch.cuda.set_device = nothing
    log_cure("torch.cuda: synchronize and set_device do nothing, since CUDA is not available")


def cure_top5() -> None:
    """Top-5 accuracy is asked for whatever the number of classes: 5 of fewer is all of them."""
    from slowfast.utils import metrics

    try:
        metrics.topks_correct(torch.zeros(1, 2), torch.zeros(1, dtype=torch.long), (1, 5))
    except RuntimeError:
        original = metrics.topks_correct

        def topks_correct(preds: Tensor, labels: Tensor, ks: Any) -> Any:
            return original(preds, labels, [min(k, preds.shape[1]) for k in ks])

        metrics.topks_correct = topks_correct
        log_cure("slowfast.utils.metrics: top-5 of fewer than five classes counts all of them")
