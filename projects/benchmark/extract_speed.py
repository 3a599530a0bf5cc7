"""What `mvitv2 extract` makes of a machine: its rows a second over the bare model's.

    python projects/benchmark/extract_speed.py --out projects/benchmark/results/extract_speed.json

Each round is a process of its own, in which the bare model and the extraction take turns on the
same batches: the bare model gets them ready-made from memory; the extraction decodes files,
prepares them, runs the model and writes the rows. Weights are random, pictures and videos are
drawn.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mvitv2_core import create_model
from mvitv2_tools.extract.extractor import Extractor
from mvitv2_tools.extract.job import Job
from mvitv2_tools.extract.settings import Settings
from mvitv2_tools.extract.work import extract_tasks
from mvitv2_tools.find_model import Options
from mvitv2_tools.inputs import Input, find_inputs
from projects.benchmark.kept import keep, machine, write_json


class Case(NamedTuple):
    """A model and its inputs.

    Args:
        model: its name.
        kind: of the inputs.
        size: width and height of the files.
        unit: how many pictures, or frames of the one video, `--amount 1` means.
        settings: of the extraction.
    """

    model: str
    kind: str
    size: tuple[int, int]
    unit: int
    settings: dict[str, Any]


CASES = {
    # As ImageNet's pictures are on average.
    "image-T": Case("mvitv2_tiny_in1k", "picture", (500, 375), 192, {"batch": 8}),
    # As Kinetics is stored for training; a row for each clip, and twice as many that overlap.
    "video-S": Case("mvitv2_small_16x4_k400", "video", (340, 256), 16 * 64, {"batch": 4}),
    "video-S-half": Case(
        "mvitv2_small_16x4_k400", "video", (340, 256), 8 * 64, {"batch": 4, "stride": 32 / 30}
    ),
}

GOAL = 0.8  # of the bare model's throughput, on two cores


def scene(width: int, height: int, number: int) -> np.ndarray:
    """(height, width, 3) uint8: waves and noise that move with `number`."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    waves = [
        np.sin(x / (9 + 4 * c) + number / 9) + np.cos(y / (7 + c) - number / 7) for c in (0, 1, 2)
    ]
    noise = np.random.default_rng(number).normal(0, 6, (height, width, 1))
    return (127 + 50 * np.stack(waves, axis=-1) + noise).clip(0, 255).astype(np.uint8)


