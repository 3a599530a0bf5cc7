"""Which files are found, and how they are read ahead."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mvitv2_core.media import MediaError
from mvitv2_tools.feed import AHEAD, Part, feed
from mvitv2_tools.inputs import Input, find_inputs


def test_files_folders_and_patterns(tmp_path: Path) -> None:
    for name in ("b/2.JPG", "b/1.png", "a/x.mp4", "a/notes.txt", "odd.dat", "c/.hidden.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def found(*patterns: str) -> list[tuple[str, str]]:
        inputs, problems = find_inputs(str(tmp_path / p) for p in patterns)
        assert not problems
        return [(os.path.relpath(item.path, tmp_path), item.kind) for item in inputs]

    everything = [("a/x.mp4", "video"), ("b/1.png", "picture"), ("b/2.JPG", "picture")]
    assert found("") == everything
    assert found("b", "a") == [*everything[1:], everything[0]]
    assert found("*/*.png", "b/1.png") == [("b/1.png", "picture")]
    assert found("**/*.mp4") == everything[:1]
    assert found("odd.dat") == [("odd.dat", "picture")]
    inputs, problems = find_inputs([str(tmp_path / name) for name in ("c", "none", "*.mov")])
    assert not inputs
    assert problems == [
        f"{tmp_path}/c: holds no picture or video",
        f"{tmp_path}/none: no such file",
        f"{tmp_path}/*.mov: no such file",
    ]


INPUTS = [Input(str(i), "video" if i % 5 == 4 else "picture") for i in range(23)]


def picture(item: Input) -> Part:
    time.sleep(0.002 * (int(item.path) % 3))  # some take longer than those after them
    if item.path == "7":
        raise MediaError("7: broken")
    return Part(item, data=int(item.path))


def video(item: Input) -> Iterator[Part]:
    for second in range(3):
        if item.path == "9" and second == 2:
            raise MediaError("9: broken")
        yield Part(item, data=int(item.path), span=(second, second + 1))


def test_order_and_errors() -> None:
    parts = list(feed(INPUTS, picture, video, workers=3))
    numbers = [int(part.input.path) for part in parts]
    assert numbers == sorted(numbers) and set(numbers) == set(range(23))
    assert [part.error for part in parts if part.error] == ["7: broken", "9: broken"]
    assert sum(part.input.path == "4" for part in parts) == 3


def test_no_more_is_held_than_can_wait() -> None:
    """A slow model holds the reader up: memory does not grow with the number of inputs."""
    read: list[int] = []

    def count(item: Input) -> Part:
        read.append(int(item.path))
        return Part(item)

    parts = feed([Input(str(i), "picture") for i in range(200)], count, video, workers=2)
    next(parts)
    time.sleep(0.3)
    assert len(read) <= 1 + AHEAD + 2 + 3
    parts.close()
    assert not [t for t in threading.enumerate() if t.name == "feed"]


def test_faults_of_the_program_are_raised() -> None:
    def broken(item: Input) -> Part:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        list(feed(INPUTS, broken, video))
