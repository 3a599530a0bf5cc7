"""Pictures and videos by file, folder and pattern."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

# fmt: off
PICTURES = frozenset([
    ".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp",
])
VIDEOS = frozenset([
    ".264", ".3gp", ".avi", ".flv", ".h264", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg",
    ".mpg", ".mts", ".ogv", ".ts", ".webm", ".wmv",
])
# fmt: on


class Input(NamedTuple):
    """One file, and what its name says that it is."""

    path: str
    kind: Literal["picture", "video"]


def find_inputs(patterns: Iterable[str]) -> tuple[list[Input], list[str]]:
    """Files for what a person named, each once, folders searched in alphabetical order.

    Args:
        patterns: files, folders (with all below them), and patterns such as ``clips/**/*.mp4``.
            A named file may have any ending, and is then taken for a picture; in folders only
            known endings count.

    Returns:
        The files, and one line for each pattern that led to nothing.
    """
    found: dict[str, Input] = {}
    problems = []
    for pattern in patterns:
        before = len(found)
        known = set(found)
        names = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern, recursive=True))
        for name in names:
            for path in _below(name):
                found.setdefault(path.path, path)
        if len(found) == before and not known & {p.path for name in names for p in _below(name)}:
            empty = "holds no picture or video" if os.path.isdir(pattern) else "no such file"
            problems.append(f"{pattern}: {empty}")
    return list(found.values()), problems


def _below(name: str) -> list[Input]:
    if not os.path.isdir(name):
        return [Input(name, "video" if Path(name).suffix.lower() in VIDEOS else "picture")]
    files = []
    for folder, folders, names in os.walk(name):
        folders.sort()
        for file in sorted(names):
            suffix = Path(file).suffix.lower()
            if suffix in PICTURES | VIDEOS and not file.startswith("."):
                kind: Literal["picture", "video"] = "video" if suffix in VIDEOS else "picture"
                files.append(Input(os.path.join(folder, file), kind))
    return files
