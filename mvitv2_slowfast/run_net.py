"""PySlowFast's own ``tools/run_net.py``, unmodified, with MViTv2 registered.

    python -m mvitv2_slowfast.run_net --cfg FILE [--opts KEY VALUE ...]

The ranks that PySlowFast spawns import this file again as their main module (``__mp_main__``),
so registration and cures happen at module level. Importing the package registers the model and
cures no more than that needs.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from mvitv2_core.training import CUBLAS
from mvitv2_slowfast import compat
from mvitv2_slowfast.locate import HOW_TO_GET, PySlowFastError
from mvitv2_slowfast.plugin import connect, register


def prepare() -> None:
    """Register the model and apply every cure; exit code 2, and why, without PySlowFast."""
    try:
        register()
    except PySlowFastError:
        sys.exit(2)  # the package's import has said why
    try:
        root = connect()
    except PySlowFastError as error:
        _give_up(str(error))
    if root is None:
        _give_up(f"PySlowFast was not found. To get it: {HOW_TO_GET}.")
    if not compat.has_tools(root):
        _give_up(f"{root} has no tools/run_net.py: {HOW_TO_GET}.")


def main() -> None:
    """Say what was cured, and run PySlowFast's main with this command's arguments."""
    for line in compat.applied:
        print(f"mvitv2_slowfast: {line}", file=sys.stderr)
    from vision.fair.slowfast.tools import run_net

    run_net.launch_job = functools.partial(_launch, run_net.launch_job)
    run_net.main()


def _launch(original: Callable[..., None], cfg: Any, **rest: Any) -> None:
    """PySlowFast's ``launch_job``, after a look at what it would run into later.

    It makes process groups for several GPUs a machine alone. Otherwise each machine runs by itself:
    models of their own, at the rate for all machines, in one folder. Its AVA test, which comes
    after the training, takes one clip for each GPU.
    """
    if cfg.NUM_SHARDS > 1 and cfg.NUM_GPUS <= 1:
        _give_up(
            f"NUM_GPUS must be 2 or more with --num_shards {cfg.NUM_SHARDS}, got {cfg.NUM_GPUS}: "
            "with fewer, PySlowFast trains a model on each machine by itself. Take machines of "
            "several GPUs, or one machine without --num_shards."
        )
    if cfg.DETECTION.ENABLE and cfg.TEST.ENABLE and cfg.NUM_GPUS not in (0, cfg.TEST.BATCH_SIZE):
        _give_up(
            "TEST.BATCH_SIZE must be NUM_GPUS with DETECTION.ENABLE, one clip for each GPU, got "
            f"TEST.BATCH_SIZE {cfg.TEST.BATCH_SIZE} and NUM_GPUS {cfg.NUM_GPUS}"
        )
    if cfg.MVITV2.DETERMINISTIC:
        # PyTorch reads it with the first product on a GPU, which is that of the trainer's count of
        # FLOPs, before it asks for an optimizer. Ranks inherit it.
        os.environ.setdefault(*CUBLAS)
    original(cfg, **rest)


def _give_up(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(2)


if __name__ in ("__main__", "__mp_main__"):
    prepare()
if __name__ == "__main__":
    main()
