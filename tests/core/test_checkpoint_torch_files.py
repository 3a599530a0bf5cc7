"""torch's files are read without ``torch.load``: checksums, bounds, and every kind of tensor."""

from __future__ import annotations

import io
import pickletools
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mvitv2_core import CheckpointError, MViTClassifier
from mvitv2_core.checkpoint import read_checkpoint, read_content
from mvitv2_core.checkpoint.files import check_sums
from tests.checkpoint_files import CONFIG, refused, torch_bytes
from tests.compare import randomize


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return randomize(MViTClassifier(CONFIG)).state_dict()


@pytest.fixture
def no_torch_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ``torch.load`` can be tricked into, on any version, it is not asked."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("torch.load was called")

    monkeypatch.setattr(torch, "load", refuse)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and a.tolist() == b.tolist()
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    return type(a) is type(b) and a == b


@pytest.mark.parametrize("legacy", [False, True])
def test_reads_what_torch_reads(tmp_path: Path, no_torch_load: None, legacy: bool) -> None:
    """Every dtype, views of one storage, empty tensors, and what trainers keep beside weights."""
    whole = torch.arange(60, dtype=torch.float32).view(5, 12)
    dtypes = [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16]
    dtypes += [torch.int8, torch.uint8, torch.bool, torch.complex64, torch.complex128]
    content: dict[str, Any] = {
        **{str(dtype): (whole % 2).to(dtype) for dtype in dtypes},
        "view": whole[1:4, 2:9:3],
        "transposed": whole.t(),
        "again": whole,
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "parameter": nn.Parameter(torch.ones(3)),
        "beside": {"epoch": 3, "set": {1, 2}, "size": torch.Size([2, 3])},
        "device": torch.device("cuda", 1),
        "dtype": torch.bfloat16,
    }
    path = tmp_path / "x.pth"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    found = read_content(path)
    content["parameter"] = content["parameter"].data
    assert same(dict(found), content)
    shared = {found[name].untyped_storage().data_ptr() for name in ("view", "transposed", "again")}
    assert len(shared) == 1


def test_dtypes_without_a_storage_of_their_own(tmp_path: Path) -> None:
    if not hasattr(torch, "float8_e4m3fn"):
        pytest.skip("this torch has no float8: install a newer one to run")
    value = torch.tensor([1.0, -2.0, 0.5]).to(torch.float8_e4m3fn)
    torch.save({"model": {"a": value}}, tmp_path / "x.pth")
    found = read_content(tmp_path / "x.pth")["model"]["a"]
    assert found.dtype == value.dtype and found.float().tolist() == [1.0, -2.0, 0.5]


def test_reading_does_not_change_the_file(tmp_path: Path, state: dict) -> None:
    path = tmp_path / "x.pth"
    torch.save(state, path)
    before = path.read_bytes()
    read_checkpoint(path).state["norm.weight"].fill_(7)
    assert path.read_bytes() == before


def data_members(path: Path) -> dict[str, tuple[int, int]]:
    """First and last byte of each tensor's data in the file."""
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if "/data/" in name]
        places = {}
        for name in names:
            content = archive.read(name)
            start = whole.index(content, archive.getinfo(name).header_offset)
            places[name] = start, start + len(content)
    return places


@pytest.mark.parametrize("count", [200, pytest.param(5000, marks=pytest.mark.soak)])
def test_one_flipped_bit_is_found(
    count: int, tmp_path: Path, state: dict, tally: Callable[..., None]
) -> None:
    """Files with a bit of a tensor flipped: each is refused, by the member's name."""
    path, draw = tmp_path / "x.pyth", random.Random(5)
    torch.save({"model_state": state}, path)
    whole, places = path.read_bytes(), data_members(path)
    for name, (start, end) in draw.choices(sorted(places.items()), k=count):
        damaged = bytearray(whole)
        damaged[draw.randrange(start, end)] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        for read in (read_checkpoint, check_sums):
            with pytest.raises(CheckpointError, match=f"checksum of member {name} is wrong"):
                read(path)
        tally("flipped bits of tensors in checkpoints, refused")
    path.write_bytes(whole)
    read_checkpoint(path)
    check_sums(path)


def test_files_written_without_checksums_are_read(tmp_path: Path, state: dict) -> None:
    if not hasattr(torch.serialization, "set_crc32_options"):
        pytest.skip("this torch always writes checksums: install 2.5 or newer to run")
    held = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state, tmp_path / "x.pth")
    finally:
        torch.serialization.set_crc32_options(held)
    assert same(read_checkpoint(tmp_path / "x.pth").state, dict(state))


def rewritten(whole: bytes, change: Any, compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip file with right checksums whose members went through ``change``."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(stream, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)), compression)
    return stream.getvalue()


CRAFTED = {
    "short storage": (
        lambda name, data: data[:-4] if name.endswith("/data/0") else data,
        "has not the size that the file says",
    ),
    "other byte order": (
        lambda name, data: b"big" if name.endswith("byteorder") else data,
        "another byte order",
    ),
    "beyond the storage": (
        lambda name, data: larger(data) if name.endswith("data.pkl") else data,
        "reaches beyond its storage",
    ),
    "one pickle more": (
        lambda name, data: data,
        "without one data.pkl",
    ),
}


def larger(data: bytes) -> bytes:
    """The pickle of a (200, 3) tensor, which now says 201."""
    opcode = next(pos for op, arg, pos in pickletools.genops(data) if arg == 200)
    assert data[opcode : opcode + 2] == b"K\xc8"
    return data[: opcode + 1] + b"\xc9" + data[opcode + 2 :]


@pytest.mark.parametrize("kind", CRAFTED)
def test_crafted_files(tmp_path: Path, state: dict, kind: str) -> None:
    """What torch's own reader was fooled by (CVE-2026-24747): sizes that do not agree."""
    change, cause = CRAFTED[kind]
    path = tmp_path / "x.pth"
    whole = torch_bytes({"model": {"a": torch.zeros(200, 3)}})
    path.write_bytes(rewritten(whole, change))
    if kind == "one pickle more":
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("other/data.pkl", b"N.")
    refused(path, state, cause)


def test_compressed_and_unaligned_members(tmp_path: Path, state: dict) -> None:
    whole, path = torch_bytes(state), tmp_path / "x.pth"
    path.write_bytes(rewritten(whole, lambda name, data: data))  # another writer's: not aligned
    assert same(read_checkpoint(path).state, dict(state))
    path.write_bytes(rewritten(whole, lambda name, data: data, zipfile.ZIP_DEFLATED))
    refused(path, state, "is not as torch writes it")
