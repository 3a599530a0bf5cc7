"""A cure for PySlowFast's checkpoints, which a kill while they are written makes unusable."""

from __future__ import annotations

import functools
from typing import Any

from mvitv2_core import MViT
from mvitv2_core.path_manager import WholeWrites, check_finite


def cure_checkpoint_writes() -> str | None:
    """Let the checkpoints of this project's models appear whole; others' are left alone.

    Upstream resumes from the newest file: cut short, or full of NaN, it ends every further start
    of the run.

    Returns:
        What was done, in one line; None where it had been done already.
    """
    from slowfast.utils import checkpoint

    original = checkpoint.save_checkpoint
    if hasattr(original, "_mvitv2_whole"):
        return None

    @functools.wraps(original)
    def save_checkpoint(path_to_job: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        if not any(isinstance(module, MViT) for module in model.modules()):
            return original(path_to_job, model, *args, **kwargs)
        check_finite(model)
        manager = checkpoint.pathmgr
        checkpoint.pathmgr = WholeWrites(manager)
        try:
            return original(path_to_job, model, *args, **kwargs)
        finally:
            checkpoint.pathmgr = manager

    save_checkpoint._mvitv2_whole = True  # type: ignore[attr-defined]
    checkpoint.save_checkpoint = save_checkpoint
    return "slowfast.utils.checkpoint: MViTv2's checkpoints appear under their name when whole"
