"""What is wrong in one COCO json, by itself."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .findings import Findings, Kind

STOPS, SPOILS = "The trainer would stop.", "Training would go on, with wrong targets."
KINDS = {
    "not a COCO json": Kind("error", "It needs the lists images, annotations and categories."),
    "incomplete entry": Kind("error", STOPS),
    "duplicate image id": Kind("error", "Boxes of one image would go to another."),
    "duplicate annotation id": Kind("error", STOPS),
    "duplicate category": Kind("error", "Two classes of one id or name."),
    "unknown image id": Kind("error", "The annotation belongs to no image of the json."),
    "unknown category id": Kind("error", STOPS),
    "bad box": Kind("error", "A box is [x, y, width, height], with width and height above 0."),
    "box outside the image": Kind("error", SPOILS),
    "box in fractions": Kind("error", "COCO has pixels, not shares of the width and height."),
    "boxes look like corners": Kind("error", "COCO has x, y, width, height, not x1, y1, x2, y2."),
    "bad mask": Kind("error", STOPS),
    "polygon in y, x": Kind("error", "COCO's polygons are x, y: " + SPOILS.lower()),
    "masks only in part": Kind("error", "Give all boxes a mask, or train with --boxes-only."),
    "evaluation would stop": Kind("error", "COCO's evaluation reads area and iscrowd of each."),
    "missing file": Kind("error", STOPS),
    "unreadable image": Kind("error", STOPS),
    "16-bit image": Kind("error", "detectron2 reads all above 255 as white: save it with 8 bits."),
    "other size than the json says": Kind("error", STOPS),
    "nothing to learn from": Kind("error", "No image has a box that is no crowd."),
    "other classes in val": Kind("error", "Outputs would mean another class in validation."),
    "train and val overlap": Kind("error", "Validation would measure what was learnt by heart."),
    "box beyond the edge": Kind("warning", "The trainer clips it."),
    "annotation id 0": Kind("warning", "COCO's evaluation takes a match with it for none."),
    "mask and box disagree": Kind("warning", "One of the two may be of another object."),
    "duplicate box": Kind("warning", "The same object twice."),
    "duplicate image": Kind("warning", "The same picture twice in one json."),
    "image without boxes": Kind("warning", "Left out of training, and kept in validation."),
    "image with crowds only": Kind("warning", "Left out of training, and kept in validation."),
    "class without boxes": Kind("warning", "It cannot be learnt, or is not measured."),
    "tiny box": Kind("warning", "Under 4 pixels a side in what the network sees."),
    "file not in the json": Kind("warning", "It is not used."),
}
IMAGE_KEYS = ("id", "file_name", "width", "height")
ANNOTATION_KEYS = ("id", "image_id", "category_id", "bbox")


def is_number(value: Any) -> bool:
    """A finite number; json's true and NaN are none."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value)


def is_box(value: Any) -> bool:
    """Four numbers."""
    return isinstance(value, list) and len(value) == 4 and all(map(is_number, value))


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_size(value: Any) -> bool:
    return _is_whole(value) and value > 0


def _is_line(value: Any) -> bool:
    """Text of one line: labels.txt has a class a line."""
    return isinstance(value, str) and value.splitlines() == [value] and bool(value.strip())


def _is_flag(value: Any) -> bool:
    return isinstance(value, (int, float)) and value in (0, 1)


RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(("id", "image_id", "category_id"), ("a whole number", _is_whole)),
    **dict.fromkeys(("width", "height"), ("a whole number above 0", _is_size)),
    **dict.fromkeys(("file_name", "name"), ("text of one line", _is_line)),
    "iscrowd": ("0 or 1", _is_flag),
}


