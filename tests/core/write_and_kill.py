"""Kills writers of checkpoints in the middle: ``python write_and_kill.py FOLDER KILLS SEED``.

One process that imported torch forks the writers, so that a kill costs milliseconds. Each writer
replaces one file without end; after every kill the file must hold one version, whole. Prints, as
JSON, how many kills each kind of writer stood and how many of them fell into a write.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from mvitv2_core import MViTClassifier, cli
from mvitv2_core.checkpoint import read_checkpoint
from mvitv2_core.checkpoint.write import write_checkpoint
from mvitv2_core.path_manager import WholeWrites
from tests.structures import small


def state(version: float) -> dict[str, Tensor]:
    """A small classifier's tensors, all of them filled with ``version``."""
    model = MViTClassifier(small("T"))
    return {name: torch.full_like(value, version) for name, value in model.state_dict().items()}


class Files:
    """The ``open`` of a trainer's path manager."""

    open = staticmethod(open)


def writers(folder: Path) -> dict[str, tuple[Path, Callable[[int], None]]]:
    """For each kind: the file, and what writes version 0 or 1 of it."""
    versions = [state(1.0), state(2.0)]
    sources = [folder / f"source{version}.pyth" for version in range(2)]
    for source, content in zip(sources, versions, strict=True):
        write_checkpoint(source, content)

    def function(ending: str, format: str) -> tuple[Path, Callable[[int], None]]:
        path = folder / f"written{ending}"
        return path, lambda v: write_checkpoint(path, versions[v], format, force=True)

    out = folder / "converted.pth"

    def convert(version: int) -> None:
        words = ["--to", "detectron2", "--force", "--quiet"]
        assert cli.main(["convert", str(sources[version]), str(out), *words]) == 0

    whole = folder / "trained.pyth"

    def train(version: int) -> None:
        with WholeWrites(Files()).open(str(whole), "wb") as stream:
            torch.save({"model_state": versions[version]}, stream)

    return {
        "write_checkpoint .pyth": function(".pyth", "slowfast"),
        "write_checkpoint .pkl": function(".pkl", "detectron2"),
        "write_checkpoint .safetensors": function(".safetensors", "timm"),
        "mvitv2 convert": (out, convert),
        "a trainer's checkpoint": (whole, train),
    }


def check(path: Path) -> None:
    """The file can be read, and every tensor of it is of one version."""
    tensors = read_checkpoint(path).state.values()
    seen = {value.item() for tensor in tensors for value in tensor.unique()}
    assert len(tensors) > 20 and seen in ({1.0}, {2.0}), (path, seen)


def kill_one(write: Callable[[int], None], path: Path, delay: float) -> bool:
    """Fork a writer and kill it ``delay`` seconds later; whether that fell into a write."""
    before = set(path.parent.iterdir())
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        version = 0
        while True:
            write(version)
            version = 1 - version
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status
    left = set(path.parent.iterdir()) - before
    for rest in left:
        assert rest.name.startswith((".mvitv2-", ".tmp")), rest  # .tmp: of safetensors
        rest.unlink()
    return bool(left)


def main(folder: Path, kills: int, seed: int) -> None:
    torch.set_num_threads(1)
    draw, results = random.Random(seed), {}
    for name, (path, write) in writers(folder).items():
        start = time.perf_counter()
        write(0)
        once = time.perf_counter() - start
        inside = 0
        for _ in range(kills):
            inside += kill_one(write, path, draw.uniform(0, 3 * once))
            check(path)
        results[name] = {"kills": kills, "inside": inside}
    print(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
