"""One drawn world, harder than the demos': pictures, images with boxes, and clips.

    python -m projects.learning.data OUT     # OUT/coco, OUT/kinetics

Six kinds of shapes, 8 to 22 pixels across, of any colour and turned any way, among spots and
strokes that are none. A disc and a square, or a bar and a plus, differ by a few pixels.

- Pictures of 32 x 32 have one shape; the class is its kind.
- Images with boxes have three to eight, in COCO's format.
- Clips have one that goes straight on in two of four stretches of time and stands in the others;
  the class is in which. Place, heading and length of step say nothing about the class, first and
  last frame are the same for all classes, and two frames say at most how far it went in between.
  The edges of a clip are joined: what leaves to the right comes in from the left.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import trange

from projects.video import files, scenes
from projects.video.scenes import SHAPES, Look

PICTURE, IMAGE, CLIP = 32, 128, 64  # sides, in pixels
RADII = (4.0, 11.0)  # of a shape's surrounding circle, in pixels
CLUTTER = {PICTURE: 2, IMAGE: 24}  # spots and strokes, by the side; about as many to an area
SHAPES_IN_IMAGE = (3, 8)
GAITS = tuple("".join("-g"[k in pair] for k in range(4)) for pair in combinations(range(4), 2))
FRAMES, LEG = 25, 6  # of a clip, and of a stretch
STEP = (0.15, 0.4)  # how far it goes in a stretch; a clip's side is 1
CLIP_RADIUS = (0.15, 0.20)
SPLITS = ("train", "val")
_PICTURES, _IMAGES, _CLIPS = 11, 12, 13  # first word of the seeds: no look is shared


def add_clutter(canvas: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A copy of a square ``canvas`` (side, side, 3) with soft spots and short strokes on it."""
    side = len(canvas)
    across = np.arange(side) + 0.5
    for _ in range(CLUTTER[side]):
        x, y = rng.uniform(0, side, 2)
        if rng.random() < 0.5:  # a spot
            along, away = across[None] - x, across[:, None] - y
            width = rng.uniform(0.8, 2.2)
            cover = np.exp(-(along**2 + away**2) / (2 * width**2))
        else:  # a stroke one pixel wide
            angle = rng.uniform(0, np.pi)
            along = np.cos(angle) * (across[None] - x) + np.sin(angle) * (across[:, None] - y)
            away = np.cos(angle) * (across[:, None] - y) - np.sin(angle) * (across[None] - x)
            inside = np.minimum(rng.uniform(3, 10) - np.abs(along), 0.7 - np.abs(away))
            cover = np.clip(inside + 0.5, 0, 1)
        canvas = canvas + cover[..., None] * (rng.uniform(0, 255, 3) - canvas)
    return canvas


def small_look(rng: np.random.Generator, kind: str | None, side: int) -> Look:
    """A look with a small shape that lies wholly in a picture of ``side`` pixels."""
    radius = np.exp(rng.uniform(*np.log(RADII))) / side
    centre = rng.uniform(radius - 0.5, 0.5 - radius, 2)
    return replace(scenes.draw_look(rng, kind), radius=radius, centre=tuple(centre))


def draw_picture(seed: int, index: int) -> tuple[np.ndarray, int]:
    """One (PICTURE, PICTURE, 3) picture of 0 to 255 and its class, an index of SHAPES."""
    rng = np.random.default_rng([_PICTURES, seed, index])
    label = index % len(SHAPES)
    look = small_look(rng, SHAPES[label], PICTURE)
    canvas = add_clutter(scenes.draw_background(look, PICTURE, PICTURE), rng)
    return scenes.paint(canvas, look), label


def draw_pictures(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(count, PICTURE, PICTURE, 3) uint8 pictures and (count,) classes, evenly many of each."""
    images = np.empty((count, PICTURE, PICTURE, 3), np.uint8)
    labels = np.empty(count, np.int64)
    for index in trange(count, desc="pictures", unit="picture", disable=None):
        image, labels[index] = draw_picture(seed, index)
        images[index] = np.rint(image)
    return images, labels


def draw_image(split: str, index: int) -> tuple[np.ndarray, list[tuple[int, Look]]]:
    """One (IMAGE, IMAGE, 3) image of 0 to 255, and the classes and looks of what is on it."""
    rng = np.random.default_rng([_IMAGES, SPLITS.index(split), index])
    canvas = add_clutter(scenes.draw_background(scenes.draw_look(rng), IMAGE, IMAGE), rng)
    found: list[tuple[int, Look]] = []
    for _ in range(rng.integers(SHAPES_IN_IMAGE[0], SHAPES_IN_IMAGE[1] + 1)):
        label = int(rng.integers(len(SHAPES)))
        look = small_look(rng, SHAPES[label], IMAGE)
        while any(overlap(look, other) for _, other in found):
            look = small_look(rng, SHAPES[label], IMAGE)
        canvas = scenes.paint(canvas, look)
        found.append((label, look))
    return canvas, found


def overlap(one: Look, other: Look) -> bool:
    """Whether the circles round two shapes do."""
    apart = np.hypot(*np.subtract(one.centre, other.centre))
    return bool(apart < one.radius + other.radius)


def tight_box(look: Look) -> list[float]:
    """COCO's x, y, width, height of the pixels of IMAGE x IMAGE that a shape covers by half."""
    cover = scenes.paint(np.zeros((IMAGE, IMAGE, 3)), replace(look, colour=(1, 1, 1)))[..., 0]
    rows, columns = np.flatnonzero((cover >= 0.5).any(1)), np.flatnonzero((cover >= 0.5).any(0))
    size = (columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0])
    return [float(n) for n in (columns[0], rows[0], *size)]


