"""``mvitv2 data video``: labelled videos in, PySlowFast's lists and a ready config out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..inputs import VIDEOS
from .findings import Findings
from .labelled_task import add_labelled, counts, gpus_of, read_labelled
from .options import say_findings, workers_of
from .slowfast_config import labels_text, list_texts, make_plan, write_all, yaml_text
from .slowfast_recipes import VIDEO, Recipe
from .start import check_start
from .video_check import KINDS, check_videos

WRITTEN = ("findings.txt", "train.csv", "val.csv", "test.csv", "classes.txt", "video.yaml")
EXAMPLES = """\
examples:
  mvitv2 data video clips/ --out sports                       (clips/CLASS/*.mp4)
  mvitv2 data video train.csv val.csv --root clips/ --out sports --model B --gpus 8 --batch 32
Writes findings.txt, train.csv, val.csv, test.csv, classes.txt and video.yaml to --out. The exit
code is 0 where the config was written, 1 where errors in the data kept it back (--force).
"""


def add_arguments(command: Any) -> None:
    """The arguments of ``data video``."""
    add_labelled(command, VIDEO, "S", 8)


def run(options: Any) -> int:
    """Check and write; returns the exit code."""
    check_start(options, VIDEO[options.model], gpus_of(options))
    findings = Findings(KINDS)
    labelled = read_labelled(options, VIDEOS, WRITTEN, findings)
    recipe = VIDEO[options.model]
    span, crop = clip_of(recipe)
    check_videos(labelled.items, span, crop, workers_of(options), findings)
    out: Path = options.out.resolve()
    root = common_folder([item.path for item in labelled.items], out)
    texts, separator = list_texts(labelled.items, labelled.classes, root, findings)
    print(counts(labelled, "videos"))
    code = say_findings(findings, out, options)
    if code is not None:
        return code
    train = sum(item.split == "train" for item in labelled.items)
    keys = {"DATA.PATH_PREFIX": str(root), "DATA.PATH_LABEL_SEPARATOR": separator}
    gpus = gpus_of(options)
    plan = make_plan(recipe, "kinetics", labelled.classes, train, options, gpus, out, keys)
    command = f"python -m mvitv2_slowfast.run_net --cfg {options.out / 'video.yaml'}"
    texts["classes.txt"] = labels_text(labelled.classes)
    texts["video.yaml"] = yaml_text(plan, command, "video")  # last: a folder with it is whole
    write_all(out, texts)
    print(plan.summary)
    print(f"written: {', '.join(str(out / name) for name in texts)}")
    return 0


def clip_of(recipe: Recipe) -> tuple[float, int]:
    """Seconds that a recipe's clip spans, and the pixels of its crop."""
    data = recipe.node("DATA")
    # PySlowFast's defaults: 30 frames a second.
    frames = (data["NUM_FRAMES"] - 1) * data["SAMPLING_RATE"] + 1
    return frames / data.get("TARGET_FPS", 30), data["TRAIN_CROP_SIZE"]


def common_folder(paths: Sequence[Path], default: Path) -> Path:
    """The folder that all files lie in."""
    import os

    return Path(os.path.commonpath([path.parent for path in paths])) if paths else default
