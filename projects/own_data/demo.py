"""Own data from raw folders to pictures of predictions: the way of docs/own-detection.md and video.

    python -m projects.own_data.demo [--out outputs/demo-own] [--quick]     # or make demo-own

Draws what a person might come with (a COCO json with its pictures, and a folder of videos for each
class) and runs the commands of the pages on it: ``mvitv2 data``, detectron2's and PySlowFast's own
trainers, ``mvitv2 predict``. Without PySlowFast the videos are left out.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from projects.detection import toy_coco
from projects.detection.demo import train
from projects.detection.find_tools import find_tool
from projects.run_folder import new_run
from projects.video import files, scenes, toy_kinetics
from projects.video.demo import run_net, what_is_missing

IMAGES = {"train": 160, "val": 32}
EPOCHS = {"detection": 15, "video": 14}
MOTIONS, VIDEOS, CLIPS = ("left", "right", "grow", "circle"), 20, 2  # of each motion; of each video
SEEDS = 4  # first word of the videos' seeds: no look is shared with the toy sets


def say(title: str) -> None:
    print(f"\n{title}", flush=True)


def mvitv2(*arguments: object, output: int | None = None) -> None:
    """Run ``mvitv2`` as a person would, and show the command.

    Args:
        arguments: after the command's name.
        output: where it prints; None for the screen.

    Raises:
        RuntimeError: it failed.
    """
    words = [str(word) for word in arguments]
    print(f"$ mvitv2 {' '.join(words)}", flush=True)
    command = [sys.executable, "-W", "ignore", "-m", "mvitv2_core.cli", *words]
    if subprocess.run(command, stdout=output).returncode:
        raise RuntimeError(f"mvitv2 {words[0]} failed")


def draw_videos(root: Path, videos: int) -> None:
    """``root/MOTION/videoNN_clipN.mp4``: clips of one video share shape, colours and background."""
    jobs = []
    for label, motion in enumerate(MOTIONS):
        for video in range(videos):
            rng = np.random.default_rng([SEEDS, label, video])
            look = scenes.draw_look(rng)
            for number in range(CLIPS):
                moved = replace(look, centre=scenes.draw_look(rng).centre)
                clip = toy_kinetics.Clip(f"{video}", motion, moved, rng.uniform(0, 2 * np.pi))
                path = root / motion / f"video{video:02d}{motion}_clip{number}.mp4"
                jobs.append((path, lambda path, clip=clip: files.write_video(path, clip.frames())))
    files.make_missing(jobs, "videos")


def detection(out: Path, quick: bool) -> None:
    """A Mask R-CNN from a COCO json."""
    raw, own = out / "raw" / "shapes", out / "shapes"
    say("1. What a person comes with: train.json, train/, val.json, val/")
    for split, count in IMAGES.items():
        toy_coco.make_split(raw, split, 8 if quick else count, seed=7)
    say("2. Checked, drawn as the network will see it, and made ready")
    epochs = 1 if quick else EPOCHS["detection"]
    folders = [raw / name for name in ("train.json", "train", "val.json", "val")]
    settings = ["--model", "toy", "--batch", 4, "--epochs", epochs, "--device", "cpu"]
    mvitv2("data", "detection", *folders, "--out", own, *settings)
    say("3. Trained and evaluated by detectron2's unmodified lazyconfig_train_net.py")
    new_run(own / "run")
    tool = find_tool("lazyconfig_train_net.py")
    command = [sys.executable, str(tool), "--config-file", str(own / "detection.py")]
    train([*command, "train.eval_period=200"], out / "shapes-training.log")
    say("4. Used")
    folders = [own / "run", raw / "val", "--out", own / "predictions"]
    mvitv2("predict", *folders, output=subprocess.DEVNULL)


def video(out: Path, quick: bool) -> None:
    """A clip classifier from a folder for each class."""
    raw, own = out / "raw" / "motions", out / "motions"
    say("5. Videos: a folder for each class, two clips of each video")
    draw_videos(raw, 3 if quick else VIDEOS)
    say("6. Decoded, checked, split by video, made ready")
    epochs = 1 if quick else EPOCHS["video"]
    settings = ["--model", "toy", "--batch", 8, "--epochs", epochs, "--device", "cpu"]
    new_run(own / "run")
    mvitv2("data", "video", raw, "--out", own, *settings)
    say("7. Trained and tested by PySlowFast's unmodified run_net.py")
    run = run_net("videos", own / "video.yaml", own / "run", {})
    print(f"multi-view top-1 on validation: {run.test_top1:.1f} %")
    say("8. Used")
    chosen = [raw / line.split()[0] for line in (own / "val.csv").read_text().splitlines()]
    folders = [own / "run", *chosen[::4], "--out", own / "predictions"]
    mvitv2("predict", *folders, output=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("outputs/demo-own"))
    parser.add_argument("--quick", action="store_true", help="little data, one epoch")
    args = parser.parse_args()
    out, start = args.out.resolve(), time.perf_counter()
    detection(out, args.quick)
    missing = what_is_missing()
    if missing:
        print(f"\n5. to 8. Videos are left out. {missing}")
    else:
        video(out, args.quick)
    print(f"\nPredictions: {out}/shapes/predictions/contact_sheet.jpg", end="")
    print("" if missing else f", {out}/motions/predictions/contact_sheet.jpg")
    print(f"{(time.perf_counter() - start) / 60:.1f} minutes in all")


if __name__ == "__main__":
    try:
        main()
    except (FileNotFoundError, RuntimeError, ValueError) as error:
        sys.exit(f"demo-own: {error}")
