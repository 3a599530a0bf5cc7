"""``mvitv2 data ava``: videos and boxes of people in, PySlowFast's AVA layout and a config out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mvitv2_core.arguments import positive
from mvitv2_core.labels import read_labels

from ..inputs import VIDEOS
from . import ava_files
from .ava_boxes import ACTIONS, KINDS, Box, as_items, find_videos, read_boxes
from .findings import Findings
from .labelled_task import gpus_of
from .options import check_written, say_findings, workers_of
from .parallel import map_files
from .slowfast_config import make_plan, write_all, yaml_text
from .slowfast_recipes import AVA
from .splits import draw_split
from .start import check_start

WRITTEN = ("findings.txt", "frames", "frame_lists", "annotations", "classes.txt", "ava.yaml")
EXAMPLES = """\
examples:
  mvitv2 data ava boxes.csv videos/ --out falls
boxes.csv has a first row video,second,x1,y1,x2,y2,label (and perhaps split): a row for each person
and action at whole seconds of a video, sides as fractions of the picture. Writes findings.txt,
frames/, frame_lists/, annotations/, classes.txt and ava.yaml to --out.
"""


def add_arguments(command: Any) -> None:
    """The arguments of ``data ava``."""
    command.add_argument("boxes", type=Path, metavar="BOXES.csv")
    command.add_argument("videos", type=Path, metavar="VIDEOS", help="folder of the videos")
    command.add_argument("--val-boxes", type=Path, metavar="CSV", help="default: drawn by videos")
    command.add_argument("--classes", metavar="FILE", help="names of the actions, in order")
    command.add_argument("--share", type=float, default=0.2, help="for validation (default 0.2)")
    command.add_argument("--seed", type=int, default=0, help="of the drawn split (default 0)")
    command.add_argument("--model", choices=AVA, default="S", help="default S; toy: for a CPU")
    command.add_argument("--weights", help="to start from (default: those of Kinetics-400)")
    command.add_argument(
        "--batch", type=positive, default=8, help="clips a step on all GPUs (default 8)"
    )
    command.add_argument("--epochs", type=positive, help="default: by the number of seconds")
    command.add_argument("--gpus", type=int, help="of the machine (default: those here)")


def run(options: Any) -> int:
    """Check, write frames and lists; returns the exit code."""
    check_start(options, AVA[options.model], gpus_of(options))
    findings, out = Findings(KINDS), options.out.resolve()
    read = [options.boxes, options.videos, options.val_boxes, options.classes]
    check_written(options, WRITTEN, filter(None, read))
    if not options.videos.is_dir():
        raise ValueError(f"{options.videos}: no such folder")
    classes = read_labels(options.classes) if options.classes else None
    boxes, splits = read_boxes(
        options.boxes, "train" if options.val_boxes else "", classes, findings
    )
    if options.val_boxes:
        more, others = read_boxes(options.val_boxes, "val", classes, findings)
        for video in sorted(set(splits) & set(others)):
            findings.add("video on both sides", video, f"{options.boxes} and {options.val_boxes}")
        boxes, splits = boxes + more, {**splits, **others}
    classes = classes or sorted({box.label for box in boxes})
    videos = find_videos(boxes, options.videos.resolve(), frozenset(VIDEOS), findings)
    items = draw_split(as_items(boxes, videos, splits), options.share, options.seed)
    sides = {item.group: item.split for item in items}
    _check_classes(boxes, sides, classes, findings)
    frames = _write_frames(boxes, videos, options, findings)
    for split in ("train", "val"):
        mine = [box for box in boxes if sides[box.video] == split]
        print(f"{split}: {len({b.video for b in mine})} videos, {len(mine)} boxes")
    code = say_findings(findings, out, options)
    if code is not None:
        return code
    _write(boxes, sides, frames, classes, options)
    return 0


def _check_classes(
    boxes: Sequence[Box], sides: dict[str, str], classes: Sequence[str], findings: Findings
) -> None:
    if not boxes:
        findings.add("no data", "all", "not one box was read")
        return
    if len(classes) > ACTIONS:
        findings.add("too many actions", "all", f"there are {len(classes)}")
    for side in ("train", "val"):
        counts = Counter(box.label for box in boxes if sides[box.video] == side)
        for name in classes:
            if not counts[name]:
                findings.add(f"class not in {side}", repr(name), "no box")


def _write_frames(
    boxes: Sequence[Box], videos: dict[str, Path], options: Any, findings: Findings
) -> dict[str, int]:
    """Frames of every video, unless they are to be checked alone; how many there are of each."""
    out = options.out.resolve() / "frames"
    names = [name for name, path in videos.items() if path.is_file()]
    alike = Counter(ava_files.folder_name(name) for name in videos)
    for name in videos:
        if alike[ava_files.folder_name(name)] > 1:
            findings.add("two videos of one name", name, f"both {ava_files.folder_name(name)!r}")
    write = not options.check_only
    jobs = [
        ava_files.Job(str(videos[name]), str(out / ava_files.folder_name(name)), write)
        for name in names
    ]
    done = map_files(ava_files.write_frames, jobs, ava_files.crashed, workers_of(options), "frames")
    counts: dict[str, int] = {}
    for name, result in zip(names, done, strict=True):
        if result.error:
            findings.add("unreadable video", name, result.error)
        elif result.broken:
            findings.add("ends early", name, result.broken)
        else:
            counts[name] = result.number
    for box in boxes:
        if box.video in counts and box.second * ava_files.FPS >= counts[box.video]:
            text = f"second {box.second} of {counts[box.video] / ava_files.FPS:.1f}"
            findings.add("box after the end", box.row, text)
    return counts


def _write(
    boxes: Sequence[Box],
    sides: dict[str, str],
    frames: dict[str, int],
    classes: Sequence[str],
    options: Any,
) -> None:
    out, gpus = options.out.resolve(), gpus_of(options)
    texts, seconds = {}, 0
    for split in ("train", "val"):
        mine = [box for box in boxes if sides[box.video] == split and box.video in frames]
        used = dict.fromkeys(box.video for box in mine)
        counts = {ava_files.folder_name(video): frames[video] for video in used}
        texts[f"frame_lists/{split}.csv"] = ava_files.frame_list(counts)
        texts[f"annotations/ava_{split}_v2.2.csv"] = ava_files.box_rows(mine, classes)
        if split == "train":
            seconds = len({(box.video, box.second) for box in mine})
        else:
            texts["annotations/ava_val_predicted_boxes.csv"] = ava_files.predicted(mine)
    texts[f"annotations/{ava_files.LABEL_MAP}"] = ava_files.label_map(classes)
    texts[f"annotations/{ava_files.EXCLUSIONS}"] = ""
    keys = {
        "AVA.FRAME_DIR": str(out / "frames"),
        "AVA.FRAME_LIST_DIR": str(out / "frame_lists"),
        "AVA.ANNOTATION_DIR": str(out / "annotations"),
        "AVA.TRAIN_PREDICT_BOX_LISTS": [],
        "AVA.TEST_PREDICT_BOX_LISTS": ["ava_val_predicted_boxes.csv"],
        "AVA.FULL_TEST_ON_VAL": True,
    }
    if options.model == "toy":
        keys |= TOY
    plan = make_plan(AVA[options.model], "ava", classes, seconds, options, gpus, out, keys)
    command = f"python -m mvitv2_slowfast.run_net --cfg {options.out / 'ava.yaml'}"
    texts["classes.txt"] = "".join(f"{name}\n" for name in classes)
    texts["ava.yaml"] = yaml_text(plan, command, "ava")
    for name in ("frame_lists", "annotations"):
        (out / name).mkdir(exist_ok=True)
    write_all(out, texts)
    print(plan.summary)
    print(f"written: {', '.join(str(out / name) for name in texts)}")


# The toy Kinetics model with PySlowFast's RoI head; its last stage has a stride of 16.
TOY = {
    "TRAIN.DATASET": "ava",
    "TEST.DATASET": "ava",
    "DETECTION.ENABLE": True,
    "DETECTION.ALIGNED": True,
    "DETECTION.SPATIAL_SCALE_FACTOR": 16,
    "MODEL.LOSS_FUNC": "bce",
    "MODEL.HEAD_ACT": "sigmoid",
}