def make_coco(folder: Path, counts: dict[str, int]) -> None:
    """Write ``train.json``, ``train/*.jpg``, ``val.json`` and ``val/*.jpg``: boxes, no masks.

    Args:
        folder: kept and used again where it holds the same set.
        counts: images of each split.

    Raises:
        ValueError: the folder holds another set.
    """
    files.claim_folder(folder, {"set": "small shapes", "counts": counts})
    for split, count in counts.items():
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        jobs = []
        for index in range(count):
            name = f"{index:05d}.jpg"
            canvas, found = draw_image(split, index)
            jobs.append((folder / split / name, partial(files.write_jpeg, picture=canvas)))
            size = {"width": IMAGE, "height": IMAGE}
            images.append({"id": index + 1, "file_name": name, **size})
            for label, look in found:
                box = tight_box(look)
                row = {"image_id": index + 1, "category_id": label + 1, "bbox": box, "iscrowd": 0}
                annotations.append({"id": len(annotations) + 1, "area": box[2] * box[3], **row})
        files.make_missing(jobs, f"{split} images")
        names = [{"id": i + 1, "name": name} for i, name in enumerate(SHAPES)]
        coco = {"images": images, "annotations": annotations, "categories": names}
        files.write_text(folder / f"{split}.json", json.dumps(coco))


@dataclass(frozen=True)
class Walk:
    """Where a shape goes: lengths are fractions of the clip's side, angles radians.

    Args:
        gait: one of GAITS: for each stretch, "g" where the shape goes, "-" where it stands.
        start: x and y at the first frame, from 0 to 1.
        heading: of all steps; y points down.
        step: how far it goes in a stretch.
    """

    gait: str
    start: tuple[float, float]
    heading: float
    step: float

    def places(self) -> np.ndarray:
        """(FRAMES, 2) x and y of every frame, not yet wrapped round the edges."""
        way = np.array([np.cos(self.heading), np.sin(self.heading)])
        goes = np.repeat([letter == "g" for letter in self.gait], LEG)  # from frame to frame
        gone = np.concatenate([[0], np.cumsum(goes)]) / LEG  # stretches up to each frame
        return self.start + self.step * gone[:, None] * way


def draw_walk(rng: np.random.Generator, gait: str) -> Walk:
    """A walk whose place, heading and step are drawn without looking at its gait."""
    start = tuple(rng.uniform(0, 1, 2))
    return Walk(gait, start, rng.uniform(0, 2 * np.pi), rng.uniform(*STEP))


def draw_clip(split: str, index: int) -> tuple[np.ndarray, int]:
    """All frames of a clip, (FRAMES, CLIP, CLIP, 3) uint8, and its class, an index of GAITS."""
    rng = np.random.default_rng([_CLIPS, SPLITS.index(split), index])
    label = index % len(GAITS)
    look = replace(scenes.draw_look(rng), radius=rng.uniform(*CLIP_RADIUS), centre=(0.0, 0.0))
    walk = draw_walk(rng, GAITS[label])
    background = scenes.draw_background(look, CLIP, CLIP)
    frames = np.empty((FRAMES, CLIP, CLIP, 3), np.uint8)
    for frame, place in zip(frames, walk.places(), strict=True):
        frame[:] = np.rint(paint_wrapped(background, look, place))
    return frames, label


def paint_wrapped(canvas: np.ndarray, look: Look, place: np.ndarray) -> np.ndarray:
    """A shape at ``place`` on a canvas whose edges are joined."""
    x, y = place % 1.0 - 0.5
    for down in (-1, 0, 1):
        for across in (-1, 0, 1):
            if max(abs(x + across), abs(y + down)) < 0.5 + look.radius:
                canvas = scenes.paint(canvas, look, (x + across, y + down))
    return canvas


def make_clips(folder: Path, per_class: dict[str, int]) -> None:
    """Write ``videos/*.mp4``, ``train.csv`` and ``val.csv`` as PySlowFast reads them.

    Args:
        folder: ``DATA.PATH_TO_DATA_DIR`` and ``DATA.PATH_PREFIX``.
        per_class: clips of each class, of "train" and "val".

    Raises:
        ValueError: the folder holds another set.
    """
    files.claim_folder(folder, {"set": "gaits", "per_class": per_class})
    lists: dict[str, str] = {}
    jobs = []
    for split, count in per_class.items():
        names = [f"videos/{split}_{index:04d}.mp4" for index in range(count * len(GAITS))]
        jobs += [
            (folder / name, partial(_write_clip, split=split, index=index))
            for index, name in enumerate(names)
        ]
        lines = [f"{name} {index % len(GAITS)}\n" for index, name in enumerate(names)]
        lists[f"{split}.csv"] = "".join(lines)
    files.make_missing(jobs, "clips")
    for name, text in lists.items():
        files.write_text(folder / name, text)


def _write_clip(path: Path, split: str, index: int) -> None:
    files.write_video(path, draw_clip(split, index)[0])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    make_coco(out / "coco", {"train": 100, "val": 60})
    make_clips(out / "kinetics", {"train": 64, "val": 16})


if __name__ == "__main__":
    main()
