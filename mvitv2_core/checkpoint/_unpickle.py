"""What is inside of pickles and of torch's files, read without running any of it.

An unpickler of our own admits arrays, tensors and plain containers, or nothing. It reads torch's
files too, so that no guarantee hangs on the installed torch: ``torch.load(weights_only=True)`` ran
code of crafted files before 2.6 (CVE-2025-32434) and let them overwrite memory before 2.10
(CVE-2026-24747).
"""

from __future__ import annotations

import io
import mmap
import pickle
import struct
import sys
import zipfile
import zlib
from collections import Counter, OrderedDict
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor

Buffer = mmap.mmap | bytearray
LoadStorage = Callable[[str, int, int], Tensor]  # key, elements, bytes of each -> (nbytes,) uint8
OTHER_ORDER = f"written in another byte order than {sys.byteorder}-endian"
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # torch's files from before 1.6
STORAGES = {
    f"torch.{name}Storage": getattr(torch, name.lower())
    for name in ("Half", "Float", "Double", "Bool", "Short", "Int", "Long", "BFloat16")
} | {
    "torch.ByteStorage": torch.uint8,
    "torch.CharStorage": torch.int8,
    "torch.ComplexFloatStorage": torch.cfloat,
    "torch.ComplexDoubleStorage": torch.cdouble,
    "torch.storage.UntypedStorage": torch.uint8,
}


class RefusedGlobal(Exception):
    """A file asks for something else than tensors, arrays and plain containers; says for what."""


class _Admitted:
    """Stands for a global that pickles may call; sealed, so that they can do nothing else to it:
    real functions and classes would keep the attributes that a pickle may set."""

    def __init__(self, name: str, call: Callable[..., Any]) -> None:
        self.name, self._call = name, call

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)

    def __setstate__(self, state: object) -> None:  # the one way to set attributes, or items
        raise RefusedGlobal(f"a change of {self.name}")


# Stands for a storage: its bytes, (nbytes,) uint8, and what they are.
class _Storage(NamedTuple):
    data: Tensor
    dtype: torch.dtype


class _OmegaList(list):
    """An omegaconf ListConfig's values, such as the betas of a LazyConfig's optimizer."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        self[:] = [vars(node)["_val"] for node in state["_content"]]


@cache
def _table() -> dict[str, Any]:
    """Everything a pickle may ask for, by its name there; a storage's class is its dtype."""
    calls: dict[str, Callable[..., Any]] = {
        "collections.OrderedDict": lambda *args: OrderedDict(*args),
        "collections.Counter": lambda *args: Counter(*args),
        "builtins.set": lambda *args: set(*args),
        "_codecs.encode": _encode,
        "torch._utils._rebuild_tensor_v2": lambda s, *args: _tensor(s, s.dtype, *args[:3]),
        "torch._utils._rebuild_tensor_v3": lambda s, *args: _tensor(s, args[5], *args[:3]),
        "torch._utils._rebuild_parameter": lambda data, *_: data,
        "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
        "torch.storage._load_from_bytes": lambda b: read_torch(io.BytesIO(b), bytearray(b)),
        "torch.Size": lambda *args: torch.Size(*args),
        "torch.device": lambda *args: torch.device(*args),
        **_numpy_calls(),
    }
    calls["collections.defaultdict"] = lambda *_: {}
    # ListConfigs name types, and are made of classes that come without their code.
    types = ("typing.Any", *(f"builtins.{name}" for name in ("dict", "int", "list", "long")))
    parts = (f"omegaconf.{name}" for name in ("base.ContainerMetadata", "base.Metadata"))
    plain = ("argparse.Namespace", "omegaconf.nodes.AnyNode", *parts)
    inert = {**dict.fromkeys(types, "a type"), **dict.fromkeys(plain, SimpleNamespace)}
    inert["omegaconf.listconfig.ListConfig"] = _OmegaList
    sealed = {name: _Admitted(name, call) for name, call in calls.items()}
    dtypes = {f"torch.{n}": v for n, v in vars(torch).items() if isinstance(v, torch.dtype)}
    return {**sealed, **dtypes, **STORAGES, **inert}


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """Python 2's and protocol 2's way to store bytes; other codecs are none of it."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise RefusedGlobal(f"_codecs.encode with {encoding!r}")
    return text.encode("latin1")


def _numpy_calls() -> dict[str, Callable[..., Any]]:
    try:
        import numpy as np
    except ImportError:
        return {}

    class Kind:
        """Stands for a dtype; numpy's own believes a pickle that bytes are pointers."""

        def __init__(self, text: Any, *_: Any) -> None:
            if not isinstance(text, str) or np.dtype(text).kind not in "fiubcSUO":
                raise RefusedGlobal(f"a numpy.dtype of {text!r}: not of numbers")
            self.dtype: Any = np.dtype(text)

        def __setstate__(self, state: Any) -> None:
            _, order, *parts = state[:5]
            if parts != [None] * 3 or order not in ("<", ">", "=", "|"):
                raise RefusedGlobal("a numpy.dtype of several parts: not of numbers")
            self.dtype = self.dtype.newbyteorder(order)

    class Array(np.ndarray):
        def __setstate__(self, state: Any) -> None:
            version, shape, kind, fortran, data = state
            super().__setstate__((version, shape, numbers(kind, "fiubcSUO"), fortran, data))

    def numbers(kind: Any, allowed: str = "fiub") -> Any:
        if not isinstance(kind, Kind) or kind.dtype.kind not in allowed:
            raise RefusedGlobal("an array that is not of numbers")
        return kind.dtype

    def reconstruct(kind: Any, shape: Any, code: object) -> Any:
        if not isinstance(kind, _Admitted) or kind.name != "numpy.ndarray" or shape != (0,):
            raise RefusedGlobal("an array of another class than numpy.ndarray")
        return Array((0,), "b")

    def scalar(kind: Any, data: Any) -> Any:
        data = data.encode("latin1") if isinstance(data, str) else data
        return np.frombuffer(data, numbers(kind), 1)[0].item()

    def frombuffer(data: Any, kind: Any, shape: Any, order: Any, axis_order: Any = None) -> Any:
        if axis_order is not None:
            raise RefusedGlobal("an array in an order of its own")
        return np.frombuffer(data, numbers(kind)).reshape(shape, order=order)

    calls: dict[str, Callable[..., Any]] = {
        "numpy.ndarray": lambda *_: numbers(None),
        "numpy.dtype": Kind,
    }
    for core in ("numpy.core", "numpy._core"):
        calls[f"{core}.multiarray._reconstruct"] = reconstruct
        calls[f"{core}.multiarray.scalar"] = scalar
        calls[f"{core}.numeric._frombuffer"] = frombuffer
    return calls


