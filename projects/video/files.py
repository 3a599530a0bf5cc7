"""Files of the toy sets: written whole or not at all, in folders that can be taken up again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image
from tqdm import tqdm

from mvitv2_core.checkpoint.files import whole_file

FPS = 30


def write_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in its place at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        write(Path(temporary))


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically."""

    def write(temporary: Path) -> None:
        temporary.write_text(text)

    write_atomic(path, write)


def write_jpeg(path: Path, picture: np.ndarray) -> None:
    """Write (height, width, 3) of 0 to 255 as a JPEG, atomically."""
    image = Image.fromarray(np.rint(picture).astype(np.uint8))
    write_atomic(path, lambda temporary: image.save(temporary, format="JPEG", quality=92))


def write_video(path: Path, frames: np.ndarray) -> None:
    """Write (T, height, width, 3) uint8 as H.264 in MP4 at 30 frames a second, atomically."""

    def encode(temporary: Path) -> None:
        # The same frames give the same bytes: no date in the file, one thread, and without
        # x264's macroblock tree, which does not repeat itself on pictures this small.
        reformatter = VideoReformatter()  # one for all frames: a frame's own costs far more
        with av.open(str(temporary), "w", format="mp4", options={"fflags": "+bitexact"}) as file:
            stream = file.add_stream("libx264", rate=FPS)
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = "yuv420p"
            stream.options = {"crf": "18", "preset": "veryfast", "threads": "1"}
            stream.options |= {"x264-params": "no-mbtree=1:bframes=0"}
            for frame in frames:
                picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
                file.mux(stream.encode(reformatter.reformat(picture, format="yuv420p")))
            file.mux(stream.encode(None))

    write_atomic(path, encode)


def claim_folder(folder: Path, settings: dict[str, Any]) -> None:
    """Note in `folder` what it is for, so that a later call goes on with the same set.

    One process at a time may fill a folder.

    Raises:
        ValueError: the folder already holds a set made with other settings.
    """
    marker = folder / "settings.json"
    # Through JSON and back, so that tuples compare equal to what was read.
    settings = json.loads(json.dumps(settings))
    if marker.exists():
        found = json.loads(marker.read_text())
        if found != settings:
            raise ValueError(
                f"{folder} holds a toy set made with other settings ({found}, asked for "
                f"{settings}): delete it or choose another folder"
            )
        for leftover in folder.rglob(".mvitv2-*.tmp"):  # of a killed run; a loader would list them
            if leftover.is_file():
                leftover.unlink()
        return
    write_text(marker, json.dumps(settings, indent=1) + "\n")


def make_missing(jobs: Iterable[tuple[Path, Callable[[Path], None]]], title: str) -> int:
    """Run each job whose file is not there yet, under a progress bar; how many ran."""
    missing = [(path, make) for path, make in jobs if not path.exists()]
    for path, make in tqdm(missing, desc=title, unit="file", disable=not missing):
        make(path)
    return len(missing)
