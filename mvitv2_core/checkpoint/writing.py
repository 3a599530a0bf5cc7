"""Writes checkpoint files: whole or not at all, and never over another file unasked."""

from __future__ import annotations

import os
import pickle
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .report import CheckpointError

AUTHOR = "mvitv2"


def write_checkpoint(
    path: str | os.PathLike[str],
    state: Mapping[str, Tensor],
    format: str = "image",
    force: bool = False,
) -> None:
    """Write tensors as the ecosystem of ``format`` expects its files.

    ``.pyth``, ``.pth`` and ``.pt`` are torch files: the weights lie under ``model_state`` for the
    image repository and PySlowFast, under ``model`` for detectron2, at the top for timm and
    torchvision. ``.pkl`` is detectron2's model zoo. ``.safetensors`` holds names and tensors
    alone.

    Args:
        path: file to write; its directory must exist.
        state: tensors by the format's names.
        format: a key of ``FORMATS``.
        force: replace an existing file.

    Raises:
        CheckpointError: the file exists, cannot be written, or its ending does not suit.
    """
    file = os.fspath(path)
    check_target(file, format, force)
    suffix = Path(file).suffix.lower()
    state = {name: _alone(value) for name, value in state.items()}
    if suffix in (".pyth", ".pth", ".pt"):
        content = _content(state, format)

        def write(target: str) -> None:
            torch.save(content, target)

    elif suffix == ".safetensors":
        try:
            from safetensors.torch import save_file
        except ImportError as error:
            raise CheckpointError(
                f"{file}: writing it needs safetensors (pip install safetensors)"
            ) from error

        def write(target: str) -> None:
            save_file(state, target, metadata={"format": "pt"})

    else:
        arrays = {name: value.numpy() for name, value in state.items()}

        def write(target: str) -> None:
            with open(target, "wb") as stream:
                pickle.dump(_content(arrays, format), stream, protocol=4)

    _write_whole(file, write)


def check_target(path: str | os.PathLike[str], format: str, force: bool = False) -> None:
    """Raise CheckpointError where ``write_checkpoint`` could not write."""
    file = os.fspath(path)
    allowed = (".pyth", ".pth", ".pt", ".safetensors") + (".pkl",) * (format == "detectron2")
    if Path(file).suffix.lower() not in allowed:
        raise CheckpointError(f"{file}: for {format} the name must end in {', '.join(allowed)}")
    if os.path.isdir(file):
        raise CheckpointError(f"{file}: is a directory")
    if os.path.lexists(file) and not force:
        raise CheckpointError(f"{file}: exists already; use --force (force=True) to replace it")


def _write_whole(file: str, write: Callable[[str], None]) -> None:
    """Let ``write`` fill a temporary file beside ``file``, then rename it."""
    temporary = ""
    try:
        handle, temporary = tempfile.mkstemp(
            prefix=".mvitv2-", suffix=Path(file).suffix, dir=os.path.dirname(file) or "."
        )
        os.close(handle)
        write(temporary)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)  # mkstemp's files are the owner's alone
        os.replace(temporary, file)
        temporary = ""
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be written: {error.strerror or error}") from error
    finally:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)


def _content(state: Mapping[str, Any], format: str) -> dict[str, Any]:
    if format in ("image", "slowfast"):
        return {"model_state": dict(state)}
    if format == "detectron2":
        # The last key makes detectron2 match names by their endings, as for its own backbones.
        return {"model": dict(state), "__author__": AUTHOR, "matching_heuristics": True}
    return dict(state)


def _alone(value: Tensor) -> Tensor:
    """Without the rest of a larger tensor's memory, which torch would write as well."""
    value = value.detach().contiguous()
    whole = value.untyped_storage().nbytes() == value.numel() * value.element_size()
    return value if whole else value.clone()