def _tensor(storage: Any, dtype: Any, offset: Any, size: Any, stride: Any) -> Tensor:
    """A view of a storage, which must lie inside of it."""
    if not isinstance(storage, _Storage) or not isinstance(dtype, torch.dtype):
        raise RefusedGlobal("a tensor without a storage")
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or any(type(n) is not int or n < 0 for n in numbers):
        raise pickle.UnpicklingError(f"a tensor of size {size} and stride {stride}")
    if 0 in size:
        return torch.empty(size, dtype=dtype)
    end = offset + 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if end * dtype.itemsize > storage.data.numel():
        raise pickle.UnpicklingError("a tensor reaches beyond its storage")
    flat = storage.data.view(dtype)
    return flat.as_strided(size, stride, flat.storage_offset() + offset)


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: IO[bytes], load: LoadStorage | None = None) -> None:
        # detectron2's model zoo has files written by Python 2, whose text is latin1.
        super().__init__(stream, encoding="latin1")
        self._load = load

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("__builtin__", "builtins")  # Python 2's name, and protocol 2's
        known = _table().get(f"{module}.{name}")
        if known is None:
            raise RefusedGlobal(f"{module}.{name}")
        return known

    def persistent_load(self, pid: Any) -> Any:
        if self._load is None or not isinstance(pid, tuple) or pid[0] != "storage":
            raise pickle.UnpicklingError("refers to an object outside of the file")
        _, dtype, key, _, numel, *view = pid
        if not isinstance(dtype, torch.dtype) or type(numel) is not int or numel < 0:
            raise pickle.UnpicklingError("a storage of no known kind")
        data, size = self._load(str(key), numel, dtype.itemsize), dtype.itemsize
        if view and view[0] is not None:  # in files from before 1.6: a part of another storage
            data = data[view[0][1] * size :][: view[0][2] * size]
        return _Storage(data, dtype)


def read_pickle(stream: IO[bytes], size: int) -> Any:
    """Unpickle a stream of ``size`` bytes; raises RefusedGlobal, and anything where damaged."""
    content = _Unpickler(stream).load()
    if stream.tell() != size:
        raise pickle.UnpicklingError(f"{size - stream.tell()} bytes follow the pickle's end")
    return content


