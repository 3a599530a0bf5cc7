"""What is wrong with sizes, and between a training and a validation json."""

from __future__ import annotations

from collections.abc import Sequence

from .coco_check import Split, is_box
from .findings import Findings

TINY = 4.0  # pixels a side as the network sees them: one patch of its first stage


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
        if image is None or annotation.get("iscrowd", 0) or not is_box(annotation["bbox"]):
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
    boxes = [a["bbox"] for a in split.annotations if is_box(a["bbox"])]
    if not shorter or not boxes:
        return ""
    sides = [(box[2] * box[3]) ** 0.5 for box in boxes if box[2] > 0 and box[3] > 0]
    text = f"shorter sides of images {spread(shorter)}"
    return f"{text}; square roots of boxes' areas {spread(sides)}" if sides else text
