"""Files that try to run something: refused by name, and nothing of them runs."""

from __future__ import annotations

import io
import os
import pickle
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mvitv2_core import CheckpointError, MViTClassifier, load_checkpoint
from mvitv2_core.checkpoint import read_content
from tests.checkpoint_files import CONFIG, pickled, refused, torch_bytes
from tests.compare import randomize


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return randomize(MViTClassifier(CONFIG)).state_dict()


class Call:
    """Pickles as a call of ``function``: what a trap in a file is made of."""

    def __init__(self, function: Callable, *args: Any, state: Any = None) -> None:
        self.parts = (function, args) if state is None else (function, args, state)

    def __reduce__(self) -> tuple:
        return self.parts


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _text(text: str) -> bytes:
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def traps(canary: Path, inner: bytes) -> dict[str, tuple[Any, str]]:
    """Trap objects, and what the message must name. Each would make ``canary``."""
    touch = f"open({str(canary)!r}, 'w')"
    return {
        "os.system": (Call(os.system, f"touch {canary}"), "posix.system"),
        "eval": (Call(eval, touch), "builtins.eval"),
        "exec": (Call(exec, touch), "builtins.exec"),
        "open": (Call(open, str(canary), "w"), "io.open"),
        "getattr": (Call(getattr, "x", "upper"), "builtins.getattr"),
        "import": (Call(__import__, "os"), "builtins.__import__"),
        "torch.load": (Call(torch.load, io.BytesIO), "torch.serialization.load"),
        "torch.hub": (Call(torch.hub.load, "a/b", "c"), "torch.hub.load"),
        "numpy.load": (Call(np.load, "x"), "numpy.load"),
        "pickle.loads": (Call(pickle.loads, inner), "pickle.loads"),
        "path": (Call(Path.touch, canary), "(getattr|touch)"),
    }


@pytest.mark.parametrize("suffix", [".pyth", ".pkl"])
@pytest.mark.parametrize("kind", traps(Path("x"), b""))
@pytest.mark.parametrize("depth", ["beside", "inside"])
def test_traps(tmp_path: Path, state: dict, kind: str, suffix: str, depth: str) -> None:
    canary = tmp_path / "canary"
    inner = pickled(Call(os.system, f"touch {canary}"))
    trap, asked = traps(canary, inner)[kind]
    content = {"model": dict(state)}
    if depth == "beside":
        content = {"optimizer": [trap], **content}
    else:
        content["model"]["blocks.0.norm1.weight"] = trap
    path = tmp_path / f"x{suffix}"
    if suffix == ".pkl":
        path.write_bytes(pickled(content))
    else:
        torch.save(content, path)
    refused(path, state, "asks for", canary)
    # torch names builtins without their module
    asked = asked.removeprefix("builtins.").replace(".", r"\.")
    with pytest.raises(CheckpointError, match=f"asks for \\S*{asked},"):
        load_checkpoint(MViTClassifier(CONFIG), path)


def raw_pickles(canary: Path) -> dict[str, bytes]:
    """Pickles written by hand: what ``pickle.dumps`` would not write."""
    command = _text(f"touch {canary}")
    system = _global("os", "system")
    end = b"."
    touch = _text(f"open({str(canary)!r},'w')")
    return {
        "GLOBAL and REDUCE": system + command + b"\x85R" + end,
        "STACK_GLOBAL": b"\x80\x04" + _text("os") + _text("system") + b"\x93" + command + b"\x85R.",
        "INST": b"(" + command + b"ios\nsystem\n" + end,
        "OBJ": b"(" + system + command + b"o" + end,
        "NEWOBJ": _global("subprocess", "Popen") + command + b"\x85\x81" + end,
        "dotted name": b"\x80\x04"
        + _text("torch.serialization")
        + _text("os.system")
        + b"\x93"
        + command
        + b"\x85R.",
        "dotted module": _global("numpy.core.multiarray", "_reconstruct.__self__") + end,
        # A reduce whose callable comes from another reduce.
        "nested": _global("builtins", "getattr")
        + _global("os", "path")
        + _text("os")
        + b"\x86R"
        + command
        + b"\x85R"
        + end,
        # Objects of other classes through numpy's own reconstruction.
        "reconstruct other class": _global("numpy.core.multiarray", "_reconstruct")
        + _global("collections", "OrderedDict")
        + b"K\x00\x85"
        + _text("b")
        + b"\x87R"
        + end,
        "ndarray called": _global("numpy", "ndarray") + b"K\x03\x85R" + end,
        # BUILD sets attributes on whatever it is given: on functions and classes as well.
        "BUILD on a function": _global("torch._utils", "_rebuild_tensor_v2")
        + b"}"
        + _text("__doc__")
        + touch
        + b"sb"
        + end,
        "slots on a function": _global("torch._utils", "_rebuild_tensor_v2")
        + b"N}"
        + _text("__defaults__")
        + b"K\x01\x85s\x86b"
        + end,
        "BUILD on a class": _global("collections", "OrderedDict")
        + b"}"
        + _text("__reduce__")
        + touch
        + b"sb"
        + end,
        "BUILD on a stand-in's class": _global("argparse", "Namespace")
        + b"}"
        + _text("__reduce__")
        + touch
        + b"sb"
        + end,
        "slots on a stand-in's class": _global("argparse", "Namespace")
        + b"N}"
        + _text("__repr__")
        + touch
        + b"s\x86b"
        + end,
        "BUILD on a list's class": _global("omegaconf.listconfig", "ListConfig")
        + b"}"
        + _text("__reduce__")
        + touch
        + b"sb"
        + end,
        "slots on a list's class": _global("omegaconf.listconfig", "ListConfig")
        + b"N}"
        + _text("__repr__")
        + touch
        + b"s\x86b"
        + end,
        "slots on a list": _global("omegaconf.listconfig", "ListConfig")
        + b")\x81N}"
        + _text("__repr__")
        + touch
        + b"s\x86b"
        + end,
        "a type called": _global("builtins", "list") + touch + b"\x85R" + end,
        "other codec": _global("_codecs", "encode") + touch + _text("rot13") + b"\x86R" + end,
        "object dtype scalar": _global("numpy.core.multiarray", "scalar")
        + _global("numpy", "dtype")
        + _text("O8")
        + b"\x85R"
        + _text("x")
        + b"\x86R"
        + end,
        "persistent id": _text("x") + b"Q" + end,
        "torch file inside": _global("torch.storage", "_load_from_bytes")
        + b"B"
        + struct.pack("<I", len(inner := torch_bytes({"x": Call(os.system, f"touch {canary}")})))
        + inner
        + b"\x85R"
        + end,
        "extension": b"\x82\x01" + end,
        "huge text": b"X\xff\xff\xff\xff" + end,
        "huge bytes": b"\x8e" + struct.pack("<Q", 1 << 60) + end,
        "no stack": b"R" + end,
        "no end": system[:0] + b"}" * 8,
    }


