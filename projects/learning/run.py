"""Does pre-training pay? The same detector and clip model, from scratch and from an image model.

    python -m projects.learning.run [--out outputs/learning] [--quick] [--keep]

Trains a small image classifier on drawn pictures, then from its weights and from none

- a Faster R-CNN through ``projects/detection/train_net.py``, with layer-wise decay too,
- a clip model through PySlowFast's own ``run_net.py`` (left out where PySlowFast is missing),

each with as many steps, on the data of ``data.py``, with several seeds. Every run that ends is kept
in ``--out``: a second call does what is missing. ``--keep`` writes
``projects/benchmark/results/learning.json``, from which ``make figures`` makes docs/learning.md's
table and curves.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from projects.benchmark.kept import DETECTRON2, keep, machine, write_json
from projects.detection.demo import read_metrics, train
from projects.learning import data
from projects.learning.pretrain import pretrain
from projects.run_folder import new_run
from projects.video import files
from projects.video.demo import run_net, what_is_missing

HERE = Path(__file__).parent
DECAY = 0.7
DETECTION = ("from scratch", "from images", "from images, layer decay")
VIDEO = ("from scratch", "from images")


@dataclass(frozen=True)
class Size:
    """How much is trained.

    Args:
        pictures, picture_steps: of the image model.
        images: for detection, training and validation.
        steps, measured_every: of the detector, of four images each.
        clips: of each class, training and validation.
        epochs: of the clip model.
        seeds: runs of each arm.
    """

    pictures: int = 6000
    picture_steps: int = 1200
    images: tuple[int, int] = (100, 50)
    steps: int = 120
    measured_every: int = 24
    clips: tuple[int, int] = (250, 32)
    epochs: int = 10
    seeds: int = 3


QUICK = Size(24, 3, (6, 4), 4, 2, (4, 4), 2, 1)


def once(path: Path, make: Callable[[], Any]) -> Any:
    """What ``make`` gives, from ``path`` where it was written before."""
    if not path.exists():
        files.write_text(path, json.dumps(make()) + "\n")
    return json.loads(path.read_text())


def detect(out: Path, coco: Path, arm: str, image: Path, seed: int, size: Size) -> list:
    """Train one detector; (steps, box AP in percent) of each measurement."""
    new_run(out)
    options: dict[str, Any] = {
        f"DATASETS.OWN.{split}_{what}": path
        for split, name in (("TRAIN", "train"), ("VAL", "val"))
        for what, path in (("JSON", coco / f"{name}.json"), ("IMAGES", coco / name))
    }
    options |= {"OUTPUT_DIR": out, "SEED": seed, "SOLVER.MAX_ITER": size.steps}
    options |= {"TEST.EVAL_PERIOD": size.measured_every}
    options |= {"SOLVER.WARMUP_ITERS": size.steps // 10}
    options |= {"MODEL.WEIGHTS": "" if arm == "from scratch" else image}
    options |= {"MODEL.MVITV2.LAYER_DECAY": DECAY if "decay" in arm else 1.0}
    tool = HERE.parent / "detection" / "train_net.py"
    command = [sys.executable, str(tool), "--config-file", str(HERE / "detection.yaml")]
    command += [str(word) for pair in options.items() for word in pair]
    train(command, out / "log.txt")
    rows = read_metrics(out / "metrics.json")
    # detectron2 counts from 0, and one more after the last step.
    return [
        (min(row["iteration"] + 1, size.steps), row["bbox/AP"]) for row in rows if "bbox/AP" in row
    ]


def recognise(out: Path, clips: Path, arm: str, image: Path, seed: int, size: Size) -> list:
    """Train one clip model; (epochs, validation top-1 in percent) of each measurement."""
    options: dict[str, Any] = {"DATA.PATH_TO_DATA_DIR": clips, "DATA.PATH_PREFIX": clips}
    options |= {"RNG_SEED": seed, "SOLVER.MAX_EPOCH": size.epochs}
    options |= {"SOLVER.WARMUP_EPOCHS": 1.0, "TRAIN.CHECKPOINT_PERIOD": size.epochs}
    options |= {"MVITV2.IMAGE_CHECKPOINT": "" if arm == "from scratch" else image}
    run = run_net(f"{arm}, seed {seed}", HERE / "video.yaml", out, options)
    epochs, errors = run.curve("val_epoch", "top1_err")
    return [(epoch, 100 - error) for epoch, error in zip(epochs, errors, strict=True)]


def experiment(out: Path, size: Size) -> dict[str, Any]:
    """Everything; the results, as ``results/learning.json`` has them."""
    out = out.resolve()
    files.claim_folder(out, {"set": "learning", **asdict(size)})
    image = out / "image.pyth"
    top1 = once(out / "image.json", partial(pretrain, image, size.pictures, size.picture_steps))
    print(f"image model: {top1:.1f} % of its validation pictures are right", flush=True)
    results = {"size": asdict(size), "machine": machine(DETECTRON2), "image_top1": top1}
    data.make_coco(out / "coco", dict(zip(("train", "val"), size.images, strict=True)))
    results["detection"] = arms(out, "detection", DETECTION, out / "coco", detect, image, size)
    missing = what_is_missing()
    if missing:
        print(f"Clips are left out. {missing}")
        return results
    data.make_clips(out / "kinetics", dict(zip(("train", "val"), size.clips, strict=True)))
    results["video"] = arms(out, "video", VIDEO, out / "kinetics", recognise, image, size)
    return results


def arms(
    out: Path,
    what: str,
    names: tuple[str, ...],
    folder: Path,
    run: Callable[..., list],
    image: Path,
    size: Size,
) -> dict[str, list]:
    """The curves of every arm, one for each seed."""
    curves: dict[str, list] = {name: [] for name in names}
    for seed in range(1, size.seeds + 1):
        for arm in names:
            name = f"{what} {arm} {seed}".replace(",", "").replace(" ", "-")
            make = partial(run, out / name, folder, arm, image, seed, size)
            curve = once(out / f"{name}.json", make)
            curves[arm].append(curve)
            print(f"{what}, {arm}, seed {seed}: {curve[-1][1]:.1f} in the end", flush=True)
    return curves


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("outputs/learning"))
    parser.add_argument("--quick", action="store_true", help="does everything run?")
    parser.add_argument("--keep", action="store_true", help="for docs/learning.md")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    results = experiment(args.out, QUICK if args.quick else Size())
    write_json(args.out / "learning.json", results)
    if args.keep:
        keep("learning", results)


if __name__ == "__main__":
    try:
        main()
    except (FileNotFoundError, RuntimeError, ValueError) as error:
        sys.exit(f"learning: {error}")
