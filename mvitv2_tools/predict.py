"""The command ``mvitv2 predict``: a model and files in, answers out."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

from mvitv2_core.arguments import add_command, positive, seconds, share

EXAMPLES = """\
examples:
  mvitv2 predict mvitv2_tiny_in1k photo.jpg            (official weights, downloaded once)
  mvitv2 predict mvitv2_small_16x4_k400 clips/ --json > answers.jsonl
  mvitv2 predict mvitv2_base_32x3_k400 match.mp4 --window 10 --stride 5 --out out
  mvitv2 predict mask_rcnn_mvitv2_t_3x street.jpg --out out
  mvitv2 predict outputs/demo datasets/toy_shapes/val --out out
The exit code is 0 where every input has its answer, 1 where some could not be read, 2 where
nothing could be done, or the run stopped on the way.
"""
PACKAGES = "pip install 'mvitv2[predict]'"


def add_predict(commands: Any) -> None:
    """Add ``predict`` to a parser's commands (the entry point group ``mvitv2.commands``)."""
    text = "say what is in pictures and videos"
    add_arguments(add_command(commands, "predict", run, text, EXAMPLES))


def add_arguments(command: Any) -> None:
    """The arguments of ``predict``."""
    command.add_argument(
        "model",
        metavar="MODEL",
        help="an official name (MODEL_ZOO.md), a checkpoint, a detectron2 config, or the output "
        "folder of a trainer",
    )
    command.add_argument(
        "inputs",
        metavar="INPUT",
        nargs="+",
        help="pictures, videos, folders, and patterns such as 'clips/**/*.mp4'",
    )
    command.add_argument("--weights", metavar="FILE", help="for a config, a variant or a folder")
    command.add_argument("--config", metavar="FILE", help="detectron2's, for a detector's file")
    command.add_argument(
        "--labels",
        metavar="FILE",
        help="names of the classes: .txt, one a line, or .json; or imagenet-1k, kinetics-400, coco",
    )
    command.add_argument("--topk", type=positive, default=5, help="labels to print (default 5)")
    command.add_argument(
        "--score", type=share, default=0.5, help="least score of an object (default 0.5)"
    )
    command.add_argument("--json", action="store_true", help="print a JSON object a line")
    command.add_argument(
        "--out", metavar="DIR", help="write pictures and videos with answers, and a contact sheet"
    )
    command.add_argument(
        "--window",
        type=seconds,
        metavar="SECONDS",
        help="one answer for each part of a video so long; 0 for one in all (default: 10 where a "
        "video is longer than a minute, or --stride is given)",
    )
    command.add_argument(
        "--stride",
        type=seconds,
        metavar="SECONDS",
        help="from one window's start to the next's (default: the window)",
    )
    command.add_argument(
        "--every", type=positive, default=1, help="frames from one to the next for a detector"
    )
    command.add_argument(
        "--boxes",
        metavar="FILE",
        help="for AVA models, people's boxes: a CSV file with lines of video, second, x1, y1, x2, "
        "y2 (sides from 0 to 1)",
    )
    command.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU where there is one)")
    command.add_argument(
        "--batch", type=positive, default=8, help="pictures or clips at a time (default 8)"
    )
    command.add_argument(
        "--trust-config",
        action="store_true",
        help="let a trainer's config.yaml call anything; without it, only parts of models",
    )
    command.add_argument("--quiet", action="store_true", help="no progress, no remarks")


def run(options: Any) -> int:
    """Do what the command line says; returns the exit code."""
    missing = what_is_missing(options.out is not None)
    if missing:
        raise ValueError(f"predict needs {', '.join(missing)}: {PACKAGES}")
    from .actions import ActionDetector
    from .find_model import Options, find_model
    from .inputs import find_inputs

    inputs, problems = find_inputs(options.inputs)
    if options.stride is not None and not options.stride:
        raise ValueError("--stride must be above 0")
    for problem in problems:
        print(f"mvitv2: {problem}", file=sys.stderr)
    if not inputs:
        return 2
    if options.out is not None:
        check_out(options.out, [item.path for item in inputs])
    chosen = Options(
        weights=options.weights,
        config=options.config,
        labels=options.labels,
        device=options.device,
        topk=options.topk,
        score=options.score,
        window=options.window,
        stride=options.stride,
        every=options.every,
        draw=options.out is not None,
        trust_config=options.trust_config,
        boxes=options.boxes,
    )
    predictor, what = find_model(options.model, chosen)
    if options.boxes is not None and not isinstance(predictor, ActionDetector):
        raise ValueError(f"--boxes is for AVA models, which {options.model} is not")
    windows = options.window is not None or options.stride is not None
    if windows and getattr(predictor, "clip", None) is None:
        raise ValueError(f"--window and --stride are for models of clips, not for {options.model}")
    if not options.quiet:
        print(f"mvitv2: {what}", file=sys.stderr)
    failed = answer_all(predictor, inputs, options)
    return 1 if failed or problems else 0


def answer_all(predictor: Any, inputs: Sequence[Any], options: Any) -> int:
    """Print and draw every answer; returns how many inputs had none."""
    from tqdm import tqdm

    from .feed import feed
    from .report import to_json, to_text

    writer = None
    if options.out is not None:
        from .draw import Writer

        writer = Writer(options.out, [given.path for given in inputs])
    failed = 0
    parts = feed(inputs, predictor.read_picture, predictor.read_video)
    hidden = True if options.quiet else None  # None: hidden where there is no terminal
    with tqdm(total=len(inputs), unit="input", disable=hidden, file=sys.stderr) as bar:
        for answer in predictor.answer(parts, options.batch):
            part = answer.part
            if part.error:
                failed += 1
            with bar.external_write_mode(file=sys.stdout):
                if part.error:
                    print(f"mvitv2: {part.error}", file=sys.stderr)
                if options.json:
                    print(to_json(answer), flush=True)
                elif not part.error:
                    print(to_text(answer), flush=True)
            if writer is not None:
                writer.add(answer)
            if part.last:
                bar.update(min(1, bar.total - bar.n))
    if writer is not None:
        written = writer.close()
        if not options.quiet:
            print(f"mvitv2: {len(written)} files in {options.out}", file=sys.stderr)
    return failed


def check_out(folder: str, inputs: Sequence[str]) -> None:
    """Make the folder of ``--out``.

    Raises:
        ValueError: it cannot be made, or inputs lie in it and might be written over.
    """
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {folder} cannot be made: {error.strerror or error}") from error
    beside = [path for path in inputs if os.path.samefile(os.path.dirname(path) or ".", folder)]
    if beside:
        raise ValueError(f"--out {folder} must not hold inputs, as {beside[0]}")


def what_is_missing(draws: bool) -> list[str]:
    """Packages of the extra ``predict`` that are not installed."""
    import importlib.util

    needed = {"PIL": "Pillow", "av": "av", "numpy": "numpy", "tqdm": "tqdm", "yaml": "PyYAML"}
    if draws:
        needed["matplotlib"] = "matplotlib"
    return [name for module, name in needed.items() if importlib.util.find_spec(module) is None]