DAMAGED = ("persistent id", "extension", "huge text", "huge bytes", "no stack", "no end")
DAMAGED += ("BUILD on a stand-in's class", "slots on a stand-in's class", "a type called")
DAMAGED += ("BUILD on a list's class", "slots on a list's class", "slots on a list")
ASKED = set(raw_pickles(Path("x"))) - set(DAMAGED)


@pytest.mark.parametrize("kind", raw_pickles(Path("x")))
def test_handmade_pickles(tmp_path: Path, state: dict, kind: str) -> None:
    path, canary = tmp_path / "x.pkl", tmp_path / "canary"
    rebuild = torch._utils._rebuild_tensor_v2
    held = rebuild.__doc__, rebuild.__defaults__, dict(rebuild.__dict__)
    path.write_bytes(raw_pickles(canary)[kind])
    refused(path, state, ": asks for" if kind in ASKED else ": damaged or not", canary)
    assert held == (rebuild.__doc__, rebuild.__defaults__, dict(rebuild.__dict__))


def test_byte_order_of_numpy_is_left_alone(tmp_path: Path, state: dict) -> None:
    """A pickle sets the byte order of the dtypes it asks for: never on those that numpy shares."""
    shared = np.dtype("f4")
    hand = (
        _global("numpy", "dtype")
        + _text("f4")
        + b"\x89\x89\x87R("
        + b"K\x03"
        + _text(">")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb."
    )
    path = tmp_path / "x.pkl"
    path.write_bytes(hand)
    refused(path, state, "holds a")
    assert shared.byteorder == "=" and np.dtype("f4") is shared


def test_big_endian_and_fortran_arrays_are_read(tmp_path: Path, state: dict) -> None:
    arrays = {n: np.asfortranarray(v.numpy().astype(">f4")) for n, v in state.items()}
    path = tmp_path / "x.pkl"
    for protocol in (2, 4, 5):
        path.write_bytes(
            pickled({"model": arrays, "__author__": "x", "n": np.float64(1)}, protocol)
        )
        model = MViTClassifier(CONFIG)
        load_checkpoint(model, path)
        assert all(torch.equal(v, state[n]) for n, v in model.state_dict().items())


@pytest.mark.parametrize("legacy", [False, True])
def test_numpy_scalars_beside_the_weights_are_read(
    tmp_path: Path, state: dict, legacy: bool
) -> None:
    beside = {
        "epoch": np.int64(3),
        "best": np.float64(0.5),
        "half": np.float16(1),
        "on": np.bool_(1),
    }
    path = tmp_path / "x.pyth"
    torch.save({"model_state": state, **beside}, path, _use_new_zipfile_serialization=not legacy)
    held = set(torch.serialization.get_safe_globals())
    model = MViTClassifier(CONFIG)
    load_checkpoint(model, path)
    assert all(torch.equal(v, state[n]) for n, v in model.state_dict().items())
    assert set(torch.serialization.get_safe_globals()) == held


@pytest.mark.parametrize("protocol", [2, 4])
def test_lists_of_omegaconf_are_read_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int
) -> None:
    """A LazyConfig's ``betas``, as some versions of torch keep them in an optimizer's state."""
    omegaconf = pytest.importorskip("omegaconf", reason="pip install omegaconf to run")
    betas = omegaconf.ListConfig([0.9, 0.99], flags={"allow_objects": True})
    path = tmp_path / "x.pth"
    torch.save({"model": {"a": torch.ones(1)}, "betas": betas}, path, pickle_protocol=protocol)
    for name in [name for name in sys.modules if name.split(".")[0] == "omegaconf"]:
        monkeypatch.setitem(sys.modules, name, None)
    assert read_content(path)["betas"] == [0.9, 0.99]


def test_the_traps_would_work(tmp_path: Path) -> None:
    """Read plainly, such a file runs its command: the canary tells."""
    canary = tmp_path / "canary"
    pickle.loads(raw_pickles(canary)["GLOBAL and REDUCE"])
    assert canary.exists()
