"""Plugs MViTv2 into PySlowFast: registration, the config node ``MVITV2``, weights, cures."""

from __future__ import annotations

from pathlib import Path

from mvitv2_core.path_manager import register_with

from . import compat
from .locate import HOW_TO_GET, PySlowFastError, find_root
from .model import MViTv2
from .roi_align import stand_in_for_detectron2

# The node MVITV2 and its defaults.
KEYS = {
    "IMAGE_CHECKPOINT": "",  # path of an image checkpoint to inflate before training; "" for none
    "WINDOW_SIZE": [],  # rows [block, size in tokens]: queries attend in windows; the rest to all
    "COMPILE": False,  # compile each block (docs/gpu.md)
    # Training (training.py, docs/training.md).
    "EMA_DECAY": 0.0,  # of the average of the weights, which is validated and tested; 0 for none
    "ACCUMULATE": 1,  # batches to an optimizer step
    "BFLOAT16": False,  # autocast in training, instead of TRAIN.MIXED_PRECISION's float16
    "DETERMINISTIC": False,  # deterministic algorithms alone; the seed is RNG_SEED
    "VAL_SAMPLE": 0,  # validate on so many clips, evenly from the list; 0 for all of them
}


def register() -> Path | None:
    """Register ``MViTv2`` with PySlowFast, if there is one. Doing it again changes nothing.

    This is what importing the package does. It changes nothing outside of PySlowFast but for what
    its models need to be imported: names that pytorchvideo lacks, and its folder on ``sys.path``.

    Returns:
        PySlowFast's folder, or None where there is no PySlowFast.

    Raises:
        PySlowFastError: there is one that cannot be used; the message says what to do.
    """
    root = find_root()
    if root is None:
        return None
    try:
        compat.cure_model_imports()
        with stand_in_for_detectron2() as line:
            from slowfast.config import defaults
            from slowfast.models.build import MODEL_REGISTRY
            from slowfast.utils.env import checkpoint_pathmgr, pathmgr
    except ImportError as error:
        raise _cannot_be_imported(root, error) from error
    if MViTv2.__name__ not in MODEL_REGISTRY:
        compat.log_cure(line)
        MODEL_REGISTRY.register(MViTv2)
    if "MVITV2" not in defaults._C:
        defaults._C.MVITV2 = defaults.CfgNode(KEYS)
    for manager in (pathmgr, checkpoint_pathmgr):
        register_with(manager)
    return root


def connect() -> Path | None:
    """``register``, and let PySlowFast's loaders, trainer and tools run: what the launcher does.

    Its trainer then reads the training keys of ``MVITV2``, and checks the files that it resumes
    from. For programs of your own that use more of PySlowFast than its models. Doing it again
    changes nothing. What it mends in other packages, such as ``torch.cuda.synchronize`` without
    CUDA, it mends for the whole process.

    Returns, raises:
        As ``register``.
    """
    root = register()
    if root is None:
        return None
    try:
        compat.cure_trainer(root)
        if compat.has_tools(root):
            from .training import connect_trainer

            connect_trainer()
    except ImportError as error:
        raise _cannot_be_imported(root, error) from error
    return root


def _cannot_be_imported(root: Path, error: ImportError) -> PySlowFastError:
    return PySlowFastError(
        f"PySlowFast in {root} cannot be imported: {error}. Install what is missing; "
        f"for a fresh start: {HOW_TO_GET}."
    )
