"""Writes checkpoint files as each ecosystem expects its own, whole or not at all."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .files import NEEDED, TORCH, whole_file
from .formats import wrapped
from .report import CheckpointError


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
        path: file to write; its directory must exist, itself only with ``force``.
        state: tensors by the names of ``format``, a key of ``FORMATS``.

    Raises:
        CheckpointError: the file exists, cannot be written, or its ending does not suit: a
            ``.pkl`` holds NumPy's arrays, which know no bfloat16.
    """
    file = os.fspath(path)
    check_target(file, format, force)
    suffix = Path(file).suffix.lower()
    # Copies: torch would write all of the memory that a slice is part of.
    state = {name: value.detach().contiguous().clone() for name, value in state.items()}
    try:
        with whole_file(file) as target:
            if suffix == ".safetensors":
                _write_safetensors(state, target)
            elif suffix == ".pkl":
                arrays = _arrays(file, state)
                with open(target, "wb") as stream:
                    pickle.dump(wrapped(arrays, format), stream, protocol=4)
            else:
                # To a stream, whose errors say what is the matter: given a name, torch does not.
                with open(target, "wb") as stream:
                    torch.save(wrapped(state, format), stream)
    except ImportError as error:
        missing = NEEDED if suffix == ".safetensors" else "a .pkl needs NumPy: pip install numpy"
        raise CheckpointError(f"{file}: {missing}") from error
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be written: {error.strerror or error}") from error


def _arrays(file: str, state: dict[str, Tensor]) -> dict[str, Any]:
    import numpy  # noqa: F401 -- a tensor's .numpy() would not name what is missing

    arrays = {}
    for name, value in state.items():
        try:
            arrays[name] = value.cpu().numpy()
        except TypeError as error:
            kind = str(value.dtype).removeprefix("torch.")
            cause = f"a .pkl holds no {kind}, as {name} is: write .pth or .safetensors"
            raise CheckpointError(f"{file}: {cause}") from error
    return arrays


def _write_safetensors(state: dict[str, Tensor], target: str) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(state, target, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(str(error)) from error


def check_target(path: str | os.PathLike[str], format: str, force: bool = False) -> None:
    """Raise CheckpointError where ``write_checkpoint`` could not write."""
    file = os.fspath(path)
    allowed = (*TORCH, ".safetensors") + (".pkl",) * (format == "detectron2")
    if Path(file).suffix.lower() not in allowed:
        raise CheckpointError(f"{file}: for {format} the name must end in {', '.join(allowed)}")
    if os.path.isdir(file):
        raise CheckpointError(f"{file}: is a directory")
    if os.path.lexists(file) and not force:
        raise CheckpointError(f"{file}: exists already; use --force (force=True) to replace it")
