"""The video path from end to end on toy data: PySlowFast's own trainer, this project's MViTv2.

    python -m projects.video.demo [--out outputs/demo-video] [--quick] [--seed N] [--keep]

Makes the toy sets, trains an image model on the stills, then the video model twice, from scratch
and from the inflated image model, and tests both with several views of each clip. Everything is
trained and tested by PySlowFast's unmodified `tools/run_net.py`. `--keep` adds the result to those
that docs/video-demo.md shows.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import re
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from projects.run_folder import new_run

ROOT = Path(__file__).resolve().parents[2]
VIDEO_CONFIG = ROOT / "configs" / "Kinetics" / "toy_mvitv2.yaml"
IMAGE_CONFIG = ROOT / "configs" / "ImageNet" / "toy_mvitv2.yaml"
CLIPS = {"train": 64, "val": 16, "test": 16}  # of each motion
STILLS = {"train": 100, "val": 25}  # of each shape
QUICK_CLIPS, QUICK_STILLS = {"train": 4, "val": 1, "test": 1}, {"train": 8, "val": 2}
QUICK_EPOCHS = 3


@dataclass(frozen=True)
class Run:
    """One call of PySlowFast's `run_net.py`: where it wrote, and the statistics it logged."""

    folder: Path
    stats: list[dict[str, Any]]

    def curve(self, kind: str, key: str) -> tuple[list[int], list[float]]:
        """Epochs and values of `key` in the entries of `kind`, "train_epoch" or "val_epoch"."""
        found = [entry for entry in self.stats if entry.get("_type") == kind]
        return [int(entry["epoch"].split("/")[0]) for entry in found], [e[key] for e in found]

    @property
    def val_top1(self) -> float:
        """Top-1 accuracy of the last validation, percent."""
        return 100.0 - self.curve("val_epoch", "top1_err")[1][-1]

    @property
    def test_top1(self) -> float:
        """Top-1 accuracy of the multi-view test, percent."""
        return [float(e["top1_acc"]) for e in self.stats if e.get("split") == "test_final"][-1]


def read_stats(line: str) -> dict[str, Any] | None:
    """PySlowFast's statistics in a line of its log, None if it has none."""
    found = re.search(r"json_stats: (\{.*\})", line)
    return json.loads(found[1]) if found else None


