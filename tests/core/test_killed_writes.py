"""No checkpoint is ever half-written in place, whenever its writer is killed or fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mvitv2_core.checkpoint.files import whole_file
from mvitv2_core.checkpoint.write import write_checkpoint
from mvitv2_core.path_manager import UNFINISHED, WholeWrites

pytest.importorskip("safetensors", reason="pip install safetensors to run")
REPOSITORY = Path(__file__).parents[2]


class Files:
    """The ``open`` of a trainer's path manager, and a name of its own."""

    scheme = "file"

    def __init__(self) -> None:
        self.opened: list[tuple[str, str]] = []

    def open(self, path: str, mode: str = "r", **options: object) -> object:
        self.opened.append((path, mode))
        return open(os.devnull if "://" in path else path, mode, **options)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork: run on Linux or macOS")
@pytest.mark.parametrize("kills", [12, pytest.param(200, marks=pytest.mark.soak)])
def test_killed_writers(kills: int, tmp_path: Path, tally: Callable[..., None]) -> None:
    """SIGKILL at random moments of every kind of writer; most of them fall into a write."""
    process = subprocess.run(
        [sys.executable, "-m", "tests.core.write_and_kill", str(tmp_path), str(kills), "0"],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    results = json.loads(process.stdout.splitlines()[-1])
    print(results)
    assert len(results) == 5
    assert sum(row["inside"] for row in results.values()) > kills
    for row in results.values():
        assert row["kills"] == kills
        tally("writers killed, file whole", kills)
        tally("  of them in the middle of a write", row["inside"])


def test_whole_writes(tmp_path: Path) -> None:
    """The old content stands until the new one is whole; nothing is left of a failure."""
    manager = Files()
    whole, path = WholeWrites(manager), tmp_path / "model.pth"
    path.write_bytes(b"old")
    with whole.open(str(path), "wb") as stream:
        stream.write(b"new")
        stream.flush()
        assert path.read_bytes() == b"old"
        assert (tmp_path / UNFINISHED).read_bytes() == b"new"
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["model.pth"]

    with pytest.raises(KeyboardInterrupt), whole.open(str(path), "wb") as stream:
        stream.write(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["model.pth"]

    (tmp_path / UNFINISHED).write_bytes(b"what a kill left, longer than the next file")
    with whole.open(str(tmp_path / "last_checkpoint"), "w") as stream:
        stream.write("model.pth")
    assert (tmp_path / "last_checkpoint").read_text() == "model.pth"
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model.pth"]


@pytest.mark.skipif(os.name != "posix", reason="run on Linux or macOS, for file modes")
@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".safetensors"])
def test_files_get_the_permissions_of_new_files(tmp_path: Path, suffix: str) -> None:
    path, held = tmp_path / f"x{suffix}", os.umask(0o027)
    try:
        write_checkpoint(path, {"norm.weight": torch.ones(3)}, "detectron2")
    finally:
        os.umask(held)
    assert path.stat().st_mode & 0o777 == 0o640


def test_content_reaches_the_disk_before_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut after the renaming must not find a file that was never written."""
    done, sync, rename = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (done.append("sync"), sync(handle)))
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append("rename"), rename(a, b)))
    with whole_file(tmp_path / "x") as name:
        Path(name).write_text("content")
        assert done == [] and not (tmp_path / "x").exists()
    assert done == ["sync", "rename"]
    assert (tmp_path / "x").read_text() == "content" and os.listdir(tmp_path) == ["x"]


def test_whole_writes_leave_the_rest_to_the_manager(tmp_path: Path) -> None:
    manager = Files()
    whole, path = WholeWrites(manager), str(tmp_path / "log")
    for mode in ("a", "r", "rb"):
        whole.open(path, mode).close()
    whole.open("s3://bucket/model.pth", "wb").close()
    assert manager.opened == [
        *((path, mode) for mode in ("a", "r", "rb")),
        ("s3://bucket/model.pth", "wb"),
    ]
    assert whole.scheme == "file"
    # Neither trainer may take the unfinished file for a checkpoint.
    assert "checkpoint" not in UNFINISHED and not UNFINISHED.endswith((".pth", ".pyth"))
