"""Lets a trainer's checkpoints appear whole or not at all, whenever its process is killed.

detectron2 and PySlowFast write a checkpoint in place. Killed while writing, they leave half a
file, and PySlowFast resumes from the newest file whatever is in it; detectron2 opens the file that
names its last checkpoint for writing before it has anything to write.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# One name, so that the next write replaces what a kill left. It must not look like a checkpoint:
# PySlowFast takes any name with "checkpoint" in it for one, detectron2 any that ends in ".pth".
UNFINISHED = ".mvitv2-unfinished"


class WholeWrites:
    """A path manager like ``manager``, except that files opened for writing appear on closing.

    Until then the content is in ``UNFINISHED`` in the same folder. Paths with a scheme, such as
    "s3://bucket/file", are left to ``manager``: its stores have their own rules.

    Args:
        manager: an ``iopath.common.file_io.PathManager``, or anything with its ``open``.
    """

    def __init__(self, manager: Any) -> None:
        self._manager = manager

    def __getattr__(self, name: str) -> Any:
        return getattr(self._manager, name)

    def open(self, path: str, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        """``manager.open``; with a mode of "w" or "wb" it must be used in a ``with`` statement."""
        if not mode.startswith("w") or "://" in path:
            return self._manager.open(path, mode, *args, **kwargs)
        return self._open_whole(path, mode, *args, **kwargs)

    @contextmanager
    def _open_whole(self, path: str, mode: str, *args: Any, **kwargs: Any) -> Iterator[Any]:
        unfinished = os.path.join(os.path.dirname(path), UNFINISHED)
        try:
            with self._manager.open(unfinished, mode, *args, **kwargs) as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())  # or the new name may outlive its content in a power cut
            os.replace(unfinished, path)
        except BaseException:
            if os.path.exists(unfinished):
                os.unlink(unfinished)
            raise
