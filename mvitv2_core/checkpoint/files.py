"""Reads checkpoint files, and lets files of any kind appear whole or not at all.

Nothing of a file is ever run: tensors and plain values come out, or a ``CheckpointError`` that
names the file and the cause.
"""

from __future__ import annotations

import errno
import mmap
import os
import secrets
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ._unpickle import RefusedGlobal, checked_members, read_pickle, read_torch
from .formats import average_inside, of_the_model, unwrapped, weights_keys
from .report import CheckpointError, listing

PICKLES, TORCH = (".pkl", ".pickle"), (".pyth", ".pth", ".pt")
NEEDED = "such files need safetensors (pip install safetensors)"
SUFFIXES = (*TORCH, ".bin", ".ckpt", ".safetensors", *PICKLES)


@dataclass(frozen=True)
class Checkpoint:
    """The weights of one file."""

    file: str  # its path
    container: str  # "torch", "pickle" or "safetensors"
    nest: str  # the key that the weights lay under, "" where they lay at the top
    state: dict[str, Tensor]  # by the file's names, without what wrappers put in front
    beside: tuple[str, ...] = ()  # names of what lay beside the weights (epoch, optimizer, ...)
    ema: str = ""  # the key that an average of the weights lies under, "" where there is none


def read_checkpoint(
    path: str | os.PathLike[str], check: bool = True, *, ema: bool = False
) -> Checkpoint:
    """Read the weights of a file that ends in one of ``SUFFIXES``: ``.pyth``, ``.pth``, ``.pt``,
    ``.bin``, ``.ckpt``, ``.safetensors``, ``.pkl`` or ``.pickle``.

    Tensors of current torch files are mapped, not copied, into memory.

    Args:
        check: refuse tensors that cannot be weights: not floating point, NaN or infinite. Of a
            full detector's file only the backbone's are looked at.
        ema: take the moving average of the weights, which trainers keep beside them.

    Raises:
        CheckpointError: the file is missing, damaged, of another kind, asks for objects other
            than tensors, arrays and plain containers, or holds no average where one is asked for.
    """
    file, (container, content) = os.fspath(path), read_file(path)
    content = _by_name(file, content)
    nest, average = weights_keys(file, content)
    if ema and not average:
        keys = listing([str(key) for key in content])
        raise CheckpointError(f"{file}: holds no EMA weights; it holds {keys}")
    chosen = average if ema else nest
    weights = content[chosen] if chosen else content
    state = plain_state(file, average_inside(weights) if ema else weights, check)
    beside = tuple(str(key) for key in content if key != chosen) if chosen else ()
    return Checkpoint(file, container, chosen, state, beside, average)


def read_content(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    """Everything that a checkpoint file holds, read as ``read_checkpoint`` reads it."""
    return _by_name(os.fspath(path), read_file(path)[1])


def _by_name(file: str, content: Any) -> Mapping[Any, Any]:
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{file}: holds a {type(content).__name__}, not tensors by name")
    return content


def read_file(path: str | os.PathLike[str]) -> tuple[str, Any]:
    """The kind of a file ("torch", "pickle" or "safetensors"), and whatever it holds."""
    file = os.fspath(path)
    suffix = Path(file).suffix.lower()
    if os.path.isdir(file):
        raise CheckpointError(f"{file}: is a directory, not a checkpoint file")
    if suffix not in SUFFIXES:
        raise CheckpointError(
            f"{file}: no checkpoint by its name: a file must end in {', '.join(SUFFIXES)}, or be "
            f"one of the official names in MODEL_ZOO.md"
        )
    try:
        if not os.path.getsize(file):
            raise EOFError("the file is empty")
        if suffix == ".safetensors":
            from safetensors.torch import load_file

            return "safetensors", load_file(file)
        with open(file, "rb") as stream:
            # Private: what somebody writes to a tensor stays in memory.
            buffer = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
            if suffix in PICKLES and buffer[:4] != b"PK\x03\x04":
                return "pickle", read_pickle(stream, len(buffer))
            return "torch", read_torch(stream, buffer)
    except Exception as error:  # damaged files make readers raise anything
        raise CheckpointError(f"{file}: {_cause(error)}") from error


def check_sums(path: str | os.PathLike[str]) -> None:
    """Compare the checksums of a torch file that somebody else is going to read.

    ``torch.load`` does not. Other files, and torch's from before 1.6, have none.

    Raises:
        CheckpointError: damaged; says which tensor's data.
    """
    file = os.fspath(path)
    with open(file, "rb") as stream:
        if stream.read(4) != b"PK\x03\x04":
            return
        buffer = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        try:
            checked_members(stream, buffer)
        except Exception as error:  # damaged files make readers raise anything
            raise CheckpointError(f"{file}: {_cause(error)}") from error


def _cause(error: Exception) -> str:
    if isinstance(error, ImportError):
        return NEEDED
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, RefusedGlobal):
        return f"asks for {error}, which a checkpoint has no need of; nothing of it was run"
    if isinstance(error, OSError) and error.errno != errno.EINVAL:  # EINVAL: a wild seek
        return f"cannot be read: {error.strerror or error}"
    first_line = str(error).strip().partition("\n")[0][:200]
    return f"damaged or not a checkpoint: {type(error).__name__}: {first_line}"


