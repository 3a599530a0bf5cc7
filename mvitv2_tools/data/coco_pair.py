"""What is wrong with masks, with sizes, and between a training and a validation json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .coco_check import Split
from .findings import Findings

TINY = 4.0  # pixels a side as the network sees them: one patch of its first stage


def has_masks(splits: Sequence[Split], boxes_only: bool, findings: Findings) -> bool:
    """Whether a mask head can be trained: every box has a mask.

    Args:
        splits: read by ``read_split``.
        boxes_only: masks are not wanted, and not looked at.
        findings: where bad masks go.
    """
    if boxes_only:
        return False
    objects = [(s, a) for s in splits for a in s.annotations if not a.get("iscrowd", 0)]
    without = [(s, a) for s, a in objects if not a.get("segmentation")]
    if len(without) == len(objects):
        return False
    for split, annotation in without:
        findings.add("masks only in part", split.named(annotation), "without a segmentation")
    for split, annotation in objects:
        image = split.images.get(annotation["image_id"])
        if annotation.get("segmentation") and image is not None:
            _check_mask(split, annotation, image, findings)
    return True


def _check_mask(
    split: Split, annotation: dict[str, Any], image: dict[str, Any], findings: Findings
) -> None:
    mask, where = annotation["segmentation"], split.named(annotation)
    if isinstance(mask, dict):
        size = [image["height"], image["width"]]
        if mask.get("size") != size or "counts" not in mask:
            text = f"run lengths of {mask.get('size')} in an image of height, width {size}"
            findings.add("bad mask", where, text)
        elif isinstance(mask["counts"], list) and sum(mask["counts"]) != size[0] * size[1]:
            findings.add("bad mask", where, f"run lengths of {sum(mask['counts'])} pixels")
        return
    good = isinstance(mask, list) and all(
        isinstance(p, list) and len(p) >= 6 and len(p) % 2 == 0 for p in mask
    )
    if not good:
        text = "a polygon must be a list of 3 or more x, y: [[x1, y1, x2, y2, x3, y3, ...]]"
        findings.add("bad mask", where, text)
        return
    if not _is_box(annotation["bbox"]):
        return
    xs, ys = [x for p in mask for x in p[::2]], [y for p in mask for y in p[1::2]]
    x, y, width, height = annotation["bbox"]
    extent = (min(xs), min(ys), max(xs), max(ys))
    share = _iou(extent, (x, y, x + width, y + height))
    if share < 0.5:
        text = f"the mask spans {[round(v, 1) for v in extent]}, the box {annotation['bbox']}"
        findings.add("mask and box disagree", where, f"{text} as x, y, width, height")


def _iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes x1, y1, x2, y2; a box without area counts as none."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
    return width * height / (sum(areas) - width * height)


def check_classes(train: Split, val: Split, findings: Findings) -> None:
    """The model's output i is the i-th category by id: it must be the same one in both."""
    if train.classes == val.classes or not (train.categories and val.categories):
        return
    for index in range(max(len(train.classes), len(val.classes))):
        pair = [s.categories[index] if index < len(s.categories) else None for s in (train, val)]
        if pair[0] is None or pair[1] is None or pair[0]["name"] != pair[1]["name"]:
            said = ["none" if c is None else f"{c['name']!r} (id {c['id']})" for c in pair]
            findings.add("other classes in val", f"output {index}", f"{said[0]}, val: {said[1]}")


def check_tiny(split: Split, short_edge: int, longest: int, findings: Findings) -> None:
    """Boxes that are smaller than a patch once the image is resized for testing."""
    for annotation in split.annotations:
        image = split.images.get(annotation["image_id"])
        if image is None or annotation.get("iscrowd", 0) or not _is_box(annotation["bbox"]):
            continue
        sides = image["width"], image["height"]
        scale = min(short_edge / min(sides), longest / max(sides))
        width, height = (scale * side for side in annotation["bbox"][2:])
        if 0 < min(width, height) < TINY:
            text = f"{width:.1f} x {height:.1f} pixels at a short edge of {short_edge}"
            findings.add("tiny box", split.named(annotation), text)


def sizes(split: Split) -> str:
    """Images' and boxes' sizes in one line: smallest, median, largest."""

    def spread(values: Sequence[float]) -> str:
        ordered = sorted(values)
        return f"{ordered[0]:.0f} / {ordered[len(ordered) // 2]:.0f} / {ordered[-1]:.0f}"

    shorter = [min(image["width"], image["height"]) for image in split.images.values()]
    boxes = [a["bbox"] for a in split.annotations if _is_box(a["bbox"])]
    if not shorter or not boxes:
        return ""
    sides = [(box[2] * box[3]) ** 0.5 for box in boxes if box[2] > 0 and box[3] > 0]
    text = f"shorter sides of images {spread(shorter)}"
    return f"{text}; square roots of boxes' areas {spread(sides)}" if sides else text


def _is_box(box: Any) -> bool:
    return isinstance(box, list) and len(box) == 4 and all(isinstance(v, (int, float)) for v in box)
