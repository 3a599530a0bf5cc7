"""The command ``mvitv2 extract``: a model and files in, features out."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from mvitv2_core.arguments import add_command, positive, seconds

EXAMPLES = """\
examples:
  mvitv2 extract mvitv2_base_in1k photos/ --format parquet --out features
  mvitv2 extract mvitv2_small_16x4_k400 talks/ --stride 1 --out talks-features
  mvitv2 extract outputs/demo-video clips/ --features grid --dtype float16 --out grids
  mvitv2 extract mvitv2_small_16x4_k400 /mnt/videos --out /mnt/rows --engine ray --threads 2
The same command goes on where a killed one stopped. The exit code is 0 where every input has its
rows, 1 where some could not be read, 2 where nothing could be done, or the run
stopped on the way.
"""
PACKAGES = "pip install 'mvitv2[extract]'"


def add_extract(commands: Any) -> None:
    """Add ``extract`` to a parser's commands (the entry point group ``mvitv2.commands``)."""
    text = "turn pictures and videos into features"
    add_arguments(add_command(commands, "extract", run, text, EXAMPLES))


def add_arguments(command: Any) -> None:
    """The arguments of ``extract``."""
    from .settings import DTYPES, FEATURES, FORMATS

    command.add_argument(
        "model",
        metavar="MODEL",
        help="an official name (MODEL_ZOO.md), a checkpoint, or PySlowFast's output folder",
    )
    command.add_argument(
        "inputs",
        metavar="INPUT",
        nargs="+",
        help="pictures, videos, folders, and patterns such as 'clips/**/*.mp4'",
    )
    command.add_argument("--out", metavar="DIR", required=True, help="the folder to fill")
    command.add_argument("--weights", metavar="FILE", help="for a plain variant or a folder")
    command.add_argument(
        "--features",
        choices=FEATURES,
        default="pooled",
        help="pooled: what the head takes, a vector a row (default); frames: a vector for each "
        "temporal cell of a clip; grid: every token in its place",
    )
    command.add_argument(
        "--window",
        type=seconds,
        metavar="SECONDS",
        help="of a video that a row stands for (default: the clip that the model was trained with)",
    )
    command.add_argument(
        "--stride",
        type=seconds,
        metavar="SECONDS",
        help="from one window's start to the next's (default: the window)",
    )
    command.add_argument("--format", choices=FORMATS, default="npy", help="default npy")
    command.add_argument("--dtype", choices=DTYPES, default="float32", help="default float32")
    command.add_argument(
        "--batch", type=positive, default=8, help="pictures or windows at a time (default 8)"
    )
    command.add_argument(
        "--group", type=positive, default=256, help="pictures of a file (default 256)"
    )
    command.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU where there is one)")
    command.add_argument(
        "--threads",
        type=positive,
        help="of a process (default: PyTorch's own, which is all cores of the machine)",
    )
    command.add_argument(
        "--retry", action="store_true", help="read once more what could not be read"
    )
    command.add_argument(
        "--engine", choices=("local", "ray"), default="local", help="default local"
    )
    command.add_argument("--address", help="of a Ray cluster (default: one on this machine)")
    command.add_argument(
        "--workers",
        type=positive,
        help="Ray's processes (default: those that --threads CPUs each leave room for)",
    )
    command.add_argument("--quiet", action="store_true", help="no progress, no remarks")


def run(options: Any) -> int:
    """Do what the command line says; returns the exit code."""
    missing = what_is_missing(options.format)
    if missing:
        raise ValueError(f"extract needs {', '.join(missing)}: {PACKAGES}")
    if options.engine == "local" and (options.address or options.workers):
        raise ValueError("--address and --workers need --engine ray")
    from ..inputs import find_inputs

    inputs, problems = find_inputs(options.inputs)
    for problem in problems:
        print(f"mvitv2: {problem}", file=sys.stderr)
    if not inputs:
        return 2
    try:
        failed = extract(inputs, options)
    except OSError as error:  # a full disk, a folder that may not be written to
        raise ValueError(f"--out {options.out}: {error.strerror or error}") from error
    return 1 if failed or problems else 0