@dataclass
class Split:
    """One json with its images.

    Args:
        name: "train" or "val".
        json_file: COCO's json.
        image_root: folder of the images.
        images: its complete entries by id; annotations likewise, as a list.
        listed: ids of "images" and of "categories", those of incomplete entries too.
        categories: in the order of their ids.
    """

    name: str
    json_file: Path
    image_root: Path
    images: dict[Any, dict[str, Any]] = field(default_factory=dict)
    listed: dict[str, set[int]] = field(default_factory=dict)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    categories: list[dict[str, Any]] = field(default_factory=list)

    @property
    def classes(self) -> list[str]:
        """Names in the order of their ids, as detectron2 numbers them."""
        return [str(category["name"]) for category in self.categories]

    def file(self, image: dict[str, Any]) -> Path:
        """Where an image lies."""
        return self.image_root / str(image["file_name"])

    def named(self, annotation: dict[str, Any]) -> str:
        """What to call an annotation."""
        image = self.images.get(annotation["image_id"])
        of = f" of {image['file_name']}" if image else ""
        return f"{self.name}, annotation {annotation['id']}{of}"


def read_split(name: str, json_file: Path, image_root: Path, findings: Findings) -> Split:
    """Read and check one json; the images themselves are ``coco_images``'s."""
    split = Split(name, json_file, image_root)
    try:
        content = json.loads(json_file.read_text("utf-8"))
    except OSError as error:
        findings.add("not a COCO json", str(json_file), error.strerror or str(error))
        return split
    except UnicodeDecodeError as error:
        findings.add("not a COCO json", str(json_file), f"save it as UTF-8: {error}")
        return split
    except ValueError as error:  # JSONDecodeError is
        bom = "a byte order mark stands before it: save it as UTF-8 without BOM"
        cause = bom if "BOM" in str(error) else f"no JSON, or cut off: {error}"
        findings.add("not a COCO json", str(json_file), cause)
        return split
    lists = ("images", "annotations", "categories")
    missing = [k for k in lists if not isinstance(content, dict) or not _is_list(content.get(k))]
    if missing:
        findings.add("not a COCO json", str(json_file), f"without a list of {', '.join(missing)}")
        return split
    for kind in ("images", "categories"):
        ids = (entry.get("id") for entry in content[kind])
        split.listed[kind] = {value for value in ids if _is_whole(value)}
    images = _complete(split, findings, content, "images", IMAGE_KEYS)
    for image in images:
        if image["id"] in split.images:
            other = split.images[image["id"]]["file_name"]
            text = f"id {image['id']} is that of {other} too"
            findings.add("duplicate image id", f"{name}, {image['file_name']}", text)
        split.images[image["id"]] = image
    categories = _complete(split, findings, content, "categories", ("id", "name"))
    for key in ("id", "name"):
        for value, number in Counter(c[key] for c in categories).items():
            if number > 1:
                text = f"{key} {value!r} stands for {number} categories"
                findings.add("duplicate category", name, text)
    split.categories = sorted(categories, key=lambda c: c["id"])
    split.annotations = _complete(split, findings, content, "annotations", ANNOTATION_KEYS)
    _check_annotations(split, findings)
    _check_images(split, findings)
    return split


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, dict) for entry in value)


def _complete(
    split: Split, findings: Findings, content: dict[str, Any], kind: str, keys: Iterable[str]
) -> list[dict[str, Any]]:
    """Entries that have every key, each with a value that ``RULES`` allows."""
    whole = []
    for number, entry in enumerate(content[kind]):
        missing = [key for key in keys if key not in entry]
        wrong = [
            f"{key} {entry[key]!r} must be {RULES[key][0]}"
            for key in (*keys, "iscrowd")
            if key in entry and key in RULES and not RULES[key][1](entry[key])
        ]
        if not missing and not wrong:
            whole.append(entry)
            continue
        causes = [f"without {', '.join(missing)}"] if missing else []
        name = entry.get("file_name") or f"entry {number} of {kind}"
        if kind == "annotations" and "id" in entry:
            name = f"annotation {entry['id']}"
        findings.add("incomplete entry", f"{split.name}, {name}", "; ".join(causes + wrong))
    return whole


