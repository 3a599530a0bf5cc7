"""Frames, frame lists and annotations as PySlowFast's ``ava`` data set reads them."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from mvitv2_core.media import MediaError, Video

from .ava_boxes import FIRST, Box

FPS, SHORT_SIDE = 30, 320
PADDING = (FIRST - 900) * FPS  # copies of the first frame at the head of a frame list
LABEL_MAP = "ava_action_list_v2.2_for_activitynet_2019.pbtxt"  # PySlowFast's default names
SOURCE = "source.txt"  # beside a video's frames: which file they were written from
EXCLUSIONS = "ava_val_excluded_timestamps_v2.2.csv"


class Job(NamedTuple):
    """A video's frames to write.

    Args:
        path: the video's.
        target: the folder to make.
        write: False for counting the frames alone.
    """

    path: str
    target: str
    write: bool = True


class Frames(NamedTuple):
    """What writing a video's frames gave: how many, or why there are none; where it broke off."""

    number: int = 0
    error: str = ""
    broken: str = ""


def folder_name(video: str) -> str:
    """A name for a video that lists may hold: no spaces, commas or folders."""
    return re.sub(r"[^\w.-]+", "_", video)


def write_frames(job: Job) -> Frames:
    """A video's frames at 30 a second as JPEG, the shorter side 320 at most.

    A folder that is there is taken as it is if it was written from this file as it is now, by size
    and time of change.
    """
    path, target = Path(job.path), Path(job.target)
    unfinished = target.with_name(f".{target.name}.unfinished")
    try:
        status = path.stat()
        source = f"{status.st_size} {status.st_mtime_ns}\n".encode()
        if (target / SOURCE).is_file() and (target / SOURCE).read_bytes() == source:
            return Frames(len(list(target.glob("*.jpg"))))
        shutil.rmtree(unfinished, ignore_errors=True)
        if job.write:
            unfinished.mkdir(parents=True)
        with Video(path) as video:
            count = _write(video, unfinished if job.write else None, target.name)
            broken = video.broken
        if broken or not count:
            return Frames(count, "" if count else "holds no frame", broken)
        if job.write:
            (unfinished / SOURCE).write_bytes(source)
            shutil.rmtree(target, ignore_errors=True)
            os.replace(unfinished, target)
        return Frames(count)
    except (MediaError, OSError) as error:
        return Frames(error=str(error).removeprefix(f"{path}: "))
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write(video: Video, folder: Path | None, name: str) -> int:
    """Frame i is the one shown at i / 30 seconds; returns how many. None: write nothing."""
    from PIL import Image

    written, shown = 0, None

    def save(until: float) -> int:
        nonlocal written
        while shown is not None and written / FPS < until - 1e-6:
            if folder is not None:
                shown.save(folder / f"{name}_{written:06d}.jpg", quality=92)
            written += 1
        return written

    end = 0.0
    for frame in video.frames():
        save(frame.seconds)
        shown = Image.fromarray(video.to_tensor(frame.picture).numpy())
        scale = SHORT_SIDE / min(shown.size)
        if scale < 1:
            shown = shown.resize((round(shown.width * scale), round(shown.height * scale)))
        end = frame.seconds + 1 / video.fps
    return save(end)


def crashed(job: Job) -> Frames:
    """What is known of a video at which its process died."""
    return Frames(error="its decoder crashed")


def frame_list(frames: dict[str, int]) -> str:
    """PySlowFast's list of all frames; ``frames`` has the number of each video's."""
    rows = ["original_vido_id video_id frame_id path labels\n"]  # the header's own spelling
    for number, (name, count) in enumerate(frames.items()):
        indices = [0] * PADDING + list(range(count))
        rows += [
            f'{name} {number} {index} {name}/{name}_{frame:06d}.jpg ""\n'
            for index, frame in enumerate(indices)
        ]
    return "".join(rows)


def box_rows(boxes: Iterable[Box], classes: Sequence[str]) -> str:
    """AVA's csv of boxes and the numbers of their actions, from 1."""
    numbers = {name: number for number, name in enumerate(classes, 1)}
    return "".join(f"{_place(box)},{numbers[box.label]},0\n" for box in boxes)


def predicted(boxes: Iterable[Box]) -> str:
    """The true boxes as if a detector had found them, each once."""
    return "".join(f"{place},,1.0\n" for place in dict.fromkeys(_place(box) for box in boxes))


def _place(box: Box) -> str:
    sides = ",".join(f"{side:.4f}" for side in box.sides)
    return f"{folder_name(box.video)},{FIRST + box.second:04d},{sides}"


def label_map(classes: Sequence[str]) -> str:
    """AVA's list of actions."""
    names = [name.replace('"', "'") for name in classes]
    return "".join(
        f'item {{\n  name: "{name}"\n  id: {number}\n}}\n' for number, name in enumerate(names, 1)
    )
