"""Faults that kill nobody: full and read-only disks, other times of change, a flipped bit.

Disks are small file systems in memory, which only root may mount, on Linux.
"""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

FILLER = "filler"
REAL_TIME, YEAR = time.time, 365 * 24 * 3600.0


def mount(*arguments: str | Path) -> bool:
    command = ["mount", *map(str, arguments)]
    return subprocess.run(command, capture_output=True).returncode == 0


def unmount(folder: Path) -> None:
    """The newest mount there; lazily, for trainers keep their logs open."""
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[Path]:
    """A file system of its own at ``folder``; skips the test where none can be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    size = f"size={mebibytes}m"
    if sys.platform != "linux" or not mount("-t", "tmpfs", "-o", size, "tmpfs", folder):
        pytest.skip("needs mount: run as root on Linux")
    try:
        yield folder
    finally:
        unmount(folder)


def fill(folder: Path, left: int = 200_000) -> None:
    """Leave ``left`` bytes: enough for logs, too few for a checkpoint."""
    with open(folder / FILLER, "wb", buffering=0) as stream:
        try:
            while stream.write(bytes(1 << 16)):
                pass
        except OSError as error:
            assert error.errno == errno.ENOSPC
        stream.truncate(stream.tell() - left)


def empty(folder: Path) -> None:
    (folder / FILLER).unlink()


def make_read_only(folder: Path) -> None:
    """Lay the folder over itself, read-only; files that are open stay writable."""
    assert mount("--bind", folder, folder)
    assert mount("-o", "remount,bind,ro", folder)
    assert not os.access(folder, os.W_OK)


FAULTS = {"full": fill, "readonly": make_read_only}
# What makes them good again.
CURES = {"full": empty, "readonly": unmount}


def scatter_times(folder: Path, seed: int = 0) -> None:
    """Give every file a time of change of its own, up to a year ago or ahead."""
    draw = random.Random(seed)
    for path in sorted(folder.rglob("*")):
        when = REAL_TIME() + draw.uniform(-YEAR, YEAR)
        os.utime(path, (when, when))


def flip_bit(path: Path) -> None:
    """Flip a bit of the largest tensor in a torch file."""
    whole = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda member: member.file_size)
        content = archive.read(largest)
    whole[whole.index(content) + len(content) // 2] ^= 1
    path.write_bytes(whole)
