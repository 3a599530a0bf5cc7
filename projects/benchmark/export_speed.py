"""Exported files beside eager: speed and size, in turns, over separate processes.

    python projects/benchmark/export_speed.py --make                  # files alone, once; minutes
    python projects/benchmark/export_speed.py --keep                  # and measured
    python projects/benchmark/export_speed.py --models toy --rounds 1 --calls 2  # tries the script

Each round starts one process for each route in turn, so that drift of the machine hits all alike.
A process warms up, then takes the median of its calls; a row has the median and the range over the
processes. Files are made once, for the shape of the example, and kept in --out. The documents show
what lies under projects/benchmark/results/export_speed.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mvitv2_core import create_model
from mvitv2_core.models import PLAIN
from mvitv2_tools.classify import Classifier
from mvitv2_tools.export import to_onnx
from mvitv2_tools.export.command import export
from mvitv2_tools.export.subject import Subject, backbone_subject, classifier_subject
from projects.benchmark.kept import keep, machine, write_json
from projects.benchmark.report import layout

CONFIGS = Path(__file__).resolve().parents[2] / "configs/COCO"
# {name: (official or plain name or detectron2's config, height and width, frames)}
MODELS: dict[str, tuple[str, tuple[int, int], int | None]] = {
    "image T 224": ("mvitv2_tiny", (224, 224), None),
    "clip S 16x4": ("mvitv2_small_16x4_k400", (224, 224), 16),
    "backbone T with FPN 512": ("mask_rcnn_mvitv2_t_3x.yaml", (512, 512), None),
    "toy": ("mvitv2_tiny", (64, 64), None),
    "toy backbone": ("toy_mask_rcnn_mvitv2.yaml", (128, 160), None),
}
ROUTES = {
    "eager": "",
    "ONNX, onnxruntime": "fixed.onnx",
    "ONNX, free size": "free.onnx",
    ".pt2": "fixed.pt2",
    ".pt2, compiled": "compiled.pt2",
}


def subject_of(name: str, free: tuple[str, ...] = ()) -> Subject:
    """What is exported and timed, with random weights: they make no difference in time."""
    source, size, frames = MODELS[name]
    torch.manual_seed(0)
    if source.endswith(".yaml"):
        return backbone_subject(detector_of(source), 1, size, None, free)
    options: dict[str, Any] = {} if source in PLAIN and frames is None else {"frames": frames}
    model: Any = create_model(source, input_size=size, **options)
    classifier = Classifier(model, model.info, None, torch.device("cpu"))
    return classifier_subject(classifier, 1, None, None, free)


def detector_of(config: str) -> Any:
    """What ``backbone_subject`` reads of a detector, by a YAML config."""
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model

    from mvitv2_d2.env import setup_environment

    setup_environment()
    cfg = get_cfg()
    cfg.merge_from_file(str(CONFIGS / config))
    cfg.MODEL.DEVICE = "cpu"
    return SimpleNamespace(
        model=build_model(cfg).eval(), image_format=cfg.INPUT.FORMAT, labels=None
    )


def shape_of(name: str) -> tuple[int, ...]:
    _, size, frames = MODELS[name]
    return (1, 3, *([frames] if frames else []), *size)


def file_of(name: str, route: str, out: Path) -> Path:
    return out / f"{name.replace(' ', '_')}_{ROUTES[route]}"


def make(name: str, route: str, out: Path) -> None:
    """The file of a route, unless it is there."""
    file = file_of(name, route, out)
    if not ROUTES[route] or file.exists():
        return
    free = ("size",) if "free" in route else ()
    export(subject_of(name, free), file, compiled="compiled" in route, free=free, say=say)


def caller(name: str, route: str, out: Path, threads: int) -> Any:
    """A function of an input that runs the route."""
    file = str(file_of(name, route, out))
    if route == "eager":
        return subject_of(name).model.eval()
    if file.endswith(".onnx"):
        session = to_onnx.open_session(Path(file), threads)
        (given,) = session.get_inputs()
        return lambda x: session.run(None, {given.name: x.numpy()})
    if "compiled" in route:
        return torch._inductor.aoti_load_package(file)
    return torch.export.load(file).module()


def worker(args: argparse.Namespace) -> None:
    """The median seconds of a call, in a process of its own; prints one JSON line."""
    torch.set_num_threads(args.threads)
    name, route = args.worker
    x = torch.randn(shape_of(name), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode() if route == "eager" else torch.no_grad():
        call, seconds = caller(name, route, args.out, args.threads), []
        for number in range(args.warmup + args.calls):
            start = time.perf_counter()
            call(x)
            if number >= args.warmup:
                seconds.append(time.perf_counter() - start)
    print(json.dumps(statistics.median(seconds)))


def measure(name: str, route: str, args: argparse.Namespace) -> float:
    """One process of ``worker``."""
    command = [sys.executable, "-W", "ignore", __file__, "--worker", name, route]
    for option in ("out", "threads", "calls", "warmup"):
        command += [f"--{option}", str(getattr(args, option))]
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{name}, {route}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def table(results: dict[str, Any]) -> list[list[str]]:
    """The lines of docs/export.md's table, of equally many cells, the head first."""
    lines = [["model", "route", "median s", "min-max s", "over eager", "file, MiB"]]
    eager = {r["model"]: statistics.median(r["seconds"]) for r in results["rows"] if not r["mib"]}
    for row in results["rows"]:
        seconds = row["seconds"]
        median = statistics.median(seconds)
        lines.append(
            [
                row["model"],
                row["route"],
                f"{median:.4f}",
                f"{min(seconds):.4f}-{max(seconds):.4f}",
                f"{eager[row['model']] / median:.2f}x as fast",
                f"{row['mib']:.1f}" if row["mib"] else "-",
            ]
        )
    return lines


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS)[:3])
    parser.add_argument(
        "--routes", nargs="+", choices=ROUTES, default=[r for r in ROUTES if "free" not in r]
    )
    parser.add_argument("--rounds", type=int, default=5, help="processes of each route")
    parser.add_argument("--calls", type=int, default=4, help="timed calls of a process")
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("outputs/export_speed"))
    parser.add_argument("--keep", action="store_true", help="for docs/export.md")
    parser.add_argument("--make", action="store_true", help="make the files, measure nothing")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return worker(args)
    args.out.mkdir(parents=True, exist_ok=True)
    pairs = [(name, route) for name in args.models for route in args.routes]
    for name, route in pairs:
        say(f"{name}, {route}: making")
        make(name, route, args.out)
    if args.make:
        return None
    seconds: dict[tuple[str, str], list[float]] = {pair: [] for pair in pairs}
    for number in range(args.rounds):
        for pair in pairs if number % 2 == 0 else pairs[::-1]:
            seconds[pair].append(measure(*pair, args))
            say(f"round {number + 1}, {', '.join(pair)}: {seconds[pair][-1]:.4f} s")
    rows = []
    for (name, route), found in seconds.items():
        size = file_of(name, route, args.out).stat().st_size / 2**20 if ROUTES[route] else 0
        rows.append({"model": name, "route": route, "seconds": found, "mib": size})
    counts = {"runs": args.rounds, "repeats": args.calls, "batch": 1}
    results = {"machine": machine(("onnxruntime",), args.threads, **counts), "rows": rows}
    write_json(args.out / "results.json", results)
    if args.keep:
        keep("export_speed", results)
    print(layout(table(results), markdown=True))


if __name__ == "__main__":
    main()
