"""The paper's image initialisation inside PySlowFast's trainer: ``MVITV2.IMAGE_CHECKPOINT``."""

from __future__ import annotations

import logging
from typing import Any

from mvitv2_core.checkpoint import load_checkpoint
from mvitv2_core.model import MViT
from mvitv2_core.path_manager import local_path

logger = logging.getLogger(__name__)
# A class token or head that the other side does not have, or of another number of classes.
MAY_DIFFER = ("head", "cls_token")


def load_image_weights(model: MViT, cfg: Any) -> None:
    """Inflate ``MVITV2.IMAGE_CHECKPOINT`` into a model that is about to be trained.

    PySlowFast's trainer builds the model first and loads its own checkpoint afterwards, so this
    is where the weights start. Nothing happens without the key, when PySlowFast only tests, or
    when it is going to resume (``TRAIN.AUTO_RESUME`` and a checkpoint in ``OUTPUT_DIR``).

    Args:
        model: its tensors are overwritten in place.
        cfg: PySlowFast's config.

    Raises:
        ValueError: ``TRAIN.CHECKPOINT_FILE_PATH`` is set too, and would overwrite all of it.
        CheckpointError: the file cannot be read, or is not of this model.
    """
    path, train = cfg.get("MVITV2", {}).get("IMAGE_CHECKPOINT", ""), cfg.get("TRAIN", {})
    if not path or not train.get("ENABLE", True):
        return
    if train.get("CHECKPOINT_FILE_PATH", ""):
        raise ValueError(
            "MVITV2.IMAGE_CHECKPOINT and TRAIN.CHECKPOINT_FILE_PATH must not both be set, got "
            f"{path!r} and {train.CHECKPOINT_FILE_PATH!r}"
        )
    if train.get("AUTO_RESUME", False) and _has_checkpoint(cfg):
        logger.info("MVITV2.IMAGE_CHECKPOINT is not read: a checkpoint in OUTPUT_DIR wins")
        return
    file = local_path(path)
    report = load_checkpoint(model, file, allow_new=MAY_DIFFER, allow_unused=MAY_DIFFER)
    logger.info("MVITV2.IMAGE_CHECKPOINT: %s", report)


def _has_checkpoint(cfg: Any) -> bool:
    """Whether PySlowFast's trainer will find a checkpoint to resume from, by its own rule."""
    try:
        from slowfast.utils import checkpoint as upstream
    except ImportError:
        return False  # no PySlowFast, so no trainer that could resume
    tasks = [cfg.TASK] + (["ssl"] if "ssl_eval" in cfg.TASK else [])
    return any(upstream.get_last_checkpoint(cfg.OUTPUT_DIR, task) is not None for task in tasks)