def write_inputs(case: Case, folder: Path, amount: float) -> None:
    """Draw the files of a case."""
    import av

    folder.mkdir()
    count = max(round(case.unit * amount), 1)
    if case.kind == "picture":
        for number in range(count):
            Image.fromarray(scene(*case.size, number)).save(folder / f"{number}.jpg", quality=90)
        return
    with av.open(str(folder / "video.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height = case.size
        stream.pix_fmt = "yuv420p"
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(scene(*case.size, number), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def ready_batches(extractor: Extractor, inputs: list[Input]) -> list[torch.Tensor]:
    """The batches that the extraction makes, in memory."""
    found: list[torch.Tensor] = []
    for item in inputs:
        if item.kind == "picture":
            found.append(extractor.read_picture(item).data)
        else:
            found += [p.data for p in extractor.read_video(item, {}) if p.data is not None]
    size = extractor.settings.batch
    return [torch.cat(found[i : i + size]) for i in range(0, len(found), size)]


def one_round(case: Case, data: Path, weights: Path, number: int, threads: int) -> dict[str, Any]:
    """Rows, seconds, and seconds of CPUs, of the bare model and of the extraction."""
    torch.set_num_threads(threads)
    settings = Settings(threads=threads, **case.settings)
    with tempfile.TemporaryDirectory() as out:
        job = Job(case.model, Options(weights=str(weights), device="cpu"), settings, out)
        extractor, (inputs, _) = job.extractor(), find_inputs([str(data)])
        batches = ready_batches(extractor, inputs)
        job.folder.open(extractor.facts)
        tasks = job.folder.plan(inputs, settings.group)

        def bare() -> int:
            with torch.inference_mode():
                return sum(len(extractor.model(batch)) for batch in batches)

        def extraction() -> int:
            return sum(row["rows"] for row in extract_tasks(extractor, tasks, job.folder))

        with torch.inference_mode():
            extractor.model(batches[0])  # to warm up
        sides: list[tuple[str, Callable[[], int]]] = [("bare", bare), ("extract", extraction)]
        found = {}
        for name, run in sides if number % 2 else sides[::-1]:
            begun, used = time.perf_counter(), time.process_time()
            rows = run()
            seconds, cpu = time.perf_counter() - begun, time.process_time() - used
            found[name] = {"rows": rows, "seconds": seconds, "cpu": cpu}
    assert found["bare"]["rows"] == found["extract"]["rows"], found
    return found


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """All rounds of a case, each in a process of its own."""
    case, rounds = CASES[name], []
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.pyth"
        torch.manual_seed(0)
        torch.save({"model_state": create_model(case.model).state_dict()}, weights)
        write_inputs(case, Path(folder) / "data", options.amount)
        for number in tqdm(range(options.rounds), desc=name, disable=None):
            command = [sys.executable, __file__, "--round", name, folder, str(number)]
            command += ["--threads", str(options.threads)]
            environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
            process = subprocess.run(
                command, env=environment, stdout=subprocess.PIPE, text=True, check=True
            )
            rounds.append(json.loads(process.stdout))
    rates = {
        side: [row[side]["rows"] / row[side]["seconds"] for row in rounds]
        for side in ("bare", "extract")
    }
    ratios = [a / b for a, b in zip(rates["extract"], rates["bare"], strict=True)]
    values = {"bare rows/s": rates["bare"], "extract rows/s": rates["extract"], "ratio": ratios}
    # What is left of a CPU's work for the model: hardly changes where the machine is busy.
    values["ratio of CPU seconds"] = [row["bare"]["cpu"] / row["extract"]["cpu"] for row in rounds]
    return {
        "case": name,
        "model": case.model,
        "rows": rounds[0]["bare"]["rows"],
        "seconds": 0 if case.kind == "picture" else case.settings.get("stride", 64 / 30),
        "batch": case.settings["batch"],
        "threads": options.threads,
        **{
            key: {"median": statistics.median(v), "min": min(v), "max": max(v), "all": v}
            for key, v in values.items()
        },
    }


def main() -> None:
    """Measure the cases of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=5, help="processes of each (default 5)")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch (default 2)")
    parser.add_argument("--amount", type=float, default=1.0, help="of inputs (default 1)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write all figures as JSON")
    parser.add_argument("--keep", action="store_true", help="for docs/extract.md")
    parser.add_argument("--round", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.round:
        name, folder, number = options.round
        data, weights = Path(folder) / "data", Path(folder) / "weights.pyth"
        print(json.dumps(one_round(CASES[name], data, weights, int(number), options.threads)))
        return
    results = [measure(name, options) for name in options.cases]
    for row in results:
        bare, made, ratio = (row[key] for key in ("bare rows/s", "extract rows/s", "ratio"))
        print(
            f"{row['case']:14} {row['rows']} rows: bare {bare['median']:.2f} rows/s, extract "
            f"{made['median']:.2f}, ratio {ratio['median']:.3f} ({ratio['min']:.3f} to "
            f"{ratio['max']:.3f}, {len(ratio['all'])} rounds), of CPU seconds "
            f"{row['ratio of CPU seconds']['median']:.3f}; aim {GOAL}"
        )
        if row["seconds"]:
            hours = 1000 / row["seconds"] / made["median"]
            print(f"{'':14} 1000 hours of video are {hours:.0f} hours of such a process")
    facts = machine(threads=options.threads, runs=options.rounds, cores=os.cpu_count())
    found = {"machine": facts, "goal": GOAL, "results": results}
    if options.out:
        write_json(options.out, found)
    if options.keep:
        keep("extract_speed", found)


if __name__ == "__main__":
    main()
