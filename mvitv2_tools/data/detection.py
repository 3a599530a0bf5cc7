"""``mvitv2 data detection``: COCO jsons in, findings, pictures and ready configs out."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from mvitv2_core.arguments import positive
from mvitv2_core.checkpoint.files import whole_file

from .coco_check import KINDS, Split, read_split
from .coco_images import check_pictures
from .coco_masks import has_masks, has_run_lengths
from .coco_pair import check_classes, check_tiny, sizes
from .detection_config import python_config, yaml_config
from .detection_plan import MODELS, make_plan
from .findings import Findings
from .options import pick_device, say_findings, workers_of
from .start import detector_start

EXAMPLES = """\
examples:
  mvitv2 data detection train.json train/ val.json val/ --out birds
  mvitv2 data detection all.json images/ val.json images/ --out birds --model T --batch 16 \\
    --weights mvitv2://mask_rcnn_mvitv2_t_3x
Writes findings.txt, augmented.jpg, labels.txt, detection.py and detection.yaml to --out. The exit
code is 0 where configs were written, 1 where errors in the data kept them back (--force).
"""


def add_arguments(command: Any) -> None:
    """The arguments of ``data detection``."""
    command.add_argument("train_json", type=Path, metavar="TRAIN.json", help="in COCO's format")
    command.add_argument("train_images", type=Path, metavar="TRAIN_IMAGES", help="its folder")
    command.add_argument("val_json", type=Path, metavar="VAL.json")
    command.add_argument("val_images", type=Path, metavar="VAL_IMAGES")
    command.add_argument(
        "--model", choices=MODELS, default="T", help="MViTv2's size (default T); toy: for a CPU"
    )
    command.add_argument(
        "--weights",
        help="to start from: a file, mvitv2://NAME (MODEL_ZOO.md), or '' for none (default: the "
        "model's official ones, from ImageNet-1K)",
    )
    command.add_argument(
        "--batch", type=positive, default=16, help="images a step on all GPUs (default 16)"
    )
    command.add_argument("--epochs", type=float, help="default: by the number of images")
    command.add_argument("--boxes-only", action="store_true", help="do not learn masks")


def run(options: Any) -> int:
    """Check, draw and write; returns the exit code."""
    out: Path = options.out.resolve()
    weights = detector_start(options.weights)
    findings = Findings(KINDS)
    files = [options.train_json, options.train_images, options.val_json, options.val_images]
    train_json, train_images, val_json, val_images = (path.resolve() for path in files)
    train = read_split("train", train_json, train_images, findings)
    val = read_split("val", val_json, val_images, findings)
    splits = (train, val)
    masks = has_masks(splits, options.boxes_only, findings)
    check_classes(train, val, findings)
    model = MODELS[options.model]
    for split in splits:
        check_tiny(split, model.short_test, model.longest, findings)
    check_pictures(splits, workers_of(options), findings)
    for split in splits:
        print(f"{split.name}: {_counts(split)}")
    code = say_findings(findings, out, options)
    if code is not None:
        return code
    learnable = {a["image_id"] for a in train.annotations if not a.get("iscrowd", 0)}
    plan = make_plan(
        name=re.sub(r"\W+", "_", out.name) or "own",
        model=model,
        files=(train_json, train_images, val_json, val_images),
        classes=train.classes,
        images=len(learnable & set(train.images)),
        masks=masks,
        bitmasks=masks and has_run_lengths(train),
        batch=options.batch,
        epochs=options.epochs,
        weights=weights,
        device=pick_device(options.device),
        out=out / "run",
    )
    config = out / "detection.py"
    texts = {
        config: python_config(plan, str(options.out / "detection.py")),
        config.with_suffix(".yaml"): yaml_config(plan, str(options.out / "detection.yaml")),
        out / "labels.txt": "".join(f"{name}\n" for name in plan.classes),
    }
    for path, text in texts.items():
        with whole_file(path) as temporary:
            Path(temporary).write_text(text, "utf-8")
    print(plan.summary)
    print(f"written: {', '.join(str(path) for path in texts)}")
    return _draw(config, out / "augmented.jpg")


def _counts(split: Split) -> str:
    crowds = sum(bool(a.get("iscrowd", 0)) for a in split.annotations)
    text = f"{len(split.images)} images, {len(split.annotations) - crowds} boxes, {crowds} crowds, "
    text += f"{len(split.classes)} classes"
    return f"{text}; {sizes(split)}" if sizes(split) else text


def _draw(config: Path, output: Path) -> int:
    """Pictures need detectron2; configs can be written where there is none."""
    try:
        import detectron2  # noqa: F401
    except ImportError as error:
        print(f"mvitv2: no {output.name}: detectron2 is not installed ({error})", file=sys.stderr)
        return 0
    from .augmented import draw_augmented

    draw_augmented(config, output)
    print(f"what the network will see: {output}")
    return 0
