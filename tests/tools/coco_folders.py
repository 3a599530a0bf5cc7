"""Small COCO data sets on disk, and ways to spoil them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.media_files import picture

SIZE = (100, 80)  # width, height
CLASSES = ("owl", "wren")
Spoil = Callable[["Folder"], None]


class Folder:
    """``train.json``, ``train/``, ``val.json`` and ``val/`` below a path.

    ``train`` and ``val`` are the contents of the jsons; ``write`` puts them down.
    """

    def __init__(self, path: Path, masks: bool = True) -> None:
        from PIL import Image

        self.path, first = path, 0
        self.content: dict[str, dict[str, Any]] = {}
        for split, count in (("train", 6), ("val", 3)):
            (path / split).mkdir(parents=True)
            images, annotations = [], []
            for index in range(count):
                pixels = picture(*SIZE, seed=first + index)
                Image.fromarray(pixels).save(path / split / f"{index}.png")
                entry = {"id": index, "file_name": f"{index}.png"}
                images.append({**entry, "width": SIZE[0], "height": SIZE[1]})
                for box in range(2):
                    annotations.append(annotation(len(annotations) + 1, index, box, masks))
            categories = [{"id": 7 * (i + 1), "name": name} for i, name in enumerate(CLASSES)]
            self.content[split] = {
                "images": images,
                "annotations": annotations,
                "categories": categories,
            }
            first += count

    @property
    def train(self) -> dict[str, Any]:
        return self.content["train"]

    @property
    def val(self) -> dict[str, Any]:
        return self.content["val"]

    def write(self) -> list[str]:
        """Write the jsons; returns the command's arguments."""
        arguments = []
        for split, content in self.content.items():
            (self.path / f"{split}.json").write_text(json.dumps(content))
            arguments += [f"{self.path}/{split}.json", f"{self.path}/{split}"]
        return arguments


def annotation(number: int, image: int, box: int, masks: bool) -> dict[str, Any]:
    """A box of 30 x 20 with a triangle or none, one of two in an image."""
    x, y = 10 + 40 * box, 5 + 30 * box
    mask = {"segmentation": [[x, y, x + 30, y, x + 15, y + 20]]} if masks else {}
    facts = {"id": number, "image_id": image, "category_id": 7 * (box + 1), "iscrowd": 0}
    return {**facts, "bbox": [x, y, 30, 20], "area": 300, **mask}


def _set(split: str, kind: str, index: int, **values: Any) -> Spoil:
    return lambda folder: folder.content[split][kind][index].update(values)


def _drop(split: str, kind: str, index: int, key: str) -> Spoil:
    def spoil(folder: Folder) -> None:
        del folder.content[split][kind][index][key]

    return spoil


def _file(name: str, change: Callable[[Path], Any]) -> Spoil:
    return lambda folder: change(folder.path / name)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def _overlap(folder: Folder) -> None:
    (folder.path / "val/1.png").write_bytes((folder.path / "train/2.png").read_bytes())


def _twice(folder: Folder) -> None:
    (folder.path / "train/1.png").write_bytes((folder.path / "train/2.png").read_bytes())


def _turned(path: Path) -> None:
    """Stored as before, shown upright: EXIF orientation 6."""
    from PIL import Image

    image = Image.open(path).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(path, exif=exif)


def _empty(folder: Folder, crowd: bool = False) -> None:
    mine = [a for a in folder.train["annotations"] if a["image_id"] == 4]
    for entry in mine:
        if crowd:
            entry["iscrowd"] = 1
        else:
            folder.train["annotations"].remove(entry)


def _corners(folder: Folder) -> None:
    for entry in folder.train["annotations"]:
        x, y, width, height = 40, 30, 50, 40
        entry["bbox"] = [x, y, x + width, y + height]
        entry.pop("segmentation")
    for entry in folder.val["annotations"]:
        entry.pop("segmentation")


def _turned_polygon(folder: Folder) -> None:
    x, y, width, height = folder.train["annotations"][0]["bbox"]
    polygon = [y, x, y, x + width, y + height, x + width, y + height, x]
    folder.train["annotations"][0]["segmentation"] = [polygon]


