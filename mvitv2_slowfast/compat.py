"""Cures that let an unmodified PySlowFast checkout run on current packages, and resume.

PySlowFast's main branch does not import, or does not run, with current torchvision and
pytorchvideo, nor without a CUDA driver. Each function here mends one break from outside: it
first looks whether the break is there, says in one line what it did, and does nothing the second
time. Importing this project's package applies what PySlowFast's models need to be imported, and
no more; ``plugin.connect``, and so the launcher, applies the rest.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from . import video_io
from .pytorchvideo_names import DISTRIBUTED, SoftTargetCrossEntropyLoss

logger = logging.getLogger(__name__)
applied: list[str] = []


def cure_model_imports() -> None:
    """What ``slowfast.models`` needs to be imported, but for detectron2 (``roi_align``)."""
    cure_distributed_names()
    cure_soft_target_loss()


def cure_trainer(root: Path) -> None:
    """What PySlowFast's loaders, trainer and tools need besides.

    A package without ``tools/`` has no trainer to mend.

    Args:
        root: PySlowFast's folder, as ``locate.find_root`` gives it.
    """
    from . import ava, decoding, saving, views, visualization
    from .roi_align import stand_in_for_detectron2

    cure_functional_tensor()
    cure_vision_package(root)
    cure_video_reader()
    cure_cuda_calls()
    with stand_in_for_detectron2():
        # Whatever names detectron2 is imported here, so that it need not be there later.
        from slowfast.visualization import predictor, video_visualizer  # noqa: F401
    cure_top5()
    log_cure(saving.cure_checkpoint_writes())
    log_cure(decoding.cure_pyav_backend())
    log_cure(visualization.cure_clip_pictures())
    log_cure(visualization.cure_class_names())
    log_cure(visualization.cure_layer_outputs())
    if has_tools(root):
        log_cure(views.cure_repeated_views())
        log_cure(ava.cure_ava_test())
        log_cure(ava.cure_ava_validation())
        log_cure(visualization.cure_clip_loops())


def has_tools(root: Path) -> bool:
    """Whether PySlowFast's folder is a checkout, with its trainer."""
    return (root / "tools" / "run_net.py").is_file()


def log_cure(line: str | None) -> None:
    """Remember and log what a cure did; None for nothing."""
    if line is not None:
        applied.append(line)
        logger.info(line)


def add_module(name: str, path: list[str] | None = None, **contents: object) -> ModuleType:
    """Put a module of ``contents`` into ``sys.modules`` and on its parent, as an import would.

    Args:
        name: with dots; what stands before the last one must have been imported.
        path: where a package's modules are, [] for nowhere; None for a module.
        contents: its names.
    """
    module = ModuleType(name, f"Stand-in made by {__name__}.")
    spec = ModuleSpec(name, None, origin=__name__, is_package=path is not None)
    if path is not None:
        spec.submodule_search_locations = module.__path__ = path
    module.__spec__, module.__package__ = spec, name if path is not None else spec.parent
    module.__dict__.update(contents)
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, module)
    return module


def cure_distributed_names() -> None:
    """pytorchvideo 0.1.5 lacks five names that ``slowfast.utils.distributed`` imports."""
    from pytorchvideo.layers import distributed

    missing = [name for name in DISTRIBUTED if not hasattr(distributed, name)]
    for name in missing:
        setattr(distributed, name, DISTRIBUTED[name])
    if missing:
        log_cure(f"pytorchvideo.layers.distributed: added {', '.join(missing)}")


def cure_soft_target_loss() -> None:
    """pytorchvideo 0.1.5 lacks ``losses.soft_target_cross_entropy``."""
    if "pytorchvideo.losses" in sys.modules or importlib.util.find_spec("pytorchvideo.losses"):
        return
    import pytorchvideo  # noqa: F401  the parent of what is added

    add_module("pytorchvideo.losses", [])
    add_module(
        "pytorchvideo.losses.soft_target_cross_entropy",
        SoftTargetCrossEntropyLoss=SoftTargetCrossEntropyLoss,
    )
    log_cure("pytorchvideo.losses: added SoftTargetCrossEntropyLoss")


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
            add_module(parent, [])
    if "vision.fair" not in sys.modules:
        importlib.import_module("vision.fair")
    add_module(name, [str(root)])
    log_cure(f"{name}: now stands for PYSLOWFAST_ROOT")


def _importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def cure_video_reader() -> None:
    """torchvision removed the readers behind ``DATA.DECODING_BACKEND: torchvision``.

    Its wheels lost the operations in C++ first: until 0.25 the names were there, and raised.
    """
    import torchvision.io

    if hasattr(torch.ops.video_reader, "probe_video_from_memory"):
        return
    readers = {
        "_probe_video_from_memory": video_io.probe_video_from_memory,
        "_read_video_from_memory": video_io.read_video_from_memory,
    }
    replaced = [n for n, reader in readers.items() if getattr(torchvision.io, n, None) != reader]
    for name in replaced:
        setattr(torchvision.io, name, readers[name])
    if replaced:
        log_cure(f"torchvision.io: {', '.join(replaced)} read with PyAV")


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
