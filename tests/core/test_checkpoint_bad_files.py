"""Bad files: one clear error naming file and cause, the model untouched."""

from __future__ import annotations

import builtins
import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mvitv2_core import MViTClassifier, load_checkpoint
from tests.checkpoint_files import CONFIG, pickled, refused, safetensors_bytes, torch_bytes
from tests.compare import randomize


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return randomize(MViTClassifier(CONFIG)).state_dict()


# Lengths of truncated files, as shares of the whole.
SHARES = (0.001, 0.01, 0.05, 0.2, 0.5, 0.8, 0.95, 0.99, 0.999, -1)
FORMS: dict[str, Callable[[dict[str, Tensor]], bytes]] = {
    "x.pyth": lambda state: torch_bytes({"model_state": state}),
    "old.pth": lambda state: torch_bytes(state, _use_new_zipfile_serialization=False),
    "x.pkl": lambda state: pickled({"model": {n: v.numpy() for n, v in state.items()}}),
    "x.safetensors": safetensors_bytes,
}


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("name", FORMS)
def test_truncated(tmp_path: Path, state: dict, name: str, share: float) -> None:
    whole = FORMS[name](state)
    path = tmp_path / name
    path.write_bytes(whole)
    load_checkpoint(MViTClassifier(CONFIG), path)  # whole, it loads
    length = len(whole) - 1 if share < 0 else int(len(whole) * share)
    path.write_bytes(whole[:length])
    refused(path, state, "damaged")


GARBAGE = {
    "zeros": bytes(4096),
    "text": b"<html><body>404 Not Found</body></html>",
    "zip magic alone": b"PK\x03\x04",
    "zip magic and noise": b"PK\x03\x04" + bytes(range(256)) * 8,
    "png": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "gzip": b"\x1f\x8b\x08" + bytes(100),
    "tar": b"storages".ljust(512, b"\0") + bytes(1024),
}


