"""A restricted unpickler: arrays, tensors and plain containers come out of a pickle, or nothing."""

from __future__ import annotations

import contextlib
import functools
import io
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import IO, Any

import torch


class RefusedGlobal(Exception):
    """A file asks for something else than tensors, arrays and plain containers; says for what."""


class _Admitted:
    """Stands for a global that pickles may call; sealed, so that they can do nothing else to it.

    A pickle may set attributes on whatever it gets hold of. Real functions and classes would
    keep them, so none is handed out.
    """

    __slots__ = ("_call", "_name")
    _name: str
    _call: Callable[..., Any]

    def __init__(self, name: str, call: Callable[..., Any]) -> None:
        object.__setattr__(self, "_name", name)
        object.__setattr__(self, "_call", call)

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)

    def __setattr__(self, name: str, value: object) -> None:
        raise RefusedGlobal(f"a change of {self._name}")

    def __setstate__(self, state: object) -> None:
        raise RefusedGlobal(f"a change of {self._name}")

    def __reduce__(self) -> Any:
        raise RefusedGlobal(f"a copy of {self._name}")


def _admitted() -> dict[str, _Admitted]:
    """Everything a pickle may ask for, by its name there."""
    table: dict[str, Callable[..., Any]] = {
        "collections.OrderedDict": lambda *args: OrderedDict(*args),
        "_codecs.encode": _encode,
        "torch._utils._rebuild_tensor_v2": _tensor,
        "torch._utils._rebuild_parameter": lambda data, *_: data,
        "torch.storage._load_from_bytes": _storage,
        "torch.Size": lambda *args: torch.Size(*args),
    }
    try:
        import numpy as np
    except ImportError:
        pass
    else:
        array = _Admitted("numpy.ndarray", _refuse("numpy.ndarray called by itself"))
        dtype = _Admitted("numpy.dtype", lambda kind, align=False, copy=True: _dtype(np, kind))

        def reconstruct(kind: object, shape: object, code: object) -> Any:
            if kind is not array or shape != (0,):
                raise RefusedGlobal("an array of another class than numpy.ndarray")
            return np.ndarray((0,), "b")

        def scalar(kind: Any, data: Any) -> Any:
            return _scalar(np, kind, data)

        for core in ("numpy.core", "numpy._core"):
            table[f"{core}.multiarray._reconstruct"] = reconstruct
            table[f"{core}.multiarray.scalar"] = scalar
            table[f"{core}.numeric._frombuffer"] = _frombuffer(np)
        known = {"numpy.ndarray": array, "numpy.dtype": dtype}
        return {name: _Admitted(name, call) for name, call in table.items()} | known
    return {name: _Admitted(name, call) for name, call in table.items()}


def _refuse(what: str) -> Callable[..., Any]:
    def refuse(*_: Any) -> Any:
        raise RefusedGlobal(what)

    return refuse


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """Python 2's and protocol 2's way to store bytes; other codecs are none of it."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise RefusedGlobal(f"_codecs.encode with {encoding!r}")
    return text.encode("latin1")


def _dtype(np: Any, kind: Any) -> Any:
    # A copy of its own: a pickle sets the byte order on what it gets.
    if not isinstance(kind, str):
        raise RefusedGlobal(f"a numpy.dtype of {type(kind).__name__}")
    return np.dtype(kind, False, True)


def _scalar(np: Any, kind: Any, data: Any) -> Any:
    if not isinstance(kind, np.dtype) or kind.kind not in "fiub":
        raise RefusedGlobal(f"a numpy scalar of {kind}")
    data = data.encode("latin1") if isinstance(data, str) else data
    return np.frombuffer(data, kind, 1)[0].item()


def _frombuffer(np: Any) -> Callable[..., Any]:
    def frombuffer(data: Any, kind: Any, shape: Any, order: Any, axis_order: Any = None) -> Any:
        if not isinstance(kind, np.dtype) or kind.kind not in "fiub" or axis_order is not None:
            raise RefusedGlobal(f"an array of {kind}")
        return np.frombuffer(data, kind).reshape(shape, order=order)

    return frombuffer


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> torch.Tensor:
    # Requires-grad flags and backward hooks are left behind.
    hooks: OrderedDict[Any, Any] = OrderedDict()
    return torch._utils._rebuild_tensor_v2(storage, offset, size, stride, False, hooks)


def _storage(data: Any) -> Any:
    """What torch does when a tensor is pickled plainly: a torch file inside of the pickle."""
    return load_torch(io.BytesIO(data))


def load_torch(source: str | IO[bytes], mmap: bool = False) -> Any:
    """``torch.load(weights_only=True)`` on the CPU, with numpy scalars admitted.

    Args:
        source: path or stream of a torch file.
        mmap: map the file into memory; only for paths of zip files.

    Raises:
        RefusedGlobal: it asks for anything but tensors and plain containers.
        Exception: whatever a damaged file leads to.
    """
    try:
        with numpy_globals():
            return torch.load(source, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:
        asked = re.search(r"(?:GLOBAL|Unsupported class) (\S+)", str(error))
        if asked is None:
            raise
        raise RefusedGlobal(asked[1]) from error


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: IO[bytes]) -> None:
        # detectron2's model zoo has files written by Python 2, whose text is latin1.
        super().__init__(stream, encoding="latin1")
        self._admitted = _admitted()

    def find_class(self, module: str, name: str) -> Any:
        known = self._admitted.get(f"{module}.{name}")
        if known is None:
            raise RefusedGlobal(f"{module}.{name}")
        return known

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("refers to an object outside of the file")


def read_pickle(stream: IO[bytes], size: int) -> Any:
    """Unpickle a stream of ``size`` bytes.

    Raises:
        RefusedGlobal: it asks for anything but arrays, tensors and plain containers.
        Exception: whatever a damaged pickle leads to.
    """
    content = _Unpickler(stream).load()
    if stream.tell() != size:
        raise pickle.UnpicklingError(f"{size - stream.tell()} bytes follow the pickle's end")
    return content


def numpy_globals() -> contextlib.AbstractContextManager[Any]:
    """Lets ``torch.load(weights_only=True)`` admit numpy scalars, which older files hold.

    torch before 2.5 has no such list: there, files with numpy scalars are refused.
    """
    safe_globals = getattr(torch.serialization, "safe_globals", None)
    wanted = [] if safe_globals is None else numpy_scalar_globals()
    if not wanted or safe_globals is None:
        return contextlib.nullcontext()
    held = set(torch.serialization.get_safe_globals())
    # Leaving the context removes what it added, so nothing that others have added may be in it.
    return safe_globals([item for item in wanted if item not in held])


@functools.cache
def numpy_scalar_globals() -> list[Any]:
    """What numpy scalars are pickled with: checked stand-ins under numpy's names.

    For ``torch.serialization.add_safe_globals``.
    """
    try:
        import numpy as np
    except ImportError:
        return []
    # torch looks the names up on the objects. The dtypes' classes may be given a byte order.
    stand_ins = [_named("numpy", "dtype", lambda kind, *_: _dtype(np, kind))]
    for core in ("numpy.core.multiarray", "numpy._core.multiarray"):
        stand_ins.append(_named(core, "scalar", lambda kind, data: _scalar(np, kind, data)))
    kinds = {type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "u1", "?")}
    return [*stand_ins, *sorted(kinds, key=str)]


def _named(module: str, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    call.__module__, call.__name__, call.__qualname__ = module, name, name
    return call