def read_torch(stream: IO[bytes], buffer: Buffer) -> Any:
    """A torch file, in the zip format of torch 1.6 and later or in the one before it.

    A zip file's checksums are compared first, which ``torch.load`` does not do: no flipped bit
    gets through. That reads the file once more, at 3,500 MB/s (measured: AMD EPYC, one thread, a
    file that the system had in memory).

    Args:
        stream, buffer: the file at its beginning, and its bytes, whose memory tensors share.
    """
    return _read_zip(stream, buffer) if buffer[:4] == b"PK\x03\x04" else _read_old(stream, buffer)


def _read_zip(stream: IO[bytes], buffer: Buffer) -> Any:
    places = checked_members(stream, buffer)
    pickles = [name for name in places if name.rpartition("/")[2] == "data.pkl"]
    if len(pickles) != 1:
        raise zipfile.BadZipFile("a zip file without one data.pkl")
    folder = pickles[0].removesuffix("data.pkl")
    order = buffer[slice(*places.get(f"{folder}byteorder", (0, 0)))]
    if order and order != sys.byteorder.encode():
        raise pickle.UnpicklingError(OTHER_ORDER)

    def load(key: str, numel: int, itemsize: int) -> Tensor:
        start, end = places[f"{folder}data/{key}"]
        if end - start != numel * itemsize:
            raise pickle.UnpicklingError(f"storage {key} has not the size that the file says")
        return _bytes(buffer, start, end)

    return _Unpickler(io.BytesIO(buffer[slice(*places[pickles[0]])]), load).load()


def _bytes(buffer: Buffer, start: int, end: int) -> Tensor:
    if start == end:
        return torch.empty(0, dtype=torch.uint8)
    if start % 16:  # torch aligns them: only another writer's are copied
        buffer, start, end = bytearray(buffer[start:end]), 0, end - start
    return torch.frombuffer(buffer, dtype=torch.uint8, count=end - start, offset=start)


def checked_members(stream: IO[bytes], buffer: Buffer) -> dict[str, tuple[int, int]]:
    """Beginning and end of each member of a zip file, whose checksums are found to be right."""
    members = zipfile.ZipFile(stream).infolist()
    # set_crc32_options(False) makes torch write zeros in place of checksums, all over the file.
    unchecked = all(member.CRC == 0 for member in members)
    places: dict[str, tuple[int, int]] = {}
    for member in members:
        name, head = member.filename, member.header_offset
        mark, lengths = struct.unpack("<4s22x4s", buffer[head : head + 30])
        start = head + 30 + sum(struct.unpack("<HH", lengths))
        end = start + member.file_size
        if member.compress_type or mark != b"PK\x03\x04" or end > len(buffer) or name in places:
            raise zipfile.BadZipFile(f"member {name} of the zip file is not as torch writes it")
        with memoryview(buffer) as view, view[start:end] as part:
            if not unchecked and zlib.crc32(part) != member.CRC:
                raise zipfile.BadZipFile(f"the checksum of member {name} is wrong")
        places[name] = start, end
    return places


def _read_old(stream: IO[bytes], buffer: Buffer) -> Any:
    """Pickles one after the other, then the storages that the fourth one refers to."""
    held: dict[str, tuple[bytearray, int]] = {}

    def load(key: str, numel: int, itemsize: int) -> Tensor:
        if numel * itemsize > len(buffer):
            raise pickle.UnpicklingError(f"storage {key} is larger than the file")
        memory, _ = held.setdefault(key, (bytearray(numel * itemsize), numel))
        return _bytes(memory, 0, len(memory))

    if [_Unpickler(stream).load() for _ in range(2)] != [MAGIC, PROTOCOL]:
        raise pickle.UnpicklingError("no torch file by its first bytes")
    if _Unpickler(stream).load()["little_endian"] != (sys.byteorder == "little"):
        raise pickle.UnpicklingError(OTHER_ORDER)
    content = _Unpickler(stream, load).load()
    keys = _Unpickler(stream).load()
    if set(keys) != set(held):
        raise pickle.UnpicklingError("its storages are not those that its tensors refer to")
    for key in keys:
        memory, numel = held[key]
        (count,) = struct.unpack("<q", stream.read(8))
        if count != numel or stream.readinto(memory) != len(memory):  # type: ignore[attr-defined]
            raise pickle.UnpicklingError(f"storage {key} is cut short")
    return content