def plain_state(file: str, content: Mapping[Any, Any], check: bool = False) -> dict[str, Tensor]:
    """Tensors by name from tensors or arrays by name, without what wrappers put into names;
    CheckpointError for anything else than tensors by name, for nothing, for a name twice and,
    with ``check``, for what cannot be a weight of the model."""
    state: dict[str, Tensor] = {}
    numpy = sys.modules.get("numpy")
    for name, value in content.items():
        if not isinstance(name, str):
            raise CheckpointError(f"{file}: holds a tensor named {name!r}, which is no text")
        if numpy is not None and isinstance(value, numpy.ndarray):
            if value.dtype.kind not in "fiub":
                raise CheckpointError(
                    f"{file}: {name!r} is an array of {value.dtype}, not of numbers"
                )
            native, copy = value.dtype.newbyteorder("="), not value.flags.writeable
            value = torch.from_numpy(value.astype(native, order="C", copy=copy))
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{file}: {name!r} is a {type(value).__name__}, not a tensor")
        state[name] = value.detach()
    if not state:
        raise CheckpointError(f"{file}: holds no tensors")
    plain: dict[str, Tensor] = {}
    for name, short in unwrapped(state).items():
        if short in plain:
            raise CheckpointError(f"{file}: {short!r} is there twice, once as {name!r}")
        plain[short] = state[name]
    if check:
        _check_tensors(file, of_the_model(plain))
    return plain


def _check_tensors(file: str, state: Mapping[str, Tensor]) -> None:
    for name, value in state.items():
        if value.layout != torch.strided or value.is_quantized or value.device.type == "meta":
            raise CheckpointError(f"{file}: {name!r} is not a plain dense tensor")
    wrong = [f"{n} ({v.dtype})" for n, v in state.items() if not v.dtype.is_floating_point]
    if wrong:
        raise CheckpointError(f"{file}: weights must be floating point, not so {listing(wrong)}")
    if broken := not_finite(state):
        raise CheckpointError(f"{file}: NaN or infinite values in {listing(broken)}")


def not_finite(state: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold NaN or infinite values."""
    return [name for name, value in state.items() if not torch.isfinite(value).all()]


@contextmanager
def whole_file(path: str | os.PathLike[str], name: str = "") -> Iterator[str]:
    """Let a file appear under its name when it is complete, and on no other terms.

    Yields the path of an empty file in the same folder, which must exist, for the ``with`` block
    to fill. At its end the content goes to the disk, then the file to its name, with a new file's
    permissions. An exception removes it; what a kill leaves begins with ``.mvitv2-``, or is called
    ``name`` where that is given.

    Raises:
        OSError: what the system says of the disk, also where a writer such as ``torch.save``
            raised something else because of it.
    """
    path, before = os.fspath(path), sys.exc_info()[1]
    unfinished = name or f".mvitv2-{secrets.token_hex(6)}.tmp"
    unfinished = os.path.join(os.path.dirname(path), unfinished)
    with open(unfinished, "wb" if name else "xb") as stream:
        mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
    try:
        yield unfinished
        with open(unfinished, "rb+") as stream:
            os.fsync(stream.fileno())  # or the new name may outlive its content in a power cut
        os.chmod(unfinished, mode)  # safetensors puts a file of the owner's alone in its place
        os.replace(unfinished, path)
    except BaseException as error:
        with suppress(OSError):  # the disk may have become read-only
            os.unlink(unfinished)
        cause = _disk_error(error, before)
        if cause is None:
            raise
        raise OSError(cause.errno, cause.strerror, path) from error


def _disk_error(error: BaseException, before: BaseException | None) -> OSError | None:
    """The OSError behind another error, such as torch's "unexpected pos" where a disk is full.

    Args:
        before: what was being handled before the write, which is no reason.
    """
    if isinstance(error, OSError) or not isinstance(error, Exception):
        return None
    cause = error.__context__
    while cause is not None and cause is not before:
        if isinstance(cause, OSError) and cause.errno is not None:
            return cause
        cause = cause.__context__
    return None
