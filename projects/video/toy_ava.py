"""A toy AVA: two moving shapes in each picture, boxed and labelled once a second by their motion.

    python -m projects.video.toy_ava OUT [--train 8 --val 4 --seed 0]

Laid out as PySlowFast's `ava` dataset reads it. As in AVA, second 900 of a video is its frame 0,
there are 30 frames a second, and boxes are given from second 902 on. Each second is a scene of its
own, cut half-way between the boxed frames.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from projects.video import files, scenes

WIDTH, HEIGHT = 128, 80
# Boxes at 902 ... 905: PySlowFast validates on seconds divisible by 4. The second before and the
# one after give the clips of the first and of the last box their frames.
SECONDS = range(902, 906)
FRAMES = (SECONDS[-1] + 1 - 900) * files.FPS
SPLITS = ("train", "val")
LABEL_MAP = "ava_action_list_v2.2_for_activitynet_2019.pbtxt"
EXCLUSIONS = "ava_val_excluded_timestamps_v2.2.csv"
_AVA = 3  # first word of the seeds: no look is shared with the other toy sets


@dataclass(frozen=True)
class Actor:
    """One shape in one scene."""

    look: scenes.Look
    motion: str
    heading: float

    @property
    def box(self) -> tuple[float, float, float, float]:
        """x1, y1, x2, y2 in the boxed frame, as fractions of the picture."""
        return scenes.box(self.look, WIDTH, HEIGHT)


def draw_scene(split: str, video: int, second: int, seed: int = 0) -> tuple[Actor, Actor]:
    """The two shapes, left and right, of one second of one video."""
    rng = np.random.default_rng([_AVA, seed, SPLITS.index(split), video, second])
    actors = []
    for side in (-0.4, 0.4):
        look = scenes.draw_look(rng)
        centre = (look.centre[0] / 2 + side, look.centre[1])
        actors.append(
            Actor(
                replace(look, centre=centre),
                scenes.MOTIONS[rng.integers(len(scenes.MOTIONS))],
                rng.uniform(0, 2 * np.pi),
            )
        )
    return actors[0], actors[1]


def draw_frame(split: str, video: int, index: int, seed: int = 0) -> np.ndarray:
    """Frame `index` of a video, (HEIGHT, WIDTH, 3), float, 0 to 255."""
    second = (index + files.FPS // 2) // files.FPS
    actors = draw_scene(split, video, 900 + second, seed)
    picture = scenes.draw_background(actors[0].look, WIDTH, HEIGHT)
    for actor in actors:
        x, y, scale = scenes.pose(actor.motion, index / files.FPS - second, actor.heading)
        picture = scenes.paint(picture, actor.look, (x, y), scale)
    return picture


def make_ava(folder: Path, videos: dict[str, int], seed: int = 0) -> None:
    """Write `frames/`, `frame_lists/` and `annotations/` to `folder`.

    They are what `AVA.FRAME_DIR`, `AVA.FRAME_LIST_DIR` and `AVA.ANNOTATION_DIR` are to be; the
    files in them have PySlowFast's default names. Validation's "predicted" boxes are the true ones.

    Args:
        folder: where to.
        videos: how many for "train" and "val".
        seed: same seed, same files.

    Raises:
        ValueError: a split without videos, or a folder that holds another set.
    """
    if tuple(videos) != SPLITS or min(videos.values()) < 1:
        raise ValueError(f"videos must give 1 or more for each of {SPLITS}, got {videos}")
    files.claim_folder(folder, {"set": "ava", "videos": videos, "seed": seed})
    names = {split: [f"{split}{k:03d}" for k in range(count)] for split, count in videos.items()}
    files.make_missing(
        (
            (
                folder / "frames" / name / f"{name}_{index:06d}.jpg",
                partial(_write_frame, split=split, video=video, index=index, seed=seed),
            )
            for split in SPLITS
            for video, name in enumerate(names[split])
            for index in range(FRAMES)
        ),
        "toy AVA",
    )
    notes = folder / "annotations"
    items = [
        f'item {{\n  name: "{motion}"\n  id: {label}\n}}\n'
        for label, motion in enumerate(scenes.MOTIONS, start=1)
    ]
    files.write_text(notes / LABEL_MAP, "".join(items))
    files.write_text(notes / EXCLUSIONS, "")
    for split in SPLITS:
        boxes = [
            (f"{name},{second:04d}," + ",".join(f"{side:.3f}" for side in actor.box), actor, person)
            for video, name in enumerate(names[split])
            for second in SECONDS
            for person, actor in enumerate(draw_scene(split, video, second, seed))
        ]
        truth = [
            f"{place},{scenes.MOTIONS.index(actor.motion) + 1},{person}\n"
            for place, actor, person in boxes
        ]
        files.write_text(notes / f"ava_{split}_v2.2.csv", "".join(truth))
        if split == "val":
            found = [f"{place},,1.0\n" for place, _, _ in boxes]
            files.write_text(notes / "ava_val_predicted_boxes.csv", "".join(found))
        rows = ["original_vido_id video_id frame_id path labels\n"]  # the header's own spelling
        rows += [
            f'{name} {video} {index} {name}/{name}_{index:06d}.jpg ""\n'
            for video, name in enumerate(names[split])
            for index in range(FRAMES)
        ]
        files.write_text(folder / "frame_lists" / f"{split}.csv", "".join(rows))


def _write_frame(path: Path, split: str, video: int, index: int, seed: int) -> None:
    files.write_jpeg(path, draw_frame(split, video, index, seed))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder")
    parser.add_argument("--train", type=int, default=8, help="training videos")
    parser.add_argument("--val", type=int, default=4, help="validation videos")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    make_ava(args.out, {"train": args.train, "val": args.val}, args.seed)


if __name__ == "__main__":
    main()
