"""``mvitv2 data images``: labelled pictures in, an ImageNet layout and a ready config out."""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

from ..inputs import PICTURES
from .coco_images import crashed, look
from .findings import Findings, Kind
from .labelled import KINDS as LABELLED_KINDS
from .labelled import Item, Labelled
from .labelled_task import add_labelled, counts, gpus_of, read_labelled
from .options import say_findings, workers_of
from .parallel import map_files
from .slowfast_config import labels_text, make_plan, write_all, yaml_text
from .slowfast_recipes import IMAGES
from .start import check_start
from .video_check import check_copies

KINDS = {
    **LABELLED_KINDS,
    "unreadable image": Kind("error", "The trainer would stop."),
    "same image, two labels": Kind("error", "Which one is right?"),
    "16-bit picture": Kind("error", "PySlowFast shows it white: store 8 bits a channel."),
    "turned by EXIF": Kind("warning", "PySlowFast shows it unturned; store it upright."),
    "small picture": Kind("warning", "Its shorter side is under 64 pixels."),
}
WRITTEN = ("findings.txt", "train", "val", "test", "classes.txt", "images.yaml")
EXAMPLES = """\
examples:
  mvitv2 data images flowers/ --out flowers-data              (flowers/CLASS/*.jpg)
  mvitv2 data images train/ val/ --out flowers-data --model S --batch 128
Writes findings.txt, classes.txt, images.yaml and the folders train, val and test, with links to
the pictures, to --out. The exit code is 0 where the config was written, 1 where errors in the data
kept it back (--force).
"""


def add_arguments(command: Any) -> None:
    """The arguments of ``data images``."""
    add_labelled(command, IMAGES, "T", 64)


def run(options: Any) -> int:
    """Check and write; returns the exit code."""
    check_start(options, IMAGES[options.model], gpus_of(options))
    findings = Findings(KINDS)
    labelled = read_labelled(options, PICTURES, WRITTEN, findings)
    check_images(labelled, workers_of(options), findings)
    print(counts(labelled, "images"))
    out: Path = options.out.resolve()
    code = say_findings(findings, out, options)
    if code is not None:
        return code
    train = sum(item.split == "train" for item in labelled.items)
    recipe = IMAGES[options.model]
    gpus = gpus_of(options)
    plan = make_plan(recipe, "imagenet", labelled.classes, train, options, gpus, out, {})
    link_all(labelled, out)
    command = f"python -m mvitv2_slowfast.run_net --cfg {options.out / 'images.yaml'}"
    texts = {
        "classes.txt": labels_text(labelled.classes),
        "images.yaml": yaml_text(plan, command, "images"),
    }
    write_all(out, texts)
    print(plan.summary)
    print(f"written: {', '.join(str(out / name) for name in texts)}")
    return 0


def check_images(labelled: Labelled, workers: int, findings: Findings) -> None:
    """Unreadable, turned or tiny pictures, and the same one twice."""
    there = [item for item in labelled.items if item.path.is_file()]
    looks = map_files(look, [str(item.path) for item in there], crashed, workers, "pictures")
    same: dict[str, list[Item]] = defaultdict(list)
    for item, seen in zip(there, looks, strict=True):
        if seen.size is None or seen.stored is None:
            findings.add("unreadable image", item.row, seen.error)
            continue
        same[seen.digest].append(item)
        if seen.deep:
            findings.add("16-bit picture", item.row, "its values have more than 8 bits")
        if seen.size != seen.stored:
            findings.add("turned by EXIF", item.row, f"{seen.stored} is shown as {seen.size}")
        if min(seen.size) < 64:
            findings.add("small picture", item.row, f"{seen.size[0]} x {seen.size[1]}")
    check_copies(same, "same image, two labels", findings)


def link_all(labelled: Labelled, out: Path) -> None:
    """``out/train/n00000001/NAME`` and so on, as PySlowFast's ImageNet loader wants it.

    Its classes are folders named n and a number; pictures of the first class are in the lowest.
    Links of an earlier run are replaced.
    """
    numbers = {name: number for number, name in enumerate(labelled.classes, 1)}
    splits: dict[str, list[Item]] = defaultdict(list)
    for item in labelled.items:
        splits[item.split].append(item)
    splits["test"] = splits["test"] or splits["val"]
    for split, items in splits.items():
        if (out / split).is_symlink() or any(
            path.is_file() and not path.is_symlink() for path in (out / split).rglob("*")
        ):
            raise ValueError(f"{out / split} holds files that are not links: choose another --out")
        shutil.rmtree(out / split, ignore_errors=True)
        for number in numbers.values():  # empty ones too: the loader counts folders
            (out / split / f"n{number:08d}").mkdir(parents=True)
        for index, item in enumerate(items):
            folder = out / split / f"n{numbers[item.label]:08d}"
            os.symlink(item.path.resolve(), folder / f"{index:07d}_{item.path.name}")