def run_net(title: str, config: Path, folder: Path, options: dict[str, Any]) -> Run:
    """Train and test with PySlowFast's own trainer, one line of progress per epoch.

    Args:
        title: what to call the run on the screen.
        config: YAML file.
        folder: new folder for all that the run writes; a demo's older run there is removed.
        options: config keys to set besides.

    Raises:
        RuntimeError: the trainer failed; the message has the end of its log.
        ValueError: see ``new_run``.
    """
    new_run(folder)
    options = {**options, "OUTPUT_DIR": str(folder)}
    command = [sys.executable, "-m", "mvitv2_slowfast.run_net", "--cfg", str(config), "--opts"]
    command += [str(word) for pair in options.items() for word in pair]
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    # One thread computes while the loader's process decodes: two cores are busy.
    environment.setdefault("OMP_NUM_THREADS", "1")
    stats, lines = [], []
    print(f"{title}: log in {folder / 'log.txt'}", flush=True)
    with (
        (folder / "log.txt").open("w") as log,
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            log.write(line)
            lines.append(line)
            entry = read_stats(line)
            if entry is not None:
                stats.append(entry)
                show(title, entry)
    if process.returncode:
        raise RuntimeError(f"{title} failed:\n{''.join(lines[-30:])}")
    return Run(folder, stats)


def show(title: str, entry: dict[str, Any]) -> None:
    """Print one entry of the statistics, if it is one for an epoch or the final test."""
    if entry.get("_type") == "train_epoch":
        text = f"epoch {entry['epoch']:>5}  loss {entry['loss']:.3f}"
        text += f"  train top-1 {100 - entry['top1_err']:5.1f} %"
    elif entry.get("_type") == "val_epoch":
        text = f"epoch {entry['epoch']:>5}  val top-1 {100 - entry['top1_err']:5.1f} %"
    elif entry.get("split") == "test_final":
        text = f"multi-view test top-1 {float(entry['top1_acc']):.1f} %"
    else:
        return
    print(f"{title}: {text}", flush=True)


def last_checkpoint(run: Run) -> Path:
    """The newest checkpoint of a run."""
    return max((run.folder / "checkpoints").glob("checkpoint_epoch_*.pyth"))


def demo(out: Path, quick: bool = False, seed: int = 0) -> dict[str, Run]:
    """Run all of it; returns the runs "image", "scratch" and "inflated".

    Args:
        out: folder for data, runs and pictures.
        quick: little data and few epochs: shows that everything runs, not that it learns.
        seed: of all three trainings; the data stay the same.

    Raises:
        RuntimeError: PySlowFast's trainer failed.
        ValueError: `out` holds toy sets made with other settings, or runs that no demo made.
    """
    from projects.video import plots, toy_kinetics

    out = out.resolve()
    data_folder = out / ("data-quick" if quick else "data")
    stills, clips = data_folder / "imagenet", data_folder / "kinetics"
    toy_kinetics.make_imagenet(stills, QUICK_STILLS if quick else STILLS)
    toy_kinetics.make_kinetics(clips, QUICK_CLIPS if quick else CLIPS)
    same: dict[str, Any] = {"RNG_SEED": seed}
    if quick:
        same["SOLVER.MAX_EPOCH"] = QUICK_EPOCHS
    data = {"DATA.PATH_TO_DATA_DIR": str(clips), "DATA.PATH_PREFIX": str(clips), **same}
    runs = {}
    runs["image"] = run_net(
        "image model",
        IMAGE_CONFIG,
        out / "run-image",
        {"DATA.PATH_TO_DATA_DIR": str(stills), **same},
    )
    image = last_checkpoint(runs["image"])
    runs["scratch"] = run_net("from scratch", VIDEO_CONFIG, out / "run-scratch", data)
    runs["inflated"] = run_net(
        "from images",
        VIDEO_CONFIG,
        out / "run-inflated",
        {**data, "MVITV2.IMAGE_CHECKPOINT": str(image)},
    )
    plots.draw_curve(out / "curve.png", runs["scratch"], runs["inflated"])
    plots.draw_predictions(out / "predictions.png", clips, runs["scratch"], runs["inflated"])
    return runs


def summary(runs: dict[str, Run], classes: int) -> str:
    """The accuracies side by side."""
    lines = [f"image model, top-1 on validation stills: {runs['image'].val_top1:.1f} %"]
    lines.append(f"{'video model':<24}{'last validation':>16}{'multi-view test':>18}")
    for name, title in (("scratch", "from scratch"), ("inflated", "from the image model")):
        run = runs[name]
        lines.append(f"{title:<24}{run.val_top1:>14.1f} %{run.test_top1:>16.1f} %")
    lines.append(f"{'chance':<24}{100 / classes:>14.1f} %{100 / classes:>16.1f} %")
    return "\n".join(lines)


def result(runs: dict[str, Run]) -> dict[str, float]:
    """The accuracies, in percent, as ``results/video_demo.json`` has them."""
    found = {"image_validation": runs["image"].val_top1}
    for name in ("scratch", "inflated"):
        found |= {f"{name}_validation": runs[name].val_top1, f"{name}_test": runs[name].test_top1}
    return found


def main() -> None:
    """Command line; exit code 2 where PySlowFast or its packages are missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("outputs/demo-video"))
    parser.add_argument(
        "--quick", action="store_true", help="little data, 3 epochs: does everything run?"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the trainings (%(default)s)")
    parser.add_argument(
        "--keep", action="store_true", help="add the result to those of docs/video-demo.md"
    )
    args = parser.parse_args()
    if args.keep and args.quick:
        parser.error("--keep takes the demo as it is: not with --quick")
    missing = what_is_missing()
    if missing:
        print(missing, file=sys.stderr)
        sys.exit(2)
    from projects.benchmark.kept import check_machine, keep_run, machine
    from projects.video.scenes import MOTIONS

    on = machine(threads=int(os.environ.get("OMP_NUM_THREADS", 1)))  # those of `run_net`
    start = time.time()
    try:
        if args.keep:
            check_machine("video_demo", on)  # refused before the minutes, not after them
        runs = demo(args.out, args.quick, args.seed)
    except (RuntimeError, ValueError) as error:
        sys.exit(str(error))
    print(f"\n{summary(runs, len(MOTIONS))}")
    print(f"{args.out / 'predictions.png'} and {args.out / 'curve.png'}", end="")
    print(f" written; {time.time() - start:.0f} s in all")
    if args.keep:
        keep_run("video_demo", on, {"seed": args.seed, **result(runs)})


def what_is_missing() -> str:
    """What keeps the demo from running, and what to do about it; "" if nothing does."""
    packages = [
        name for name in ("av", "matplotlib", "PIL", "tqdm") if not importlib.util.find_spec(name)
    ]
    if packages:
        return f"The video demo needs {', '.join(packages)}: run `make setup-video`."
    logging.getLogger("mvitv2_slowfast").setLevel(logging.ERROR)  # it is said here, and once
    from mvitv2_slowfast.locate import HOW_TO_GET, PySlowFastError
    from mvitv2_slowfast.plugin import connect

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what PySlowFast's packages say of each other
            root = connect()
    except PySlowFastError as error:
        return str(error)
    if root is None:
        return f"The video demo needs PySlowFast, which was not found. To get it: {HOW_TO_GET}."
    return ""


if __name__ == "__main__":
    main()
