"""Make a small data set of shapes on the spot: ordinary COCO json and JPEG files.

Four classes told apart by shape alone; colours are drawn without looking at the class. Shapes
overlap (annotations outline what is visible), come in several sizes, on images of several
aspect ratios; some images are empty, and one per split has a crowd. The same seed gives the same
data.

    python -m projects.detection.toy_coco            # into ./datasets/toy_shapes
"""

from __future__ import annotations

import argparse
import colorsys
import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.random import RandomState

from mvitv2_core.checkpoint.files import whole_file
from projects.detection.toy_env import toy_root

CLASSES = ("circle", "square", "triangle", "star")
SPLITS = ("train", "val")
SIZES = ((160, 160), (192, 144), (144, 192), (224, 144), (152, 208))  # (W, H)
SCALE = 4  # masks are drawn at this multiple and averaged down: smooth edges, exact outlines
TILT = 0.4  # shapes stand within this many radians of upright
MIN_VISIBLE = 0.6  # of a shape's area
CROWD_IMAGE = 3  # index of the image with the crowd, in each split
VERSION = 1  # raise when the same arguments give other data


def outline(kind: str, x: float, y: float, radius: float, tilt: float) -> np.ndarray:
    """(N, 2) corners of a shape around (x, y), in pixels; all kinds have about the same area.

    ``tilt`` turns it from upright, in radians.
    """
    corners, inner, factor, upright = {
        "circle": (48, 1.0, 1.0, 0.0),
        "square": (4, 1.0, 1.25, np.pi / 4),
        "triangle": (3, 1.0, 1.5, -np.pi / 2),
        "star": (10, 0.45, 1.45, -np.pi / 2),
    }[kind]
    turns = upright + tilt + np.arange(corners) * 2 * np.pi / corners
    radii = radius * factor * np.where(np.arange(corners) % 2, inner, 1.0)
    return np.stack([x + radii * np.cos(turns), y + radii * np.sin(turns)], axis=1)


def fill(points: np.ndarray, width: int, height: int) -> np.ndarray:
    """(SCALE * H, SCALE * W) mask of 0 and 1."""
    mask = np.zeros((height * SCALE, width * SCALE), np.uint8)
    # 16 subpixels; pixel centres lie at half coordinates.
    fixed = np.round((points * SCALE - 0.5) * 16).astype(np.int32)
    cv2.fillPoly(mask, [fixed], 1, shift=4)
    return mask


def colour(rng: RandomState) -> np.ndarray:
    """A bright BGR colour, 0 to 255."""
    rgb = colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0.55, 1.0), rng.uniform(0.7, 1.0))
    return 255 * np.array(rgb[::-1])


def background(rng: RandomState, width: int, height: int) -> np.ndarray:
    """(H, W, 3) dull gradient crossed by thin lines that are no objects."""
    corners = rng.uniform(30, 120, (2, 2, 3)).astype(np.float32)
    image = cv2.resize(corners, (width, height), interpolation=cv2.INTER_LINEAR)
    for _ in range(rng.randint(0, 4)):
        ends = rng.uniform(0, 1, (2, 2)) * (width, height)
        start, end = ends.astype(int).tolist()
        cv2.line(image, start, end, (0.8 * colour(rng)).tolist(), 1, cv2.LINE_AA)
    return image


def paint(image: np.ndarray, mask: np.ndarray, rng: RandomState) -> None:
    """Lay a shape of a random colour over ``image``, in place."""
    alpha = cv2.resize(mask.astype(np.float32), image.shape[1::-1], interpolation=cv2.INTER_AREA)
    image += alpha[..., None] * (colour(rng) - image)


def without_specks(mask: np.ndarray) -> np.ndarray:
    """The mask (at SCALE) less its parts under 4 pixels, left over by an overlap."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask)
    return mask * (stats[:, cv2.CC_STAT_AREA] >= 4 * SCALE**2)[labels]


def polygons(mask: np.ndarray) -> list[list[float]]:
    """COCO polygons of a mask at SCALE: outer outlines, as COCO's polygons have no holes."""
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    outlines = [cv2.approxPolyDP(contour, 1.0, closed=True)[:, 0] for contour in contours]
    return [np.round((points + 0.5) / SCALE, 2).flatten().tolist() for points in outlines]


def box_and_area(mask: np.ndarray) -> dict[str, Any]:
    """COCO's ``bbox`` (x, y, w, h) and ``area`` in pixels of a mask at SCALE."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x, y = columns[0] / SCALE, rows[0] / SCALE
    right, bottom = (columns[-1] + 1) / SCALE, (rows[-1] + 1) / SCALE
    return {"bbox": [x, y, right - x, bottom - y], "area": float(mask.sum()) / SCALE**2}


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """COCO's uncompressed RLE of an (H, W) mask of 0 and 1: columns first, zeros first."""
    flat = np.concatenate([[0], mask.flatten(order="F")])
    changes = np.flatnonzero(np.diff(flat))
    counts = np.diff(np.concatenate([[0], changes, [mask.size]]))
    return {"counts": counts.tolist(), "size": list(mask.shape)}