def _one_in_corners(folder: Folder) -> None:
    one = folder.train["annotations"][0]
    x, y, width, height = one["bbox"]
    one["segmentation"] = [[x, y, x + width, y, x + width, y + height]]
    one["bbox"] = [x, y, x + width, y + height]


def _no_wren(folder: Folder) -> None:
    for entry in folder.val["annotations"]:
        entry["category_id"] = 7


def _renamed(folder: Folder) -> None:
    folder.val["categories"][0]["name"] = "eagle"


def _renamed_to(named: str, stored: str) -> Spoil:
    """The json says one name, the folder has another."""

    def spoil(folder: Folder) -> None:
        folder.train["images"][3]["file_name"] = named
        (folder.path / "train/3.png").rename(folder.path / "train" / stored)

    return spoil


def _all_empty(folder: Folder) -> None:
    folder.train["annotations"].clear()


def _extra(folder: Folder) -> None:
    pixels = np.full((8, 8, 3), 9, np.uint8)
    from PIL import Image

    Image.fromarray(pixels).save(folder.path / "train/extra.png")


def _again(folder: Folder) -> None:
    folder.train["annotations"].append({**folder.train["annotations"][0], "id": 99})


def _crowd(split: str, **values: Any) -> Spoil:
    """The second box of image 0 a crowd, with other values; None drops a key."""

    def spoil(folder: Folder) -> None:
        entry = folder.content[split]["annotations"][1]
        entry.update(values, iscrowd=1)
        for key in [key for key, value in values.items() if value is None]:
            del entry[key]

    return spoil


def _deep(folder: Folder) -> None:
    from PIL import Image

    pixels = np.full((SIZE[1], SIZE[0]), 30000, np.uint16)
    Image.fromarray(pixels).save(folder.path / "train/3.png")


def _named(name: Any) -> Spoil:
    """A category's name in both jsons."""

    def spoil(folder: Folder) -> None:
        for content in folder.content.values():
            content["categories"][1]["name"] = name

    return spoil


