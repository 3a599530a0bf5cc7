"""Train a small Mask R-CNN on MViTv2 with detectron2's own trainer, and draw what it learnt.

Makes the toy shapes, runs the unmodified tools/lazyconfig_train_net.py on
configs/toy_mask_rcnn_mvitv2.py as a subprocess, and writes pictures from the files it leaves.

    python -m projects.detection.demo [--output outputs/demo] [KEY=VALUE ...]   # or make demo

``KEY=VALUE`` go to the trainer: ``train.max_iter=100``, ``train.device=cuda``. ``--keep`` adds the
result to those that docs/demo.md shows.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

from projects.benchmark.kept import DETECTRON2, check_machine, keep_run, machine
from projects.detection import pictures, toy_coco
from projects.detection.find_tools import find_tool
from projects.detection.toy_env import toy_root
from projects.run_folder import new_run

ROOT = Path(__file__).resolve().parents[2]
CONFIG = Path(__file__).with_name("configs") / "toy_mask_rcnn_mvitv2.py"
PACKAGES = ("torchvision", *DETECTRON2)
STEP = re.compile(r"eta: (\S+)\s+iter: (\d+)\s+total_loss: (\S+)")
AP = re.compile(r"Evaluation results for (bbox|segm)")
TABLE = ("AP", "AP50", "AP75", *(f"AP-{name}" for name in toy_coco.CLASSES))


def train(command: list[str], log: Path) -> None:
    """Run the trainer, its output going to ``log`` and its progress to the screen.

    Raises:
        RuntimeError: the trainer failed; the end of its log is in the message.
    """
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    terminal = sys.stdout.isatty()
    tail: list[str] = []
    task = None
    with (
        log.open("w", buffering=1) as file,
        subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            file.write(line)
            tail = [*tail[-29:], line]
            if step := STEP.search(line):
                eta, iteration, loss = step.groups()
                text = f"  iteration {int(iteration) + 1:5d}   loss {loss:>6s}   eta {eta}"
                if terminal:
                    print(f"\r{text}   ", end="", flush=True)
                elif (int(iteration) + 1) % 100 == 0:
                    print(text, flush=True)
            elif found := AP.search(line):
                task = {"bbox": "box", "segm": "mask"}[found[1]]
            elif task and re.match(r"\|\s*[\d.]+\s*\|", line):
                end = "" if task == "box" else "\n"
                lead = ("\n" if terminal else "") + "  on val: " if task == "box" else ", "
                print(f"{lead}{task} AP {line.split('|')[1].strip()}", end=end, flush=True)
                task = None
    if process.returncode:
        raise RuntimeError(
            f"the trainer stopped with status {process.returncode}; its log {log} ends with\n"
            + "".join(tail).rstrip()
        )


def read_metrics(path: Path) -> list[dict]:
    """Rows of the trainer's metrics.json: one per logged iteration."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def table(row: dict) -> str:
    """The AP table of one evaluation, as text."""
    lines = ["       " + "".join(f"{name.removeprefix('AP-'):>10s}" for name in TABLE)]
    for task, name in (("bbox", "box"), ("segm", "mask")):
        values = "".join(f"{row[f'{task}/{key}']:10.1f}" for key in TABLE)
        lines.append(f"{name:7s}{values}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("outputs/demo"))
    parser.add_argument("--train", type=int, default=400, help="training images (%(default)s)")
    parser.add_argument("--val", type=int, default=100, help="validation images (%(default)s)")
    parser.add_argument("--keep", action="store_true", help="add the result to those of docs/demo")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="for the trainer")
    args = parser.parse_args()
    if args.keep:
        if args.overrides or (args.train, args.val) != (400, 100):
            parser.error("--keep takes the demo as it is: not with --train, --val or KEY=VALUE")
        check_machine("demo", machine(PACKAGES))  # refused before the minutes, not after them

    data, run = toy_root(), args.output / "training"
    print(f"1. Toy data in {data}", flush=True)
    for split, count in (("train", args.train), ("val", args.val)):
        toy_coco.make_split(data, split, count, seed=0)

    tool = find_tool("lazyconfig_train_net.py")
    command = [sys.executable, str(tool), "--config-file", str(CONFIG), f"train.output_dir={run}"]
    command += args.overrides
    print(f"2. Training: {' '.join(command)}", flush=True)
    new_run(run)  # detectron2 would append to the last run's metrics
    start = time.perf_counter()
    train(command, args.output / "training.log")
    minutes = (time.perf_counter() - start) / 60
    print(f"   done in {minutes:.1f} minutes, evaluations included", flush=True)

    # For `mvitv2 predict`, which finds the names of the classes beside the weights.
    (run / "labels.txt").write_text("".join(f"{name}\n" for name in toy_coco.CLASSES))
    metrics = read_metrics(run / "metrics.json")
    results = run / "inference" / "coco_instances_results.json"
    pictures.draw_predictions(data, results, args.output / "predictions.png")
    pictures.draw_curve(metrics, args.output / "curve.png")
    print("3. Average precision on the validation images\n")
    last = [row for row in metrics if "bbox/AP" in row][-1]
    print(table(last))
    if args.keep:
        result = {"box_ap": last["bbox/AP"], "mask_ap": last["segm/AP"], "minutes": minutes}
        keep_run("demo", machine(PACKAGES), result)
    print(f"\nPredictions beside the truth: {args.output / 'predictions.png'}")
    print(f"Loss and AP curves:           {args.output / 'curve.png'}")
    print(f"Weights:                      {run / 'model_final.pth'}")
    print(f"Trainer's log:                {args.output / 'training.log'}")
    answers = ["mvitv2", "predict", str(args.output), str(data / "val"), "--out", "out"]
    print(f"Answers for pictures:         {shlex.join(answers)}")


if __name__ == "__main__":
    try:
        main()
    except (FileNotFoundError, RuntimeError, ValueError) as error:
        sys.exit(f"demo: {error}")
