"""A toy Kinetics, and a toy ImageNet of stills from the same world, made on the spot.

    python -m projects.video.toy_kinetics OUT [--train 32 --val 8 --test 8 --seed 0]

Clips are labelled by how the shape moves, stills by which shape it is. Both are laid out as
PySlowFast's `kinetics` and `imagenet` datasets read them. The same seed gives the same files, and
a second run writes only what is missing.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from projects.video import files, scenes

WIDTH, HEIGHT, FRAMES = 100, 80, 48
SPLITS = ("train", "val", "test")
_KINETICS, _IMAGENET = 1, 2  # first word of each set's seeds, so that the two share no looks


@dataclass(frozen=True)
class Clip:
    """One clip of the toy Kinetics before it is drawn."""

    name: str
    motion: str
    look: scenes.Look
    heading: float

    @property
    def label(self) -> int:
        """Index of the motion in `scenes.MOTIONS`."""
        return scenes.MOTIONS.index(self.motion)

    def frames(self) -> np.ndarray:
        """All frames: (FRAMES, HEIGHT, WIDTH, 3), uint8."""
        background = scenes.draw_background(self.look, WIDTH, HEIGHT)
        frames = np.empty((FRAMES, HEIGHT, WIDTH, 3), np.uint8)
        for index in range(FRAMES):
            phase = (index - FRAMES // 2) / (FRAMES - 1)
            x, y, scale = scenes.pose(self.motion, phase, self.heading)
            frames[index] = np.rint(scenes.paint(background, self.look, (x, y), scale))
        return frames


def draw_clips(split: str, per_class: int, seed: int = 0) -> list[Clip]:
    """The clips of one split, `per_class` of each motion; clip i depends on seed, split and i."""
    clips = []
    for index in range(per_class * len(scenes.MOTIONS)):
        rng = np.random.default_rng([_KINETICS, seed, SPLITS.index(split), index])
        clips.append(
            Clip(
                name=f"videos/{split}_{index:04d}.mp4",
                motion=scenes.MOTIONS[index % len(scenes.MOTIONS)],
                look=scenes.draw_look(rng),
                heading=rng.uniform(0, 2 * np.pi),
            )
        )
    return clips


def make_kinetics(folder: Path, per_class: dict[str, int], seed: int = 0) -> None:
    """Write `videos/*.mp4`, `train.csv`, `val.csv`, `test.csv` and `classes.txt` to `folder`.

    Args:
        folder: what `DATA.PATH_TO_DATA_DIR` and `DATA.PATH_PREFIX` are to be.
        per_class: clips of each motion for "train", "val" and "test".
        seed: same seed, same files.

    Raises:
        ValueError: a split without clips, or a folder that holds another set.
    """
    _check(per_class, SPLITS)
    files.claim_folder(folder, {"set": "kinetics", "per_class": per_class, "seed": seed})
    clips = {split: draw_clips(split, per_class[split], seed) for split in SPLITS}
    files.make_missing(
        (
            (folder / clip.name, partial(_write_clip, clip=clip))
            for split in SPLITS
            for clip in clips[split]
        ),
        "toy Kinetics",
    )
    # The lists come last: a folder that has them is complete.
    files.write_text(folder / "classes.txt", "\n".join(scenes.MOTIONS) + "\n")
    for split in SPLITS:
        lines = [f"{clip.name} {clip.label}\n" for clip in clips[split]]
        files.write_text(folder / f"{split}.csv", "".join(lines))


def _write_clip(path: Path, clip: Clip) -> None:
    files.write_video(path, clip.frames())


def make_imagenet(folder: Path, per_class: dict[str, int], seed: int = 0) -> None:
    """Write `train/n0000000K/*.jpg` and `val/...` to `folder`, one class for each shape.

    Arguments and errors as for `make_kinetics`; the splits are "train" and "val".
    """
    _check(per_class, SPLITS[:2])
    files.claim_folder(folder, {"set": "imagenet", "per_class": per_class, "seed": seed})
    files.make_missing(
        (
            (
                folder / split / f"n{shape + 1:08d}" / f"{index:04d}.jpg",
                partial(_write_still, seed=(_IMAGENET, seed, SPLITS.index(split), shape, index)),
            )
            for split, count in per_class.items()
            for shape in range(len(scenes.SHAPES))
            for index in range(count)
        ),
        "toy ImageNet",
    )
    files.write_text(folder / "classes.txt", "\n".join(scenes.SHAPES) + "\n")


def _write_still(path: Path, seed: tuple[int, ...]) -> None:
    rng = np.random.default_rng(seed)
    look = scenes.draw_look(rng, scenes.SHAPES[seed[3]])
    # Larger than in the clips: a crop of a third of the picture must still show the shape.
    scale = rng.uniform(1.0, 2.0)
    side = HEIGHT
    files.write_jpeg(
        path, scenes.paint(scenes.draw_background(look, side, side), look, scale=scale)
    )


def _check(per_class: dict[str, int], splits: tuple[str, ...]) -> None:
    if tuple(per_class) != splits or min(per_class.values()) < 1:
        raise ValueError(f"per_class must give 1 or more for each of {splits}, got {per_class}")


def main() -> None:
    """Command line: make both sets under one folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder; kinetics/ and imagenet/ are made in it")
    parser.add_argument("--train", type=int, default=32, help="training clips per motion")
    parser.add_argument("--val", type=int, default=8, help="validation clips per motion")
    parser.add_argument("--test", type=int, default=8, help="test clips per motion")
    parser.add_argument("--stills", type=int, default=64, help="training stills per shape")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    clips = {"train": args.train, "val": args.val, "test": args.test}
    make_kinetics(args.out / "kinetics", clips, args.seed)
    stills = {"train": args.stills, "val": max(1, args.stills // 4)}
    make_imagenet(args.out / "imagenet", stills, args.seed)


if __name__ == "__main__":
    main()
