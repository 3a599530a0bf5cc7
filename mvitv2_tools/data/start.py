"""What a training for PySlowFast starts from: nothing, weights, or a training that is there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mvitv2_core.checkpoint.describe import read_layout
from mvitv2_core.checkpoint.files import read_checkpoint
from mvitv2_core.checkpoint.formats import to_project
from mvitv2_core.checkpoint.hub import OFFICIAL
from mvitv2_core.model_info import IMAGENET_MEAN, IMAGENET_STD
from mvitv2_core.path_manager import PREFIX

from ..runs import find_labels, newest_runs, run_of

LEAST_CLASSES = 5  # PySlowFast's trainer measures top-5 whatever the number of classes


def check_start(options: Any) -> None:
    """Before any file is opened: whether a training can start from what the options say.

    ``options.weights`` of a file becomes absolute, as the config's other paths are.

    Raises:
        ValueError: ``--out`` holds a training; ``--weights`` is a folder.
        CheckpointError: ``--weights`` cannot be read.
    """
    check_no_training(options)
    weights = options.weights
    if not weights or weights.removeprefix(PREFIX) in OFFICIAL:
        return
    if os.path.isdir(weights):
        runs = newest_runs(Path(weights))
        newest = f", such as {runs[0]}" if runs else ""
        raise ValueError(f"--weights {weights} must be a file{newest}: it is a folder")
    read_checkpoint(weights, check=False)
    options.weights = os.path.abspath(weights)


def check_no_training(options: Any) -> None:
    """ValueError where ``--out`` holds a training: PySlowFast would go on with it, on other data.

    Its classes would then get the names of the new ones.
    """
    run = options.out / "run"
    if not options.check_only and not options.force and any((run / "checkpoints").glob("*.pyth")):
        raise ValueError(
            f"--out {options.out}: {run} holds a training, which PySlowFast would go on with: "
            f"remove it, give another --out, or --force"
        )


def start_keys(weights: str, dataset: str) -> dict[str, Any]:
    """The keys that PySlowFast reads weights from: image weights have one of their own.

    The other is "", or a recipe's own weights would come back. For clips, image weights bring the
    colours that they expect, as in ``configs/base/image_init.yaml``.

    Raises:
        CheckpointError: a file that cannot be read.
    """
    keys: dict[str, Any] = {"TRAIN.CHECKPOINT_FILE_PATH": "", "MVITV2.IMAGE_CHECKPOINT": ""}
    if not weights:
        return keys
    official = OFFICIAL.get(weights.removeprefix(PREFIX))
    if official is not None:
        image = official.format == "image"
    else:
        state = read_checkpoint(weights, check=False).state
        image = read_layout(to_project(weights, state).known).rank == 2
    if not image and dataset != "imagenet":
        return {**keys, "TRAIN.CHECKPOINT_FILE_PATH": weights}
    keys["MVITV2.IMAGE_CHECKPOINT"] = weights
    if dataset != "imagenet":
        keys |= {"DATA.MEAN": list(IMAGENET_MEAN), "DATA.STD": list(IMAGENET_STD)}
    return keys


def labels(classes: Sequence[str]) -> list[str]:
    """A name for each output: the classes, then those that no class has."""
    return [*classes, *(f"unused {k}" for k in range(len(classes), LEAST_CLASSES))]


def other_classes(weights: str, classes: Sequence[str]) -> str:
    """A line where a run's head is of as many classes, but of others: the trainer takes it."""
    path = Path(weights)
    run = run_of(path)
    theirs = find_labels(None, [path.parent, run, run.parent]) if path.is_file() else None
    mine = labels(classes)
    if theirs is None or len(theirs) != len(mine) or theirs == mine:
        return ""
    return (
        f"note: {weights} is of the classes {', '.join(theirs)}: training starts with a head that "
        f"knows those\n"
    )
