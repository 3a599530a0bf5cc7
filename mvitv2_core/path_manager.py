"""What trainers' path managers (iopath's) are lent: official weights as ``mvitv2://NAME``, and
files that appear whole.

iopath is imported where it is needed only, and never without a trainer that needs it itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from .checkpoint.files import not_finite, whole_file
from .checkpoint.hub import OFFICIAL, PREFIX, official_path
from .checkpoint.report import listing

# One name, which the next write replaces after a kill, and which no trainer takes for a
# checkpoint's: PySlowFast looks for "checkpoint" in names, detectron2 for ".pth" at their end.
UNFINISHED = ".mvitv2-unfinished"


def local_path(path: str) -> str:
    """The file behind a path.

    Args:
        path: ``mvitv2://NAME`` with a name of the official weights (MODEL_ZOO.md), or any other
            path, which is returned as it is.

    Returns:
        A path in torch.hub's cache. The file is downloaded on first use, by one process on a
        file system while others wait for it.

    Raises:
        CheckpointError: unknown name, or the download failed.
    """
    return official_path(path.removeprefix(PREFIX)) if path.startswith(PREFIX) else path


def register_with(manager: Any) -> None:
    """Let an iopath ``PathManager`` read ``mvitv2://NAME``; doing it again changes nothing."""
    from iopath.common.file_io import PathHandler

    class OfficialWeights(PathHandler):
        """Reads official weights by name."""

        def _get_supported_prefixes(self) -> list[str]:
            return [PREFIX]

        def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
            return local_path(path)

        def _exists(self, path: str, **kwargs: Any) -> bool:
            return path.removeprefix(PREFIX) in OFFICIAL

        _isfile = _exists

        def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> Any:
            if set(mode) & set("wax+"):
                raise OSError(f"{path}: official weights can only be read, got mode {mode!r}")
            return open(local_path(path), mode, buffering)

    manager.register_handler(OfficialWeights())


def check_finite(model: nn.Module) -> None:
    """FloatingPointError for NaN or infinite weights, from which no run could go on."""
    refuse_broken(not_finite(dict(model.named_parameters())))


def refuse_broken(broken: list[str]) -> None:
    """FloatingPointError where weights, by their names, are NaN or infinite."""
    if broken:
        raise FloatingPointError(
            f"no checkpoint is written, and the last one stands: NaN or infinite values in "
            f"{listing(broken)}"
        )


class WholeWrites:
    """A path manager like ``manager``, except that files opened for writing appear on closing.

    detectron2 and PySlowFast write in place: killed, they leave half a checkpoint, from which
    PySlowFast resumes, or (detectron2) an empty file for the last checkpoint's name. Paths with
    a scheme, such as "s3://bucket/file", are left to ``manager``: its stores have their own rules.

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
        with (
            whole_file(path, UNFINISHED) as unfinished,
            self._manager.open(unfinished, mode, *args, **kwargs) as stream,
        ):
            yield stream
