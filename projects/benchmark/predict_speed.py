"""How busy `mvitv2 predict` keeps the model: its throughput beside that of the model alone.

    python projects/benchmark/predict_speed.py                    # pictures and clips, five rounds
    python projects/benchmark/predict_speed.py --kinds pictures --rounds 2

A folder of JPEGs of 640x480 goes through MViTv2-T at 224, one of H.264 clips of 340x256 through
MViTv2-S 16x4. Both sides do the same batches, in turns, in a new process for each round:

- predict: all that the command does after the model is there, from files to printed lines, decoding
  beside the model.
- model: the same model on the batches that predict gave it, prepared before the clock starts.

The aim is at least 0.8 of the model's throughput on two cores. Values of the weights do not matter
for speed: they are random, nothing is downloaded.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mvitv2_core import create_model
from mvitv2_core.labels import read_labels
from mvitv2_tools.classify import Classifier
from mvitv2_tools.inputs import Input, find_inputs
from mvitv2_tools.predict import answer_all
from projects.benchmark.kept import keep, machine, write_json

MODELS = {"pictures": "mvitv2_tiny_in1k", "clips": "mvitv2_small_16x4_k400"}
COUNTS = {"pictures": 96, "clips": 6}
PICTURE, CLIP, FPS, FRAMES = (640, 480), (340, 256), 30, 150
GOAL = 0.8


def make_pictures(folder: Path, count: int) -> None:
    """JPEGs of quality 90, of waves and noise: about as large as photographs of that size."""
    from PIL import Image

    for index in range(count):
        Image.fromarray(scene(*PICTURE, index, 0).numpy()).save(
            folder / f"{index:03d}.jpg", quality=90
        )


def make_clips(folder: Path, count: int) -> None:
    """H.264 as x264 writes it by default, five seconds each."""
    import av

    for index in range(count):
        with av.open(str(folder / f"{index:03d}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=FPS)
            stream.width, stream.height, stream.pix_fmt = *CLIP, "yuv420p"
            for number in range(FRAMES):
                pixels = scene(*CLIP, index, number).numpy()
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())


def scene(width: int, height: int, seed: int, number: int) -> torch.Tensor:
    """(height, width, 3) uint8: waves that move with ``number``, under a little noise."""
    generator = torch.Generator().manual_seed(1000 * seed + number)
    y, x = torch.arange(height)[:, None], torch.arange(width)
    waves = [
        torch.sin((x + 3 * number) / (9 + c + seed % 5)) + torch.cos((y - number) / (7 + 2 * c))
        for c in range(3)
    ]
    noise = 6 * torch.randn(height, width, 3, generator=generator)
    return (127 + 50 * torch.stack(waves, dim=-1) + noise).clamp(0, 255).to(torch.uint8)


def run_round(kind: str, folder: str, args: Namespace) -> dict[str, float]:
    """Seconds of both sides, after a warm-up of each: which goes first alternates."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    inputs, _ = find_inputs([folder])
    model = create_model(MODELS[kind])
    labels = read_labels(model.info.labels)
    predictor = Classifier(model, model.info, labels, torch.device("cpu"))
    batches: list[torch.Tensor] = []
    keep = model.register_forward_pre_hook(lambda _, given: batches.append(given[0]))
    predict(predictor, inputs, args.batch)  # the warm-up, whose batches are kept
    keep.remove()

    @torch.inference_mode()
    def alone() -> None:
        for batch in batches:
            model(batch).softmax(dim=1)

    alone()
    sides: list[tuple[str, Callable[[], None]]] = [
        ("predict", lambda: predict(predictor, inputs, args.batch)),
        ("model", alone),
    ]
    seconds = {}
    for name, side in sides if args.round % 2 else reversed(sides):
        start, used = time.perf_counter(), time.process_time()
        side()
        seconds[name] = time.perf_counter() - start
        seconds[f"{name}_cpu"] = time.process_time() - used
    return {**seconds, "views": sum(len(batch) for batch in batches), "inputs": len(inputs)}


def predict(predictor: Classifier, inputs: list[Input], batch: int) -> None:
    """What the command does with a model and inputs; its lines go nowhere."""
    options = Namespace(out=None, quiet=True, json=True, batch=batch)
    with contextlib.redirect_stdout(io.StringIO()) as lines:
        failed = answer_all(predictor, inputs, options)
    if failed or len(lines.getvalue().splitlines()) != len(inputs):
        raise RuntimeError(f"{failed} of {len(inputs)} inputs without answer")


def spawn(kind: str, folder: Path, number: int, args: Namespace) -> dict[str, float]:
    """``run_round`` in a process of its own."""
    command = [sys.executable, __file__, "--worker", kind, str(folder), "--round", str(number)]
    command += ["--threads", str(args.threads), "--batch", str(args.batch)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"a round failed: {done.stderr.strip()}")
    return json.loads(done.stdout.splitlines()[-1])


def summary(rounds: list[dict[str, float]]) -> dict[str, Any]:
    """Medians and ranges: seconds of both sides, and the share of the model's throughput."""
    columns = {name: [row[name] for row in rounds] for name in ("predict", "model")}
    columns["share"] = [row["model"] / row["predict"] for row in rounds]
    return {
        name: {"median": statistics.median(c), "min": min(c), "max": max(c)}
        for name, c in columns.items()
    }


def show(kind: str, found: dict[str, Any], row: dict[str, float]) -> str:
    """One line for a person."""

    def span(name: str, digits: int) -> str:
        v = found[name]
        return f"{v['median']:.{digits}f} ({v['min']:.{digits}f} to {v['max']:.{digits}f})"

    return (
        f"{kind}: {row['inputs']:.0f} files, {row['views']:.0f} views; predict "
        f"{span('predict', 2)} s, the model alone {span('model', 2)} s: {span('share', 3)} of its "
        f"throughput, aim {GOAL}"
    )


def arguments() -> Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pictures", type=int, default=COUNTS["pictures"], help="files")
    parser.add_argument("--clips", type=int, default=COUNTS["clips"], help="files")
    parser.add_argument("--out", type=Path, default=Path("outputs/predict_speed.json"))
    parser.add_argument("--keep", action="store_true", help="for docs/predict.md")
    parser.add_argument("--worker", nargs=2, metavar=("KIND", "FOLDER"), help=argparse.SUPPRESS)
    parser.add_argument("--round", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    if args.worker:
        print(json.dumps(run_round(*args.worker, args)))
        return
    counts = {"runs": args.rounds, "cores": os.cpu_count(), "batch": args.batch}
    facts = machine(threads=args.threads, **counts)
    results: dict[str, Any] = {"machine": facts, "goal": GOAL}
    with tempfile.TemporaryDirectory() as folder:
        for kind in args.kinds:
            path = Path(folder) / kind
            path.mkdir()
            {"pictures": make_pictures, "clips": make_clips}[kind](path, getattr(args, kind))
            rounds = []
            for number in range(args.rounds):
                rounds.append(spawn(kind, path, number, args))
                shares = rounds[-1]["model"] / rounds[-1]["predict"]
                print(f"{kind}, round {number + 1} of {args.rounds}: {shares:.3f}", flush=True)
            found = summary(rounds)
            print(show(kind, found, rounds[0]), flush=True)
            results[kind] = {"name": MODELS[kind], **found, "rounds": rounds}
    write_json(args.out, results)
    print(f"written to {args.out}")
    if args.keep:
        keep("predict_speed", results)


if __name__ == "__main__":
    main()
