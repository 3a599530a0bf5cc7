"""Boxes of people and what they do, from a csv in AVA's manner."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..actions import within
from .findings import Findings, Kind
from .labelled import UNKNOWN_SPLIT, Item, read_split

COLUMNS = ("video", "second", "x1", "y1", "x2", "y2", "label")
# PySlowFast takes seconds 902 to 1798 of a video; frame 0 is second 900. Frame lists written here
# repeat the first frame for two seconds, so that second 0 is 902.
FIRST, SECONDS = 902, 897
ACTIONS = 80  # PySlowFast stops at a label above
KINDS = {
    "no data": Kind("error", "Nothing to train on."),
    "bad row": Kind("error", f"A row is {', '.join(COLUMNS)}, and perhaps split."),
    "box in pixels": Kind("error", "Sides are fractions of the picture, from 0 to 1."),
    "bad box": Kind("error", "0 <= x1 < x2 <= 1, and so for y."),
    "second out of range": Kind("error", f"Whole seconds from 0, below {SECONDS}: cut the video."),
    "too many actions": Kind("error", f"PySlowFast's AVA data set takes {ACTIONS} at most."),
    "unknown label": Kind("error", "It is not among the classes."),
    "unknown split": UNKNOWN_SPLIT,
    "missing file": Kind("error", "The video of a row is not there."),
    "unreadable video": Kind("error", "Its frames cannot be written."),
    "ends early": Kind("error", "Cut off or damaged; only its beginning can be decoded."),
    "box after the end": Kind("error", "The video is shorter."),
    "video on both sides": Kind("error", "Validation would measure what was learnt by heart."),
    "two videos of one name": Kind("error", "Lists cannot hold other signs than letters and .-_"),
    "class not in train": Kind("error", "It cannot be learnt."),
    "class not in val": Kind("warning", "It is not measured."),
    "duplicate row": Kind("warning", "It counts twice."),
    "video without boxes": Kind("warning", "It is not used."),
}


class Box(NamedTuple):
    """One person at one second.

    Args:
        video: as the csv has it.
        second: from the video's start.
        sides: x1, y1, x2, y2 as fractions of the picture.
        label: the action's name.
        row: where it was read.
    """

    video: str
    second: int
    sides: tuple[float, ...]
    label: str
    row: str


def read_boxes(
    file: Path, split: str, classes: Sequence[str] | None, findings: Findings
) -> tuple[list[Box], dict[str, str]]:
    """Boxes of a csv with a header, and the split of each video ("" where it is to be drawn).

    Args:
        file: its first row names ``COLUMNS``, and perhaps ``split``; others are not read.
        split: of all rows; "" for the column's.
        classes: names that labels must be among; None for any.
        findings: where wrong rows go.

    Raises:
        ValueError: it cannot be read, or lacks a column.
    """
    try:
        lines = file.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: cannot be read: {error}") from error
    reader = csv.DictReader(lines)
    header = [name.strip().lower() for name in reader.fieldnames or []]
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise ValueError(f"{file}: its first row must name {', '.join(missing)}, got {header}")
    reader.fieldnames = header
    boxes: list[Box] = []
    splits: dict[str, str] = {}
    seen: set[tuple[object, ...]] = set()
    for number, cells in enumerate(reader, 2):
        row = f"{file.name}, row {number}"
        box = _read_row(cells, row, findings)
        if box is None:
            continue
        if classes is not None and box.label not in classes:
            findings.add("unknown label", row, f"{box.label!r}")
            continue
        own = read_split(cells.get("split"), split, row, findings)
        if own is None:
            continue
        if box[:4] in seen:
            findings.add("duplicate row", row, f"{box.video}, second {box.second}, {box.label}")
        seen.add(box[:4])
        if splits.setdefault(box.video, own) != own:
            text = f"{box.video} is in {splits[box.video]} and in {own}"
            findings.add("video on both sides", row, text)
        boxes.append(box)
    return boxes, splits


def _read_row(cells: dict[str, str], row: str, findings: Findings) -> Box | None:
    values = {name: (cells.get(name) or "").strip() for name in COLUMNS}
    try:
        second = float(values["second"])
        sides = tuple(float(values[name]) for name in ("x1", "y1", "x2", "y2"))
    except ValueError:
        findings.add("bad row", row, f"{', '.join(values.values())}")
        return None
    if not values["video"] or not values["label"] or not all(map(math.isfinite, (second, *sides))):
        findings.add("bad row", row, f"{', '.join(values.values())}")
        return None
    if second != int(second) or not 0 <= second < SECONDS:
        findings.add("second out of range", row, values["second"])
        return None
    if max(sides) > 2:
        findings.add("box in pixels", row, f"{sides}")
        return None
    inside = within(sides)
    if inside is None:
        findings.add("bad box", row, f"{sides}")
        return None
    return Box(values["video"], int(second), inside, values["label"], row)


def find_videos(
    boxes: Sequence[Box], folder: Path, endings: frozenset[str], findings: Findings
) -> dict[str, Path]:
    """The file of each video that the csv names, with or without its ending."""
    files = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in endings]
    by_name = {str(path.relative_to(folder)): path for path in files}
    by_name |= {str(path.relative_to(folder).with_suffix("")): path for path in files}
    found: dict[str, Path] = {}
    for box in boxes:
        if box.video in found:
            continue
        if box.video in by_name:
            found[box.video] = by_name[box.video]
        else:
            findings.add("missing file", box.row, f"{box.video} in {folder}")
            found[box.video] = folder / box.video
    used = set(found.values())
    for path in files:
        if path not in used:
            findings.add(
                "video without boxes", str(path.relative_to(folder)), "no good row names it"
            )
    return found


def as_items(boxes: Sequence[Box], videos: dict[str, Path], splits: dict[str, str]) -> list[Item]:
    """Boxes as labelled files, for drawing the split by videos."""
    return [
        Item(videos[box.video], box.label, box.video, splits[box.video], box.row) for box in boxes
    ]
