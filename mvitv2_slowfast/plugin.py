"""Plugs MViTv2 into PySlowFast: cures, registration, and the config node ``MVITV2``."""

from __future__ import annotations

from pathlib import Path

from .compat import apply_cures
from .locate import HOW_TO_GET, PySlowFastError, find_root
from .model import MViTv2


def connect() -> Path | None:
    """Register ``MViTv2`` with PySlowFast, if there is one. Doing it again changes nothing.

    Returns:
        PySlowFast's folder, or None where there is no PySlowFast.

    Raises:
        PySlowFastError: there is one that cannot be used; the message says what to do.
    """
    root = find_root()
    if root is None:
        return None
    try:
        apply_cures(root)
        from slowfast.config import defaults
        from slowfast.models.build import MODEL_REGISTRY
    except ImportError as error:
        raise PySlowFastError(
            f"PySlowFast in {root} cannot be imported: {error}. Install what is missing; "
            f"for a fresh start: {HOW_TO_GET}."
        ) from error
    if MViTv2.__name__ not in MODEL_REGISTRY:
        MODEL_REGISTRY.register(MViTv2)
    if "MVITV2" not in defaults._C:
        # Path of an image checkpoint to inflate before training; "" for none.
        defaults._C.MVITV2 = defaults.CfgNode({"IMAGE_CHECKPOINT": ""})
    return root