def _check_annotations(split: Split, findings: Findings) -> None:
    categories = split.listed["categories"]
    ids: set[int] = set()
    seen: set[tuple[Any, ...]] = set()
    corners = []
    for annotation in split.annotations:
        where = split.named(annotation)
        if annotation["id"] in ids:
            findings.add("duplicate annotation id", where, "another has this id")
        ids.add(annotation["id"])
        if split.name == "val":
            _check_evaluation(annotation, where, findings)
        if annotation["category_id"] not in categories:
            text = f"category {annotation['category_id']}; there are {sorted(categories)}"
            findings.add("unknown category id", where, text)
        image = split.images.get(annotation["image_id"])
        if image is None:
            if annotation["image_id"] not in split.listed["images"]:
                findings.add("unknown image id", where, f"image {annotation['image_id']}")
            continue
        if not _check_box(annotation["bbox"], image, where, findings):
            continue
        x, y, width, height = annotation["bbox"]
        if x + width > image["width"] + 1 or y + height > image["height"] + 1:
            corners.append(width > x and height > y and width <= image["width"] + 1)
        key = (annotation["image_id"], annotation["category_id"], *annotation["bbox"])
        if key in seen:
            findings.add("duplicate box", where, f"{annotation['bbox']} of the same class again")
        seen.add(key)
    if len(corners) > max(3, 0.2 * len(split.annotations)) and all(corners):
        text = f"{len(corners)} boxes reach beyond the image as they stand, none as x1, y1, x2, y2"
        findings.add("boxes look like corners", split.name, text)


def _check_evaluation(annotation: dict[str, Any], where: str, findings: Findings) -> None:
    """What pycocotools' COCOeval needs; training needs none of it.

    It notes the id of the annotation that a prediction matches, and takes 0 for no match.
    """
    missing = [key for key in ("area", "iscrowd") if key not in annotation]
    if missing:
        findings.add("evaluation would stop", where, f"without {', '.join(missing)}")
    elif not is_number(annotation["area"]):
        findings.add("evaluation would stop", where, f"area {annotation['area']!r}")
    if annotation["id"] == 0:
        findings.add("annotation id 0", where, "who finds it loses AP: number from 1")


def _check_box(box: Any, image: dict[str, Any], where: str, findings: Findings) -> bool:
    """Whether a box is one, wherever it lies."""
    if not is_box(box) or box[2] <= 0 or box[3] <= 0:
        findings.add("bad box", where, f"{box}")
        return False
    x, y, width, height = box
    size = f"the image of {image['width']} x {image['height']}"
    if min(x, y) >= 0 and max(x + width, y + height) <= 1 < min(image["width"], image["height"]):
        findings.add("box in fractions", where, f"{box} in {size}")
        return False
    if x >= image["width"] or y >= image["height"] or x + width <= 0 or y + height <= 0:
        findings.add("box outside the image", where, f"{box} has no part in {size}")
    elif min(x, y) < -1 or x + width > image["width"] + 1 or y + height > image["height"] + 1:
        inside = min(x + width, image["width"]) - max(x, 0)
        inside *= min(y + height, image["height"]) - max(y, 0)
        share = inside / (width * height)
        kind = "box beyond the edge" if share >= 0.5 else "box outside the image"
        findings.add(kind, where, f"{box}: {share:.0%} of it lies in {size}")
    return True


def _check_images(split: Split, findings: Findings) -> None:
    """Images and classes without boxes; nothing where the json has none at all."""
    boxes: dict[Any, list[bool]] = defaultdict(list)
    for annotation in split.annotations:
        boxes[annotation["image_id"]].append(bool(annotation.get("iscrowd", 0)))
    for key, image in split.images.items():
        where = f"{split.name}, {image['file_name']}"
        if not boxes[key]:
            findings.add("image without boxes", where, "no annotation")
        elif all(boxes[key]):
            findings.add("image with crowds only", where, f"{len(boxes[key])} of them")
    learnable = [a for a in split.annotations if not a.get("iscrowd", 0)]
    if not learnable:
        findings.add("nothing to learn from", split.name, f"{len(split.images)} images")
    counts = Counter(a["category_id"] for a in learnable)
    for category in split.categories:
        if learnable and not counts[category["id"]]:
            findings.add("class without boxes", split.name, f"{category['name']!r}")
