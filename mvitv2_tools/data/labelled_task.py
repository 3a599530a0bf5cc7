"""What ``mvitv2 data video`` and ``mvitv2 data images`` share: reading, splitting, the command."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mvitv2_core.arguments import positive
from mvitv2_core.labels import read_labels

from .findings import Findings
from .labelled import Labelled, check_items, check_split, read_csv, read_folder
from .options import check_written, pick_device
from .slowfast_config import Recipe
from .splits import draw_split


def add_labelled(command: Any, models: Mapping[str, Recipe], model: str, batch: int) -> None:
    """Arguments of a task on labelled files."""
    command.add_argument(
        "source",
        metavar="SOURCE",
        help="a folder with one folder for each class, or with train/ and val/ (and test/) of "
        "such; or a csv of paths and labels",
    )
    command.add_argument(
        "val", metavar="VAL", nargs="?", help="a second one for validation (default: drawn)"
    )
    command.add_argument("--root", help="folder of a csv's relative paths (default: the csv's)")
    command.add_argument(
        "--classes", metavar="FILE", help="for a csv: names of the classes, one a line, in order"
    )
    command.add_argument(
        "--share", type=float, default=0.2, help="of the files, for validation (default 0.2)"
    )
    command.add_argument(
        "--group",
        metavar="REGEX",
        help="what in a path names the video that a clip is cut from; its clips stay together "
        "(default: a folder inside of the class's, or names such as v_Name_g01_c02, x_clip3)",
    )
    command.add_argument("--seed", type=int, default=0, help="of the drawn split (default 0)")
    command.add_argument(
        "--model", choices=models, default=model, help=f"default {model}; toy: for a CPU"
    )
    command.add_argument(
        "--weights",
        help="to start from: a file, mvitv2://NAME (MODEL_ZOO.md), or '' for none (default: the "
        "model's official ones)",
    )
    command.add_argument(
        "--batch", type=positive, default=batch, help=f"a step on all GPUs (default {batch})"
    )
    command.add_argument("--epochs", type=positive, help="default: by the number of files")
    command.add_argument(
        "--gpus", type=int, help="of the machine (default: those here, 0 with --device cpu)"
    )


def gpus_of(options: Any) -> int:
    """How many GPUs the config is for."""
    import torch

    if options.gpus is not None:
        return options.gpus
    return max(1, torch.cuda.device_count()) if pick_device(options.device) == "cuda" else 0


def read_labelled(
    options: Any, endings: Iterable[str], written: Iterable[str], findings: Findings
) -> Labelled:
    """Items of ``SOURCE`` and ``VAL``, checked, every one with its split.

    Args:
        options: the command's.
        endings: of the files to take.
        written: what the task writes into ``--out``, files and folders.
        findings: where faults go.

    Raises:
        ValueError: a source that is not there, cannot be read or would be written over; options
            that do not fit.
    """
    sources = [options.source, *filter(None, [options.val])]
    for source in sources:
        if not Path(source).exists():
            raise ValueError(f"{source}: no such folder or file")
        if options.out.resolve().is_relative_to(Path(source).resolve()):
            raise ValueError(f"--out {options.out} must not lie in {source}, which is searched")
    try:
        pattern = re.compile(options.group) if options.group else None
    except re.error as error:
        raise ValueError(f"--group {options.group!r} is no regular expression: {error}") from error
    known = frozenset(endings)
    classes = read_labels(options.classes) if options.classes else None
    whole = Labelled()
    for source, split in zip(sources, ("train", "val") if options.val else ("",), strict=True):
        path = Path(source).resolve()
        if path.is_dir():
            part = read_folder(path, known, pattern, findings)
            part.items = [item._replace(split=item.split or split) for item in part.items]
        else:
            root = Path(options.root).resolve() if options.root else path.parent
            part = read_csv(path, root, split, classes, pattern, findings)
        whole.items += part.items
        whole.classes += [name for name in part.classes if name not in whole.classes]
    read = [*sources, *filter(None, [options.classes])]
    check_written(options, written, [*read, *{item.path.parent for item in whole.items}])
    if classes is not None:
        whole.classes = classes
    elif all(name.isdigit() for name in whole.classes):
        whole.classes.sort(key=int)
    else:
        whole.classes.sort()
    check_items(whole, findings)
    whole.items = draw_split(whole.items, options.share, options.seed)
    check_split(whole, findings)
    return whole


def counts(labelled: Labelled, what: str) -> str:
    """How much there is, in a few lines."""
    lines = []
    for split in ("train", "val", "test"):
        mine = [item for item in labelled.items if item.split == split]
        if not mine:
            continue
        by_class = Counter(item.label for item in mine)
        least, most = min(by_class.values()), max(by_class.values())
        groups = len({item.group for item in mine})
        lines.append(
            f"{split}: {len(mine)} {what} in {groups} groups, {len(by_class)} classes of {least} "
            f"to {most}"
        )
    return "\n".join(lines)