def extract(inputs: Sequence[Any], options: Any) -> int:
    """Do all that is not done; returns how many inputs have a problem."""
    from .folder import REPORT, write_json

    job = _job(options)
    extractor = job.extractor()
    folder = job.folder
    lock = folder.open(extractor.facts)
    try:
        tasks = folder.plan(inputs, options.group, options.retry)
        known = {task.name: folder.done(task) for task in tasks}
        if options.retry:
            for task in tasks:
                if (known[task.name] or {}).get("problems"):
                    folder.undo(task)
                    known[task.name] = None
        todo = [task for task in tasks if known[task.name] is None]
        if not options.quiet:
            print(f"mvitv2: {extractor}", file=sys.stderr)
            if len(todo) < len(tasks):
                done = len(tasks) - len(todo)
                print(f"mvitv2: {done} of {len(tasks)} tasks are done already", file=sys.stderr)
        begun = time.perf_counter()
        bad: list[list[str]] = []
        for row in known.values():
            bad += row["problems"] if row else []
        made = 0
        for row in _progress(job, extractor, todo, folder, options):
            bad += row["problems"]
            made += row["rows"]
        bad.sort()
        for _, problem in bad:
            print(f"mvitv2: {problem}", file=sys.stderr)
        report = {
            "inputs": sum(len(task.sources) for task in tasks),
            "rows": made + sum(row["rows"] for row in known.values() if row),
            "problems": [{"path": path, "problem": problem} for path, problem in bad],
        }
        write_json(folder.path / REPORT, report)
        if not options.quiet:
            seconds = time.perf_counter() - begun
            print(f"mvitv2: {made} rows in {seconds:.1f} s, in {options.out}", file=sys.stderr)
        return len(bad)
    finally:
        lock.release()


def _job(options: Any) -> Any:
    import torch

    from ..find_model import Options
    from .job import Job
    from .settings import Settings

    settings = Settings(
        features=options.features,
        window=options.window,
        stride=options.stride,
        batch=options.batch,
        group=options.group,
        format=options.format,
        dtype=options.dtype,
        threads=options.threads or torch.get_num_threads(),
    )
    # Workers of a cluster are in other folders.
    model, weights = (
        os.path.abspath(name) if name is not None and os.path.exists(name) else name
        for name in (options.model, options.weights)
    )
    chosen = Options(weights=weights, device=options.device)
    return Job(model, chosen, settings, os.path.abspath(options.out))


def _progress(
    job: Any, extractor: Any, todo: Sequence[Any], folder: Any, options: Any
) -> Iterator[dict[str, Any]]:
    """What is known of each task as it is done, behind a bar."""
    from tqdm import tqdm

    if not todo:
        return
    hidden = True if options.quiet else None  # None: hidden where there is no terminal
    with tqdm(unit="row", disable=hidden, file=sys.stderr) as bar:
        left = len(todo)
        bar.set_postfix_str(f"{left} of {len(todo)} tasks left")
        if options.engine == "ray":
            from .ray_engine import extract_on_ray

            rows = extract_on_ray(job, todo, options.address, options.workers)
        else:
            from .work import extract_tasks

            rows = extract_tasks(extractor, todo, folder, bar.update)
        for row in rows:
            left -= 1
            bar.set_postfix_str(f"{left} of {len(todo)} tasks left")
            if options.engine == "ray":
                bar.update(row["rows"])
            yield row


def what_is_missing(format: str) -> list[str]:
    """Packages of the extra ``extract`` that are not installed."""
    import importlib.util

    needed = {"PIL": "Pillow", "av": "av", "numpy": "numpy", "tqdm": "tqdm", "yaml": "PyYAML"}
    if format == "parquet":
        needed["pyarrow"] = "pyarrow"
    return [name for module, name in needed.items() if importlib.util.find_spec(module) is None]
