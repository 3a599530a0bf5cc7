"""Official weights as paths, ``mvitv2://NAME``, for trainers that open files through iopath.

iopath is imported where it is needed only, and never without a trainer that needs it itself.
"""

from __future__ import annotations

from typing import Any

from .hub import OFFICIAL, cached_path, official_path

PREFIX = "mvitv2://"


def local_path(path: str) -> str:
    """The file behind a path.

    Args:
        path: ``mvitv2://NAME`` with a name of the official weights (MODEL_ZOO.md), or any other
            path, which is returned as it is.

    Returns:
        A path in torch.hub's cache. The file is downloaded on first use, by one process on a
        file system while others wait for it, for up to an hour.

    Raises:
        CheckpointError: unknown name, or the download failed.
        ImportError: there is something to download, and no iopath.
    """
    if not path.startswith(PREFIX):
        return path
    name = path.removeprefix(PREFIX)
    if name not in OFFICIAL:
        return official_path(name)  # raises, naming those that there are
    target = cached_path(name)
    if target.is_file():
        return str(target)  # no lock, for caches that cannot be written to
    from iopath.common.file_io import file_lock

    with file_lock(str(target)):
        return official_path(name)


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