@pytest.mark.parametrize("suffix", [".pyth", ".pkl", ".safetensors"])
@pytest.mark.parametrize("kind", GARBAGE)
def test_wrong_magic(tmp_path: Path, state: dict, kind: str, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(GARBAGE[kind])
    refused(path, state, "damaged or not a checkpoint")


def test_other_zip(tmp_path: Path, state: dict) -> None:
    path = tmp_path / "x.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "no checkpoint")
    refused(path, state, "damaged or not a checkpoint")


def test_bytes_after_the_end(tmp_path: Path, state: dict) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(FORMS["x.pkl"](state) + b"more")
    refused(path, state, "4 bytes follow")


@pytest.mark.parametrize("name", FORMS)
def test_empty(tmp_path: Path, state: dict, name: str) -> None:
    (tmp_path / name).touch()
    refused(tmp_path / name, state, "is empty")


@pytest.mark.parametrize("name", ["folder", "folder.pyth", "folder.pkl"])
def test_directory(tmp_path: Path, state: dict, name: str) -> None:
    (tmp_path / name).mkdir()
    refused(tmp_path / name, state, "is a directory")


@pytest.mark.parametrize("name", FORMS)
def test_missing(tmp_path: Path, state: dict, name: str) -> None:
    refused(tmp_path / name, state, "no such file")


def test_unreadable(tmp_path: Path, state: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening fails as for a file of somebody else's: root, who may run tests, may read all."""
    path = tmp_path / "x.pyth"
    path.write_bytes(FORMS["x.pyth"](state))
    real = io.open

    def denied(file: Any, *args: Any, **kwargs: Any) -> Any:
        if os.fspath(file) == str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return real(file, *args, **kwargs)

    monkeypatch.setattr(io, "open", denied)
    monkeypatch.setattr(builtins, "open", denied)
    refused(path, state, "Permission denied")


def test_other_ending(tmp_path: Path, state: dict) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(FORMS["x.pyth"](state))
    refused(path, state, "must end in .pyth")


def broken(state: dict[str, Tensor], kind: str) -> Any:
    state = dict(state)
    name, pool = "blocks.3.attn.qkv.weight", "blocks.0.attn.pool_q.weight"
    if kind in ("nan", "infinite"):
        state[name] = state[name].clone()
        state[name][3, 2] = float(kind.removesuffix("inite"))
    changes: dict[str, Callable[[], Any]] = {
        "missing key": lambda: state.pop(name),
        "extra key": lambda: state.update({"blocks.3.attn.extra": torch.zeros(3)}),
        "wrong rank": lambda: state.update({name: state[name][None]}),
        "flat": lambda: state.update({name: state[name].flatten()}),
        "wrong width": lambda: state.update({name: state[name][:, :-1]}),
        "scalar": lambda: state.update({name: torch.tensor(1.0)}),
        "even table": lambda: state.update({"blocks.0.attn.rel_pos_h": torch.zeros(30, 8)}),
        "narrow table": lambda: state.update({"blocks.0.attn.rel_pos_h": torch.zeros(31, 7)}),
        "large pool": lambda: state.update({pool: torch.zeros(8, 1, 5, 5)}),
        "long": lambda: state.update({name: state[name].long()}),
        "bool": lambda: state.update({name: state[name] > 0}),
        "complex": lambda: state.update({name: state[name].to(torch.complex64)}),
        "sparse": lambda: state.update({name: state[name].to_sparse()}),
        "meta": lambda: state.update({name: state[name].to("meta")}),
        "number": lambda: state.update({name: 3.0}),
        "none": lambda: state.update({name: None}),
        "nested": lambda: state.update({name: {"weight": state[name]}}),
        "number as name": lambda: state.update({7: torch.zeros(3)}),
    }
    if kind in changes:
        changes[kind]()
    whole: dict[str, Any] = {
        "no tensors": {},
        "list": list(state.values()),
        "tensor": state[name] if isinstance(state.get(name), Tensor) else None,
        "two nests": {"model_state": state, "state_dict": state},
        "other model": {"layer1.0.conv1.weight": torch.zeros(3, 3)},
        "no blocks": {n: v for n, v in state.items() if not str(n).startswith("blocks")},
    }
    return whole.get(kind, {"model_state": state} if kind != "bare" else state)


CAUSES = {
    "missing key": "missing in the file (1): blocks.3.attn.qkv.weight",
    "extra key": "without a place in the model (1): blocks.3.attn.extra",
    "wrong rank": "blocks.3.attn.qkv.weight is (1, ",
    "flat": "blocks.3.attn.qkv.weight is (",
    "wrong width": "blocks.3.attn.qkv.weight is (",
    "scalar": "blocks.3.attn.qkv.weight is ()",
    "even table": "blocks.0.attn.rel_pos_h is (30, 8) in the file and (31, 8) in the model",
    "narrow table": "blocks.0.attn.rel_pos_h is (31, 7)",
    "large pool": "blocks.0.attn.pool_q.weight is (8, 1, 5, 5)",
    "long": "must be floating point, not so blocks.3.attn.qkv.weight (torch.int64)",
    "bool": "torch.bool",
    "complex": "torch.complex64",
    "sparse": "asks for torch._utils._rebuild_sparse_tensor",
    "meta": "asks for torch._utils._rebuild_meta_tensor_no_storage",
    "nan": "NaN or infinite values in blocks.3.attn.qkv.weight",
    "infinite": "NaN or infinite values in blocks.3.attn.qkv.weight",
    "number": "'blocks.3.attn.qkv.weight' is a float, not a tensor",
    "none": "is a NoneType, not a tensor",
    "nested": "is a dict, not a tensor",
    "number as name": "a tensor named 7",
    "no tensors": "holds no tensors",
    "list": "holds a list",
    "tensor": "holds a Tensor",
    "two nests": "under each of model_state, state_dict",
    "other model": "no known MViTv2",
    "no blocks": "missing in the file",
}


@pytest.mark.parametrize("kind", CAUSES)
def test_wrong_tensors(tmp_path: Path, state: dict, kind: str) -> None:
    path = tmp_path / "x.pyth"
    torch.save(broken(state, kind), path)
    refused(path, state, CAUSES[kind])


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ({"model": {"x": np.array(["a", "b"])}}, "not of numbers"),
        ({"model": {"x": np.array([None, 1], dtype=object)}}, "not of numbers"),
        ({"model": {"x": np.zeros(3, dtype=[("a", "f4")])}}, "not of numbers"),
        ({"model": {"x": "text"}}, "is a str"),
        ([1, 2], "holds a list"),
        (7, "holds a int"),
    ],
    ids=["text array", "objects", "records", "text", "list", "number"],
)
def test_pickles_of_other_things(tmp_path: Path, state: dict, content: Any, cause: str) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(pickled(content))
    refused(path, state, cause)