def draw_crowd(image: np.ndarray, rng: RandomState) -> dict[str, Any]:
    """A heap of tiny shapes of one class in a corner, annotated as one crowd."""
    height, width = image.shape[:2]
    kind = rng.randint(len(CLASSES))
    whole = np.zeros((height * SCALE, width * SCALE), np.uint8)
    for _ in range(24):
        x, y = rng.uniform(5, 0.4 * width), rng.uniform(5, 0.4 * height)
        mask = fill(outline(CLASSES[kind], x, y, 4.0, rng.uniform(-TILT, TILT)), width, height)
        paint(image, mask, rng)
        whole |= mask
    small = whole.reshape(height, SCALE, width, SCALE).mean((1, 3)) >= 0.5
    return {
        "category_id": kind + 1,
        "iscrowd": 1,
        "segmentation": run_lengths(small.astype(np.uint8)),
        **box_and_area(whole),
    }


def draw_image(rng: RandomState, crowd: bool) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """One (H, W, 3) BGR image and its annotations."""
    width, height = SIZES[rng.randint(len(SIZES))]
    image = background(rng, width, height)
    annotations = [draw_crowd(image, rng)] if crowd else []
    kinds: list[int] = []
    visible: list[np.ndarray] = []
    full: list[int] = []
    shapes = 2 if crowd else rng.choice(6, p=[0.05, 0.15, 0.2, 0.25, 0.2, 0.15])
    for _ in range(shapes):
        kind = rng.randint(len(CLASSES))
        for _ in range(10):  # places tried before the shape is given up
            radius = np.exp(rng.uniform(np.log(12), np.log(32)))
            x, y = rng.uniform(radius, (width, height) - radius)
            if crowd and x < 0.55 * width and y < 0.55 * height:
                continue
            tilt = rng.uniform(-TILT, TILT)
            mask = fill(outline(CLASSES[kind], x, y, radius, tilt), width, height)
            rest = [old & ~mask for old in visible]
            if all(v.sum() >= MIN_VISIBLE * area for v, area in zip(rest, full, strict=True)):
                paint(image, mask, rng)
                visible = [*rest, mask]
                kinds.append(kind)
                full.append(int(mask.sum()))
                break
    for kind, mask in zip(kinds, map(without_specks, visible), strict=True):
        annotations.append(
            {
                "category_id": kind + 1,
                "iscrowd": 0,
                "segmentation": polygons(mask),
                **box_and_area(mask),
            }
        )
    image += rng.normal(0, 4, image.shape)
    return image.clip(0, 255).astype(np.uint8), annotations


def write(path: Path, data: bytes) -> None:
    """Write the whole file or none of it."""
    with whole_file(path) as temporary:
        Path(temporary).write_bytes(data)


def make_split(root: Path, split: str, count: int, seed: int) -> bool:
    """Write ``split`` under ``root``, unless it is there already as asked.

    Returns:
        Whether anything was written.

    Raises:
        ValueError: ``split`` is unknown, or ``count`` leaves no room for the crowd's image.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if count <= CROWD_IMAGE:
        raise ValueError(f"count must be more than {CROWD_IMAGE}, got {count}")
    json_file, folder = root / f"{split}.json", root / split
    info = {"description": "toy shapes", "version": VERSION, "seed": seed, "images": count}
    if json_file.exists():
        old = json.loads(json_file.read_text())
        if old["info"] == info and all((folder / i["file_name"]).exists() for i in old["images"]):
            return False
        json_file.unlink()  # so that a run that is cut short leaves no json beside other images
    folder.mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(count):
        # RandomState's stream is frozen by NumPy; every image has its own.
        rng = RandomState([seed, SPLITS.index(split), index])
        image, found = draw_image(rng, crowd=index == CROWD_IMAGE)
        name = f"{index:05d}.jpg"
        _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])
        write(folder / name, data.tobytes())
        height, width = image.shape[:2]
        images.append({"id": index + 1, "file_name": name, "width": width, "height": height})
        for annotation in found:
            annotations.append({"id": len(annotations) + 1, "image_id": index + 1, **annotation})
        if sys.stderr.isatty():
            print(f"\r{split}: {index + 1}/{count} images", end="", file=sys.stderr)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
    coco = {"info": info, "images": images, "annotations": annotations, "categories": categories}
    write(json_file, json.dumps(coco).encode())
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--root", type=Path, default=toy_root(), help="folder (%(default)s)")
    parser.add_argument("--train", type=int, default=400, help="training images (%(default)s)")
    parser.add_argument("--val", type=int, default=100, help="validation images (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for split, count in (("train", args.train), ("val", args.val)):
        written = make_split(args.root, split, count, args.seed)
        print(f"{args.root}/{split}: {count} images {'written' if written else 'already there'}")


if __name__ == "__main__":
    main()
