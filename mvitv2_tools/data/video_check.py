"""Videos: every file is decoded once."""

from __future__ import annotations

import hashlib
import itertools
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mvitv2_core.media import MediaError, Video

from .findings import Findings, Kind
from .labelled import KINDS as LABELLED_KINDS
from .labelled import Item
from .parallel import map_files

RANDOM = "PySlowFast takes a random other file instead, silently."
KINDS = {
    **LABELLED_KINDS,
    "unreadable video": Kind("error", RANDOM),
    "ends early": Kind("error", "Cut off or damaged; only its beginning can be decoded."),
    "single picture": Kind("error", "One frame is no video."),
    "same video, two labels": Kind("error", "Which one is right?"),
    "too short": Kind("warning", "A clip spans more; the last frame is repeated to fill it."),
    "blank": Kind("warning", "One colour from beginning to end."),
    "nothing moves": Kind("warning", "All frames are alike."),
    "gap in time": Kind("warning", "Frames are missing or come at uneven times."),
    "odd frame rate": Kind("warning", "Clips are sampled as at 30 a second."),
    "small picture": Kind("warning", "It is enlarged more than twice to the crop."),
    "long and narrow": Kind("warning", "A square crop sees little of it."),
    "turned by a flag": Kind("warning", "PySlowFast shows it unturned; re-encode it upright."),
    "size changes": Kind("warning", "Frames differ in size."),
    "long": Kind("warning", "A clip at random sees little of it: cut it into labelled clips."),
}
FRAMES_SEEN = 24  # of a video, spread, for telling whether anything moves


class Look(NamedTuple):
    """What decoding a video from end to end gave.

    Args:
        error: why there is nothing; "" otherwise.
        broken: why decoding ended early; "" otherwise.
        frames, seconds, fps: as decoded.
        gap: longest time from one frame to the next, over the median.
        sizes: (width, height) of the frames, each once.
        turned: degrees by which a flag turns it.
        moves: largest difference of a frame's pixel from the first frame's, of 255.
        contrast: largest minus smallest value of all pixels seen.
        digest: of the file's bytes.
    """

    error: str = ""
    broken: str = ""
    frames: int = 0
    seconds: float = 0.0
    fps: float = 0.0
    gap: float = 1.0
    sizes: tuple[tuple[int, int], ...] = ()
    turned: int = 0
    moves: int = 255
    contrast: int = 255
    digest: str = ""


def look(path: str) -> Look:
    """Decode a video, all of it."""
    try:
        if not Path(path).stat().st_size:
            return Look("the file is empty")
        with Video(path, cover=(32, 32)) as video:
            return _decode(video, _digest(path))
    except MediaError as error:
        return Look(str(error).removeprefix(f"{path}: "))
    except OSError as error:
        return Look(error.strerror or str(error))


def _digest(path: str) -> str:
    digest = hashlib.sha1(usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _decode(video: Video, digest: str) -> Look:
    times, sizes, turned = [], dict[tuple[int, int], None](), 0
    first, moves, low, high = None, 0, 255, 0
    step = max(1, int((video.duration or 0) * video.fps) // FRAMES_SEEN)
    for number, frame in enumerate(video.frames()):
        picture = frame.picture
        times.append(frame.seconds)
        sizes[picture.width, picture.height] = None
        turned = round(picture.rotation)
        if number % step == 0 and len(sizes) == 1:
            pixels = video.to_tensor(picture).int()
            first = pixels if first is None else first
            moves = max(moves, int((pixels - first).abs().max()))
            low, high = min(low, int(pixels.min())), max(high, int(pixels.max()))
    if not times:
        return Look("holds no frame")
    gaps = [b - a for a, b in itertools.pairwise(times)]
    usual = statistics.median(gaps) if gaps else 0.0
    return Look(
        broken=video.broken,
        frames=len(times),
        seconds=times[-1] + 1 / video.fps,
        fps=video.fps,
        gap=max(gaps) / usual if usual > 0 else 1.0,
        sizes=tuple(sizes),
        turned=turned,
        moves=moves,
        contrast=high - low,
        digest=digest,
    )


def crashed(path: str) -> Look:
    """What is known of a video at which its process died."""
    return Look("its decoder crashed")


def check_videos(
    items: Sequence[Item], span: float, crop: int, workers: int, findings: Findings
) -> None:
    """Broken, too short and odd videos, and the same video twice.

    Args:
        items: labelled videos; those that are not there are left out.
        span: seconds that a clip of the model spans.
        crop: pixels that it sees.
        workers: processes.
        findings: where they go.
    """
    there = [item for item in items if item.path.is_file()]
    looks = map_files(look, [str(item.path) for item in there], crashed, workers, "videos")
    same: dict[str, list[Item]] = defaultdict(list)
    for item, seen in zip(there, looks, strict=True):
        if seen.error:
            findings.add("unreadable video", item.row, seen.error)
            continue
        same[seen.digest].append(item)
        _judge(item.row, seen, span, crop, findings)
    check_copies(same, "same video, two labels", findings)


def check_copies(same: dict[str, list[Item]], two_labels: str, findings: Findings) -> None:
    """Files of one content; ``two_labels`` is the kind for those of two classes."""
    for first, *others in same.values():
        for other in others:
            if other.path.resolve() == first.path.resolve():
                continue  # said already, by path
            text = f"the same content as {first.row}"
            if other.label != first.label:
                text += f", {other.label!r} and {first.label!r}"
                findings.add(two_labels, other.row, text)
            elif (other.split == "train") != (first.split == "train"):
                text += f", {other.split} and {first.split}"
                findings.add("train and val overlap", other.row, text)
            else:
                findings.add("same content twice", other.row, text)


def _judge(row: str, seen: Look, span: float, crop: int, findings: Findings) -> None:
    if seen.broken:
        findings.add("ends early", row, seen.broken)
    if seen.frames == 1:
        findings.add("single picture", row, "it holds one frame")
        return
    if seen.seconds < span - 0.5 / seen.fps:
        findings.add("too short", row, f"{seen.seconds:.2f} s; a clip spans {span:.2f} s")
    if seen.contrast < 12:
        findings.add("blank", row, f"its values differ by {seen.contrast} of 255")
    elif seen.moves < 12:
        findings.add("nothing moves", row, f"values change by {seen.moves} of 255 at most")
    if seen.gap > 5 and not seen.broken:
        findings.add("gap in time", row, f"one frame lasts as long as {seen.gap:.0f} others")
    if not 12 <= seen.fps <= 120:
        findings.add("odd frame rate", row, f"{seen.fps:.4g} frames a second")
    width, height = seen.sizes[0]
    if min(width, height) < crop / 2:
        findings.add("small picture", row, f"{width} x {height}; the crop is {crop}")
    if max(width, height) > 3 * min(width, height):
        findings.add("long and narrow", row, f"{width} x {height}")
    if seen.turned % 360:
        findings.add("turned by a flag", row, f"by {seen.turned} degrees")
    if len(seen.sizes) > 1:
        text = ", then ".join(f"{w} x {h}" for w, h in seen.sizes)
        findings.add("size changes", row, text)
    if seen.seconds > max(60.0, 20 * span):
        findings.add("long", row, f"{seen.seconds:.0f} s; a clip spans {span:.2f} s")
