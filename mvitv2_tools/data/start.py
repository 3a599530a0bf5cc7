"""What a training starts from: nothing, weights, or a training that is there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mvitv2_core import MViTClassifier
from mvitv2_core.checkpoint.describe import Layout, read_layout
from mvitv2_core.checkpoint.files import read_checkpoint, read_content
from mvitv2_core.checkpoint.formats import to_project
from mvitv2_core.checkpoint.hub import OFFICIAL
from mvitv2_core.model_info import IMAGENET_MEAN, IMAGENET_STD
from mvitv2_core.path_manager import PREFIX

from ..runs import find_labels, newest_runs, run_of
from .slowfast_recipes import Recipe

LEAST_CLASSES = 5  # PySlowFast's trainer measures top-5 whatever the number of classes


def check_start(options: Any, recipe: Recipe, gpus: int) -> None:
    """Before any file is opened: whether a training can start from what the options say.

    ``options.weights`` becomes what ``full_name`` makes of it.

    Raises:
        ValueError: ``--out`` holds a training; the GPUs cannot share ``--batch``, or it is too
            small for them; ``--weights`` is a folder, or of another model.
        CheckpointError: ``--weights`` cannot be read.
    """
    check_no_training(options)
    if gpus < 0:
        raise ValueError(f"--gpus must be 0 or more, got {gpus}")
    if not options.check_only:
        _check_batch(options.batch, gpus, recipe.least_batch)
    if options.weights:
        options.weights = full_name(options.weights)
        _check_fit(options.weights, recipe.layout)


def _check_batch(batch: int, gpus: int, least: int) -> None:
    if gpus and batch % gpus:
        raise ValueError(f"--batch must be a multiple of the {gpus} GPUs, got {batch}")
    if batch < (smallest := least * max(1, gpus)):
        raise ValueError(
            f"--batch must be {smallest} or more, got {batch}: MixUp needs {least} on each device"
        )


def full_name(weights: str) -> str:
    """Weights as a config names them: ``mvitv2://NAME``, or a file that can be read, absolute.

    Raises:
        ValueError: a folder.
        CheckpointError: neither an official name nor a checkpoint.
    """
    name = weights.removeprefix(PREFIX)
    if name in OFFICIAL:
        return PREFIX + name
    if os.path.isdir(weights):
        runs = newest_runs(Path(weights))
        newest = f", such as {runs[0]}" if runs else ""
        raise ValueError(f"--weights {weights} must be a file{newest}: it is a folder")
    read_checkpoint(weights, check=False)
    return os.path.abspath(weights)


def detector_start(weights: str | None) -> str | None:
    """Weights as a config for detectron2 names them, before any picture is opened.

    Addresses (``https://``, ``detectron2://``) are detectron2's to read, and what follows a "?".

    Raises:
        As ``full_name``.
    """
    if not weights or ("://" in weights and not weights.startswith(PREFIX)):
        return weights
    file, mark, query = weights.partition("?")
    return full_name(file) + mark + query


def _check_fit(weights: str, model: Layout) -> None:
    """ValueError where the trainer could not read weights, or would leave out most of them.

    PySlowFast's reader passes over tensors of other names and shapes, without a warning.
    """
    official = OFFICIAL.get(weights.removeprefix(PREFIX))
    if official is None:
        held, native = _of_file(weights)
    elif official.config is None:
        raise ValueError(f"--weights {weights} must be a classifier's: it is a detector's")
    else:
        with torch.device("meta"):
            held = read_layout(MViTClassifier(official.config()).state_dict())
        native = True
    if held.structure != model.structure:
        raise ValueError(
            f"--weights {weights} must be of the model's size: it holds {held}, and --model is "
            f"{model}"
        )
    if model.rank == 2 and held.rank == 3:
        raise ValueError(
            f"--weights {weights} must be an image model's, it holds {held}: take the centre frame "
            f"with `mvitv2 convert {weights} OUT.pyth --to image`"
        )
    resized = held.input_size != model.input_size
    if held.rank == 3 and (resized or not native):
        frames, height, width = model.input_size or ()
        size = f" --frames {frames} --size {height}x{width}" if resized else ""
        raise ValueError(
            f"--weights {weights} must be PySlowFast's own checkpoint of {model}, it holds {held}: "
            f"`mvitv2 convert {weights} OUT.pyth --to slowfast{size}`"
        )


def _of_file(weights: str) -> tuple[Layout, bool]:
    """What a file holds, and whether PySlowFast's own reader finds its tensors."""
    checkpoint = read_checkpoint(weights, check=False)
    named = to_project(weights, checkpoint.state)
    if "norm.weight" not in named.known:
        raise ValueError(
            f"--weights {weights} must be a classifier's: it has no last norm, as no detector's has"
        )
    native = (
        named.format == "slowfast"
        and (checkpoint.container, checkpoint.nest) == ("torch", "model_state")
        # Without what wrappers put in front of names, which PySlowFast would not take away.
        and checkpoint.state.keys() == read_content(weights)["model_state"].keys()
    )
    return read_layout(named.known), native


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
