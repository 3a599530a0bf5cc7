"""``mvitv2 extract`` for tests: in this process, in another one, and what a folder holds."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from mvitv2_core import MViTClassifier, cli
from mvitv2_tools.extract.work import PART_ROWS
from tests.media_files import frame_number, picture, write_video
from tests.tools.conftest import TINY_CLIP, TINY_STILL, loading_cfg, slowfast_run

ROOT = Path(__file__).resolve().parents[2]
EXTRACT = EntryPoint("extract", "mvitv2_tools.extract.command:add_extract", cli.COMMANDS)
STRIDE = 0.1  # seconds; the tiny model's window is 2/3


def extract(*arguments: object) -> int:
    """Run the command in this process; returns its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "entry_points", lambda group: [EXTRACT] * (group == EXTRACT.group))
        given = ["extract", "--device", "cpu", "--threads", "1", "--quiet"]
        return cli.main([*given, *map(str, arguments)])


def start(
    *arguments: object, part_rows: int = PART_ROWS, environment: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    """Begin the command in a process of its own, with one thread."""
    code = (
        "import sys; from mvitv2_tools.extract import work; "
        f"from tests.tools.extracting import extract; work.PART_ROWS = {part_rows}; "
        "sys.exit(extract(*sys.argv[1:]))"
    )
    here = environment if environment is not None else dict(os.environ)
    here = {**here, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, env=here, stderr=subprocess.PIPE, text=True)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of an extraction that is to be the same in every run."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def clip_model(folder: Path) -> MViTClassifier:
    """A run's folder with a tiny clip model."""
    return slowfast_run(folder, loading_cfg(TINY_CLIP), epoch=1)


def still_model(folder: Path) -> MViTClassifier:
    """A run's folder with a tiny image model."""
    return slowfast_run(folder, loading_cfg(TINY_STILL), epoch=1)


def write_videos(folder: Path, *frames: int) -> Path:
    """Videos of so many frames at 30 a second, and one that is none."""
    folder.mkdir()
    for number, count in enumerate(frames):
        write_video(folder / f"{number}.mp4", frame_number(count, 64, 48))
    (folder / "broken.mp4").write_text("no video")
    return folder


def write_pictures(folder: Path, count: int) -> Path:
    """So many pictures, and one that is none."""
    from PIL import Image

    folder.mkdir()
    for number in range(count):
        Image.fromarray(picture(seed=number)).save(folder / f"{number}.png")
    (folder / "broken.png").write_text("no picture")
    return folder