# What is done, the kind that must be found, and what its place or text must hold.
SPOILS: list[tuple[str, Spoil, str, str]] = [
    ("outside", _set("train", "annotations", 0, bbox=[110, 5, 30, 20]),
     "box outside the image", "no part in the image of 100 x 80"),
    ("mostly outside", _set("train", "annotations", 0, bbox=[90, 5, 30, 20]),
     "box outside the image", "33% of it"),
    ("beyond", _set("train", "annotations", 0, bbox=[80, 5, 30, 20]), "box beyond the edge", "67%"),
    ("corners", _corners, "boxes look like corners", "12 boxes"),
    ("empty box", _set("val", "annotations", 1, bbox=[5, 5, 0, 9]), "bad box", "annotation 2"),
    ("no number", _set("val", "annotations", 1, bbox=[5, None, 4, 9]), "bad box", "None"),
    ("gone", _file("train/3.png", Path.unlink), "missing file", "train, 3.png"),
    ("other case", _file("train/3.png", lambda p: p.rename(p.with_name("3.PNG"))),
     "missing file", "there is 3.PNG"),
    ("Unicode form", _renamed_to("K\u00f6ln.png", "Ko\u0308ln.png"), "missing file", "form (NFD)"),
    ("address", _renamed_to("a%20b.png", "a b.png"), "missing file", "signs of an address"),
    ("cut", _file("train/2.png", _cut), "unreadable image", "train, 2.png"),
    ("size", _set("val", "images", 0, width=101), "other size than the json says", "101 x 80"),
    ("turned", _file("train/0.png", _turned), "other size than the json says", "EXIF turns it"),
    ("category", _set("train", "annotations", 3, category_id=3), "unknown category id", "[7, 14]"),
    ("same category", _set("train", "categories", 1, id=7), "duplicate category", "id 7"),
    ("same name", _set("train", "categories", 1, name="owl"), "duplicate category", "'owl'"),
    ("other names", _renamed, "other classes in val", "'owl' (id 7), val: 'eagle' (id 7)"),
    ("image", _set("train", "annotations", 3, image_id=77), "unknown image id", "image 77"),
    ("same image", _set("train", "images", 1, id=0), "duplicate image id", "that of 0.png"),
    ("same box id", _set("train", "annotations", 1, id=1), "duplicate annotation id", "0.png"),
    ("empty", _empty, "image without boxes", "train, 4.png"),
    ("crowds", lambda f: _empty(f, crowd=True), "image with crowds only", "2 of them"),
    ("all empty", _all_empty, "nothing to learn from", "6 images"),
    ("no wren", _no_wren, "class without boxes", "'wren'"),
    ("overlap", _overlap, "train and val overlap", "val, 1.png: the same file content as train, 2"),
    ("twice", _twice, "duplicate image", "train, 2.png"),
    ("again", _again, "duplicate box", "annotation 99"),
    ("no size", _drop("train", "images", 0, "width"), "incomplete entry", "without width"),
    ("text id", _set("train", "annotations", 0, id="a"), "incomplete entry", "id 'a'"),
    ("one without", _drop("train", "annotations", 0, "segmentation"), "masks only in part", "1"),
    ("two points", _set("train", "annotations", 0, segmentation=[[1, 2, 3, 4]]),
     "bad mask", "3 or more"),
    ("rle", _set("train", "annotations", 0, segmentation={"size": [80, 99], "counts": "x"}),
     "bad mask", "[80, 99]"),
    ("elsewhere", _set("train", "annotations", 0, segmentation=[[60, 60, 90, 60, 90, 70]]),
     "mask and box disagree", "[60, 60, 90, 70]"),
    ("polygon turned", _turned_polygon, "polygon in y, x", "annotation"),
    ("one in corners", _one_in_corners, "boxes look like corners", "are corners"),
    ("nan point", _set("train", "annotations", 0, segmentation=[[10, 5, 40, 5, math.nan, 25]]),
     "bad mask", "3 or more"),
    ("text point", _set("train", "annotations", 0, segmentation=[[10, 5, 40, 5, "25", 25]]),
     "bad mask", "3 or more"),
    ("rle text", _set("val", "annotations", 0, segmentation={"size": [80, 100], "counts": "no!"}),
     "bad mask", "no run lengths"),
    ("rle short", _set("val", "annotations", 0, segmentation={"size": [80, 100], "counts": [9]}),
     "bad mask", "of 9 pixels"),
    ("crowd's mask", _crowd("val", segmentation=[[1, 2]]), "bad mask", "annotation 2 of 0.png"),
    ("crowd's rle", _crowd("train", segmentation={"size": [100, 80], "counts": [8000]}),
     "bad mask", "[100, 80]"),
    ("crowd without", _crowd("val", segmentation=None), "masks only in part", "annotation 2"),
    ("no area", _drop("val", "annotations", 0, "area"), "evaluation would stop", "without area"),
    ("no crowd", _drop("val", "annotations", 0, "iscrowd"), "evaluation would stop", "iscrowd"),
    ("text area", _set("val", "annotations", 0, area="big"), "evaluation would stop", "'big'"),
    ("text crowd", _set("train", "annotations", 0, iscrowd="0"), "incomplete entry",
     "annotation 1: iscrowd '0' must be 0 or 1"),
    ("id 0", _set("val", "annotations", 0, id=0), "annotation id 0", "annotation 0 of 0.png"),
    ("fractions", _set("train", "annotations", 0, bbox=[0.1, 0.2, 0.3, 0.2]),
     "box in fractions", "[0.1, 0.2, 0.3, 0.2] in the image of 100 x 80"),
    ("true", _set("train", "annotations", 0, bbox=[True, 5, 30, 20]), "bad box", "True"),
    ("16 bits", _deep, "16-bit image", "train, 3.png"),
    ("no file", _set("train", "images", 0, file_name=None), "incomplete entry",
     "entry 0 of images: file_name None must be text of one line"),
    ("two lines", _named("wren\n"), "incomplete entry", "name 'wren\\n'"),
    ("no text", _named(7), "incomplete entry", "name 7"),
    ("file twice", _set("train", "images", 1, file_name="0.png"), "duplicate image",
     "the json names this file twice"),
    ("tiny", _set("train", "annotations", 0, bbox=[10, 5, 0.3, 20]),
     "tiny box", "3.0 x"),
    ("extra", _extra, "file not in the json", "extra.png"),
]  # fmt: skip
