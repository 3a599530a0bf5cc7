"""Reads checkpoint files. Nothing of a file is ever run: tensors and plain values come out, or a
``CheckpointError`` that names the file and the cause."""

from __future__ import annotations

import errno
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .report import CheckpointError, listing
from .unpickle import RefusedGlobal, load_torch, read_pickle

# Where the ecosystems keep the weights inside of what they save.
NESTS = ("model_state", "state_dict", "model")
WRAPPER = "module."  # DataParallel's and DistributedDataParallel's
PICKLES = (".pkl", ".pickle")
SUFFIXES = (".pyth", ".pth", ".pt", ".bin", ".safetensors", *PICKLES)


@dataclass(frozen=True)
class Checkpoint:
    """The weights of one file.

    Args:
        file: its path.
        container: "torch", "pickle" or "safetensors".
        nest: the key that the weights lay under, "" where they lay at the top.
        state: tensors by the file's names.
        beside: names of what lay beside the weights (epoch, optimizer, ...).
    """

    file: str
    container: str
    nest: str
    state: dict[str, Tensor]
    beside: tuple[str, ...] = ()


def read_checkpoint(path: str | os.PathLike[str], check: bool = True) -> Checkpoint:
    """Read the weights of a ``.pyth``, ``.pth``, ``.pt``, ``.pkl`` or ``.safetensors`` file.

    Tensors of current torch files are mapped, not copied, into memory.

    Args:
        path: the file.
        check: refuse tensors that cannot be weights: not floating point, NaN or infinite.

    Raises:
        CheckpointError: the file is missing, damaged, of another kind, or asks for objects other
            than tensors, arrays and plain containers.
    """
    file = os.fspath(path)
    container, content = _read(file)
    nest, state, beside = _unwrap(file, content)
    if check:
        check_tensors(file, state)
    return Checkpoint(file, container, nest, state, beside)


def read_content(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    """Everything that a checkpoint file holds, read as ``read_checkpoint`` reads it.

    Raises:
        CheckpointError: as there.
    """
    return _read(os.fspath(path))[1]


def _read(file: str) -> tuple[str, Mapping[Any, Any]]:
    container, content = _read_any(file)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{file}: holds a {type(content).__name__}, not tensors by name")
    return container, content


def _read_any(file: str) -> tuple[str, Any]:
    path = Path(file)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        what = "is a directory" if path.is_dir() else "no checkpoint by its name"
        raise CheckpointError(
            f"{file}: {what}: a file must end in {', '.join(SUFFIXES)}, or be one of the "
            f"official names in MODEL_ZOO.md"
        )
    try:
        if path.is_dir():
            raise CheckpointError(f"{file}: is a directory, not a checkpoint file")
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if size == 0:
                raise CheckpointError(f"{file}: the file is empty")
            if suffix == ".safetensors":
                return "safetensors", _read_safetensors(file)
            if suffix in PICKLES and stream.read(4) != b"PK\x03\x04":
                stream.seek(0)
                return "pickle", read_pickle(stream, size)
        return "torch", load_torch(file, mmap=zipfile.is_zipfile(file))
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise CheckpointError(f"{file}: no such file") from error
    except RefusedGlobal as error:
        raise CheckpointError(
            f"{file}: asks for {error}, which a checkpoint has no need of; nothing of it was run"
        ) from error
    except Exception as error:  # damaged files make readers raise anything
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # EINVAL: a wild seek
            raise CheckpointError(f"{file}: cannot be read: {error.strerror or error}") from error
        raise CheckpointError(f"{file}: damaged or not a checkpoint: {_first(error)}") from error


def _first(error: Exception) -> str:
    # torch's first lines advise to read such files unsafely
    lines = str(error).rpartition("WeightsUnpickler error:")[2].strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _read_safetensors(file: str) -> dict[str, Tensor]:
    try:
        from safetensors import safe_open
    except ImportError as error:
        raise CheckpointError(
            f"{file}: reading it needs safetensors (pip install safetensors)"
        ) from error
    with safe_open(file, framework="pt", device="cpu") as handle:
        return {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118


def _unwrap(
    file: str, content: Mapping[Any, Any]
) -> tuple[str, dict[str, Tensor], tuple[str, ...]]:
    nests = [nest for nest in NESTS if isinstance(content.get(nest), Mapping)]
    if len(nests) > 1:
        raise CheckpointError(f"{file}: holds weights under each of {', '.join(nests)}")
    nest = nests[0] if nests else ""
    beside = tuple(str(key) for key in content if key != nest) if nest else ()
    return nest, plain_state(file, content[nest] if nest else content), beside


def plain_state(file: str, content: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Tensors by name from tensors or arrays by name, without a wrapper's ``module.``.

    Raises:
        CheckpointError: something else than tensors by name, or nothing.
    """
    state: dict[str, Tensor] = {}
    for name, value in content.items():
        if not isinstance(name, str):
            raise CheckpointError(f"{file}: holds a tensor named {name!r}, which is no text")
        if type(value).__module__ == "numpy" and type(value).__name__ == "ndarray":
            value = _tensor(file, name, value)
        if not isinstance(value, Tensor):
            kind = type(value).__name__
            raise CheckpointError(f"{file}: {name!r} is a {kind}, not a tensor")
        state[name] = value.detach()
    if not state:
        raise CheckpointError(f"{file}: holds no tensors")
    if all(name.startswith(WRAPPER) for name in state):
        state = {name.removeprefix(WRAPPER): value for name, value in state.items()}
    return state


def _tensor(file: str, name: str, array: Any) -> Tensor:
    if array.dtype.kind not in "fiub":
        raise CheckpointError(f"{file}: {name!r} is an array of {array.dtype}, not of numbers")
    array = array.astype(array.dtype.newbyteorder("="), order="C", copy=False)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def check_tensors(file: str, state: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError where a tensor cannot be a weight."""
    for name, value in state.items():
        if value.layout != torch.strided or value.is_quantized or value.device.type == "meta":
            raise CheckpointError(f"{file}: {name!r} is not a plain dense tensor")
    wrong = [f"{n} ({v.dtype})" for n, v in state.items() if not v.dtype.is_floating_point]
    if wrong:
        raise CheckpointError(f"{file}: weights must be floating point, not so {listing(wrong)}")
    broken = [name for name, value in state.items() if not torch.isfinite(value).all()]
    if broken:
        raise CheckpointError(f"{file}: NaN or infinite values in {listing(broken)}")
