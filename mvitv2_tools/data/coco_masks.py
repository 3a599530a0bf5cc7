"""What is wrong with the masks of COCO jsons: polygons and run lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .coco_check import Split, is_box, is_number
from .findings import Findings

POLYGON = "a polygon must be a list of 3 or more x, y: [[x1, y1, x2, y2, x3, y3, ...]]"


def has_masks(splits: Sequence[Split], boxes_only: bool, findings: Findings) -> bool:
    """Whether a mask head can be trained: masks are there, and wanted.

    Args:
        splits: read by ``read_split``.
        boxes_only: masks are not wanted. What detectron2 reads of them all the same is checked.
        findings: where bad masks go, and boxes without one.
    """
    every = [(s, a) for s in splits for a in s.annotations]
    objects = [a for _, a in every if not a.get("iscrowd", 0)]
    learnt = not boxes_only and any(a.get("segmentation") for a in objects)
    for split, annotation in every:
        image, mask = split.images.get(annotation["image_id"]), annotation.get("segmentation")
        if mask and image is not None and learnt:
            _check_mask(split, annotation, image, findings)
        elif mask and image is not None:
            text = _unreadable(mask, image)
            if text:
                findings.add("bad mask", split.named(annotation), text)
        elif learnt and not mask and _needs_mask(split, annotation):
            findings.add("masks only in part", split.named(annotation), "without a segmentation")
    return learnt


def has_run_lengths(split: Split) -> bool:
    """Whether a mask to learn from is in run lengths, which detectron2 takes as bitmasks alone."""
    objects = (a for a in split.annotations if not a.get("iscrowd", 0))
    return any(isinstance(a.get("segmentation"), dict) for a in objects)


def _needs_mask(split: Split, annotation: dict[str, Any]) -> bool:
    """Training leaves crowds out; evaluation draws them."""
    return split.name == "val" or not annotation.get("iscrowd", 0)


def _unreadable(mask: Any, image: dict[str, Any]) -> str:
    """Where detectron2's reader would stop at a mask that is not learnt, or drop its box; "" else.

    It turns lists of counts into text, and leaves out polygons of under three points.
    """
    if isinstance(mask, dict):
        written = isinstance(mask.get("counts"), str)
        return "" if written else _wrong_run_lengths(mask, image["height"], image["width"])
    lists = isinstance(mask, list) and all(isinstance(points, list) for points in mask)
    whole = lists and any(len(points) >= 6 and len(points) % 2 == 0 for points in mask)
    return "" if whole else POLYGON


def _check_mask(
    split: Split, annotation: dict[str, Any], image: dict[str, Any], findings: Findings
) -> None:
    mask, where = annotation["segmentation"], split.named(annotation)
    if isinstance(mask, dict):
        text = _wrong_run_lengths(mask, image["height"], image["width"])
        if text:
            findings.add("bad mask", where, text)
        return
    if not (isinstance(mask, list) and mask and all(map(_is_polygon, mask))):
        findings.add("bad mask", where, POLYGON)
        return
    if not is_box(annotation["bbox"]):
        return
    xs, ys = [x for p in mask for x in p[::2]], [y for p in mask for y in p[1::2]]
    x, y, width, height = annotation["bbox"]
    left, top, right, bottom = extent = (min(xs), min(ys), max(xs), max(ys))
    box = (x, y, x + width, y + height)
    spans = f"the mask spans {_rounded(extent)} as x1, y1, x2, y2, the box {_rounded(box)}"
    if _near(extent, box):
        return
    if _near(extent, annotation["bbox"]):
        text = f"{spans}: the json's {_rounded(annotation['bbox'])} are corners"
        findings.add("boxes look like corners", where, text)
    elif _near((top, left, bottom, right), box):
        findings.add("polygon in y, x", where, spans)
    elif _iou(extent, box) < 0.5:
        findings.add("mask and box disagree", where, spans)


def _near(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether two boxes are the same but for rounding, in pixels."""
    return all(abs(p - q) <= 1.5 for p, q in zip(a, b, strict=True))


def _rounded(box: Sequence[float]) -> list[float]:
    return [round(value, 1) for value in box]


def _is_polygon(points: Any) -> bool:
    if not (isinstance(points, list) and len(points) >= 6 and len(points) % 2 == 0):
        return False
    return all(map(is_number, points))


def _wrong_run_lengths(mask: dict[str, Any], height: int, width: int) -> str:
    """What is wrong with run lengths; "" where nothing is."""
    if mask.get("size") != [height, width]:
        where = f"an image of height, width {[height, width]}"
        return f"run lengths of {mask.get('size')} in {where}"
    counts = mask.get("counts")
    if isinstance(counts, str):
        counts = read_run_lengths(counts)
    elif not isinstance(counts, list) or not all(isinstance(n, int) for n in counts):
        counts = None
    if counts is None or min(counts, default=0) < 0:
        return "counts that are no run lengths"
    pixels = sum(counts)
    return "" if pixels == height * width else f"run lengths of {pixels} pixels"


def read_run_lengths(text: str) -> list[int] | None:
    """COCO's compressed ``counts``: five bits a character.

    From the fourth on, each is what is added to the one two before it.

    Read here and not by pycocotools, of which old versions read past the end of a wrong text.
    Source: ``rleFrString`` of cocoapi's maskApi.c.

    Returns:
        The run lengths, or None where the text cannot be such.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:  # more follows
            continue
        if bits & 16:  # negative
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    return counts if shift == 0 else None


def _iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes x1, y1, x2, y2; a box without area counts as none."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
    return width * height / (sum(areas) - width * height)
