"""Full and read-only disks: one line that says so, the old file whole, nothing left over."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mvitv2_core import cli
from mvitv2_core.checkpoint import CheckpointError, read_checkpoint
from mvitv2_core.checkpoint.files import whole_file
from mvitv2_core.checkpoint.write import write_checkpoint
from mvitv2_core.path_manager import WholeWrites, check_finite
from tests.core.write_and_kill import Files, state
from tests.faults import fill, make_read_only, small_disk, unmount

pytest.importorskip("safetensors", reason="pip install safetensors to run")
CLAIM = "writes on a full or read-only disk, old file whole"
FORMATS = {".pyth": "slowfast", ".pkl": "detectron2", ".safetensors": "timm"}


def holds(path: Path, value: float) -> bool:
    return all((tensor == value).all() for tensor in read_checkpoint(path).state.values())


@pytest.mark.parametrize("fault", ["full", "readonly"])
def test_every_writer(
    fault: str, tmp_path: Path, capsys: pytest.CaptureFixture, tally: Callable[..., None]
) -> None:
    """Ours, ``mvitv2 convert``, and a trainer's stream, over files that were there before."""
    text = "No space left on device" if fault == "full" else "Read-only file system"
    source = tmp_path / "new.pyth"
    write_checkpoint(source, state(2))
    with small_disk(tmp_path / "disk", 16) as disk:
        paths = [disk / f"x{suffix}" for suffix in FORMATS]
        for path in (*paths, disk / "trained.pth"):
            write_checkpoint(path, state(1), FORMATS.get(path.suffix, "slowfast"))
        fill(disk, 4096) if fault == "full" else make_read_only(disk)
        try:
            for path in paths:
                with pytest.raises(CheckpointError, match=f"be written: .*{text}") as caught:
                    write_checkpoint(path, state(2), FORMATS[path.suffix], force=True)
                assert "\n" not in str(caught.value)
                assert holds(path, 1)
                tally(CLAIM)
            path = disk / "x.pyth"
            words = ["convert", str(source), str(path), "--to", "slowfast", "--force"]
            assert cli.main(words) != 0
            said = capsys.readouterr().err
            assert text in said and str(path) in said and "Traceback" not in said
            assert holds(path, 1)
            path = disk / "trained.pth"
            with (
                pytest.raises(OSError, match=text) as caught,
                WholeWrites(Files()).open(str(path), "wb") as stream,
            ):
                torch.save({"model_state": state(2)}, stream)
            assert caught.value.errno == (errno.ENOSPC if fault == "full" else errno.EROFS)
            assert holds(path, 1)
            tally(CLAIM, 2)
            assert not list(disk.glob(".mvitv2-*"))
        finally:
            if fault == "readonly":
                unmount(disk)


def test_a_limit_of_the_process(tmp_path: Path) -> None:
    """As root or not: a write that the system cuts short is named after the file it is for."""
    resource = pytest.importorskip("resource", reason="run on Linux or macOS, for its limits")
    held = resource.getrlimit(resource.RLIMIT_FSIZE)
    path = tmp_path / "x.pyth"
    write_checkpoint(path, state(1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, held[1]))
    try:
        with pytest.raises(CheckpointError, match=r"x\.pyth: cannot be written: File too large"):
            write_checkpoint(path, state(2), force=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, held)
    assert holds(path, 1) and os.listdir(tmp_path) == ["x.pyth"]


def test_other_errors_stay_themselves(tmp_path: Path) -> None:
    """What was wrong before the write is not taken for its reason."""
    path = tmp_path / "x"
    with pytest.raises(RuntimeError, match="mine"):
        try:
            raise OSError(errno.ENOSPC, "another disk")
        except OSError:
            with whole_file(path):
                raise RuntimeError("mine") from None
    with pytest.raises(RuntimeError, match="mine"), whole_file(path):
        raise RuntimeError("mine")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_checkpoint_of_nan(value: float) -> None:
    model = torch.nn.Linear(2, 2)
    check_finite(model)
    with torch.no_grad():
        model.bias[1] = value
    with pytest.raises(FloatingPointError, match=r"the last one stands.*bias"):
        check_finite(model)
