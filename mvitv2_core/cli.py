"""The command ``mvitv2``: looks into, converts, inflates and compares checkpoints; counts cost."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch

from . import __version__
from .arguments import add_command, size
from .checkpoint import (
    Checkpoint,
    CheckpointError,
    LoadReport,
    convert_state_dict,
    inflate_state_dict,
    read_checkpoint,
)
from .checkpoint.describe import (
    diff_checkpoints,
    inspect_checkpoint,
    read_layout,
    show_inspection,
)
from .checkpoint.formats import DETECTOR, FORMATS, to_project
from .checkpoint.load import weights_path
from .checkpoint.write import check_target, write_checkpoint
from .config import MViTConfig
from .cost import classifier_cost, show_cost
from .recipes import recipe_path
from .rows import VARIANTS

CONFIG_READERS = "mvitv2.config_readers"
COMMANDS = "mvitv2.commands"  # functions of other packages that add a command each
CLIP_OPTIONS = ("variant", "frames", "size", "classes", "kv_stride", "no_cls_token")

INSPECT = """\
examples:
  mvitv2 inspect MViTv2_T_in1k.pyth
  mvitv2 inspect model_final.pkl --json
  mvitv2 inspect mvitv2_tiny_in1k        (one of the official weights, downloaded on first use)
"""
CONVERT = """\
examples:
  mvitv2 convert MViTv2_T_in1k.pyth backbone.pth --to detectron2
  mvitv2 convert model_final.pkl backbone.safetensors --to image
  mvitv2 convert timm_tiny.safetensors MViTv2_T.pyth --to slowfast
  mvitv2 convert MViTv2_T_in1k.pyth MViTv2_T_384.pyth --to image --size 384
From a clip model to a format for images, the centre frame is taken.
"""
INFLATE = """\
examples:
  mvitv2 inflate MViTv2_S_in1k.pyth MViTv2_S_16x4_init.pyth --frames 16
  mvitv2 inflate MViTv2_L_in21k.pyth L_init.pyth --frames 40 --size 312 --classes 400
  mvitv2 inflate MViTv2_S_in1k.pyth init.pyth --config configs/Kinetics/MViTv2_S_16x4.yaml
A head of another number of classes, and a class token that the image model lacks, stay out: the
trainer starts them anew.
"""
DIFF = """\
examples:
  mvitv2 diff MViTv2_T_in1k.pyth timm_tiny.safetensors
Names are compared in the project's terms, whatever the formats. The exit code is 0 where all
tensors are equal, 1 where they are not.
"""
COST = """\
examples:
  mvitv2 cost T
  mvitv2 cost B --size 384
  mvitv2 cost S --frames 16 --classes 400
Counted as published: a multiply-add is one, an element of a LayerNorm five. For detectors:
projects/detection/check_config.py.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, 2 for errors, 1 as the command's help says."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    # Of a trace Python's exit code is 1, which a command may give for a run that came to its end.
    except (CheckpointError, ValueError, OSError, torch.OutOfMemoryError) as error:
        print(f"mvitv2: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mvitv2: stopped", file=sys.stderr)
        return 130  # as shells say that a program was interrupted


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mvitv2",
        description="Look into, convert, inflate and compare MViTv2 checkpoints; count a model's "
        "cost.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    for command in sorted(entry_points(group=COMMANDS)):
        command.load()(commands)

    add = partial(add_command, commands)

    inspect = add("inspect", _inspect, "say what a checkpoint file holds", INSPECT)
    inspect.add_argument("file", metavar="FILE")
    inspect.add_argument("--json", action="store_true", help="print JSON")

    convert = add("convert", _convert, "write a checkpoint in another format", CONVERT)
    _add_files(convert, ".pyth, .pth, .pt or .safetensors; .pkl too with --to detectron2")
    formats = "; ".join(f"{name}: {row.source}" for name, row in FORMATS.items())
    convert.add_argument("--to", required=True, choices=FORMATS, help=formats)
    convert.add_argument(
        "--prefix",
        nargs="?",
        const=DETECTOR,
        default="",
        help=f"put in front of every name; {DETECTOR!r} where no value is given",
    )
    convert.add_argument("--size", type=size, help="resample position tables: 384 or 288x512")
    convert.add_argument("--frames", type=int, help="with --size, for clips: frames of a clip")

    inflate = add(
        "inflate", _inflate, "make a clip model's checkpoint of an image model's", INFLATE
    )
    _add_files(inflate, ".pyth, .pth, .pt or .safetensors")
    inflate.add_argument("--config", help="PySlowFast YAML file of the clip model")
    shape = inflate.add_argument_group("the clip model, where no --config is given")
    shape.add_argument("--variant", choices=VARIANTS, help="default: the checkpoint's own")
    shape.add_argument("--frames", type=int, help="frames of a clip (default 16)")
    shape.add_argument("--size", type=size, help="crop: 224 (the default) or 224x320")
    shape.add_argument("--classes", type=int, help="default: the checkpoint's")
    shape.add_argument("--kv-stride", type=int, help="of the first stage (default 8)")
    shape.add_argument("--no-cls-token", action="store_true", help="clip model without one")

    diff = add("diff", _diff, "compare two checkpoints tensor by tensor", DIFF)
    diff.add_argument("a", metavar="A")
    diff.add_argument("b", metavar="B")

    cost = add("cost", _cost, "count a model's parameters and multiply-adds, block by block", COST)
    cost.add_argument("variant", choices=VARIANTS)
    cost.add_argument("--frames", type=int, help="of a clip; images where not given")
    cost.add_argument("--size", type=size, default=(224, 224), help="224 (the default), 224x320")
    cost.add_argument("--classes", type=int, default=1000, help="default 1000")
    return parser


def _add_files(command: Any, endings: str) -> None:
    command.add_argument("input", metavar="IN", help="file, or name of official weights")
    command.add_argument("output", metavar="OUT", help=endings)
    command.add_argument("--force", action="store_true", help="replace OUT if it exists")
    command.add_argument("--json", action="store_true", help="print the report as JSON")
    command.add_argument("--quiet", action="store_true", help="print the summary alone")


def _inspect(options: Any) -> int:
    facts = inspect_checkpoint(weights_path(options.file))
    print(json.dumps(facts, indent=2) if options.json else show_inspection(facts))
    return 0


def _convert(options: Any) -> int:
    check_target(options.output, options.to, options.force)
    if options.frames is not None and options.size is None:
        raise ValueError("--frames needs --size")
    checkpoint = read_checkpoint(weights_path(options.input))
    size = options.size
    if options.frames is not None:
        size = (options.frames, *size)
    state, report = convert_state_dict(
        checkpoint.state,
        options.to,
        prefix=options.prefix,
        input_size=size,
        file=checkpoint.file,
    )
    write_checkpoint(options.output, state, options.to, options.force)
    _print(report, options)
    return 0


def _inflate(options: Any) -> int:
    check_target(options.output, "slowfast", options.force)
    checkpoint = read_checkpoint(weights_path(options.input))
    config = _clip_config(options, checkpoint)
    state, entries = inflate_state_dict(checkpoint.state, config, file=checkpoint.file)
    write_checkpoint(options.output, state, "slowfast", options.force)
    _print(LoadReport(checkpoint.file, tuple(entries)), options)
    return 0


def _clip_config(options: Any, checkpoint: Checkpoint) -> MViTConfig:
    given = [n for n in CLIP_OPTIONS if getattr(options, n) not in (None, False)]
    if options.config is not None:
        if given:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise ValueError(f"--config says it all: it does not go with {names}")
        return read_config_file(options.config)
    layout = read_layout(to_project(checkpoint.file, checkpoint.state).known)
    variant = options.variant or layout.variant
    if variant is None:
        raise ValueError(f"--variant or --config is needed: {checkpoint.file} holds {layout}")
    frames = 16 if options.frames is None else options.frames
    classes = layout.num_classes if options.classes is None else options.classes
    return MViTConfig.variant(
        variant,
        (frames, *(options.size or (224, 224))),
        kv_stride=options.kv_stride,
        dim_mul_in_att=layout.in_att is not False,
        cls_token=not options.no_cls_token,
        num_classes=1000 if classes is None else classes,
    )


def _diff(options: Any) -> int:
    equal, text = diff_checkpoints(weights_path(options.a), weights_path(options.b))
    print(text)
    return 0 if equal else 1


def _cost(options: Any) -> int:
    size = options.size if options.frames is None else (options.frames, *options.size)
    config = MViTConfig.variant(options.variant, size, num_classes=options.classes)
    print(show_cost(classifier_cost(config)))
    return 0


def _print(report: LoadReport, options: Any) -> None:
    if options.json:
        print(report.to_json(indent=2))
    else:
        print(report.summary() if options.quiet else report)


def read_config_file(file: str) -> MViTConfig:
    """The model config of another trainer's config file, or of a recipe of this project.

    Readers come from adapters, which core does not know: packages name them by file ending in
    the entry point group ``mvitv2.config_readers``.

    Raises:
        ValueError: no reader for such files is installed.
    """
    suffix = Path(file).suffix.removeprefix(".")
    for reader in entry_points(group=CONFIG_READERS):
        if reader.name == suffix:
            try:
                read = reader.load()
            except ImportError as error:
                raise ValueError(
                    f"{file}: its reader cannot be loaded: {error}; install what {reader.value} "
                    f"needs (pip install 'mvitv2[slowfast]'), or use --variant, --frames and --size"
                ) from error
            return read(recipe_path(file))
    raise ValueError(
        f"{file}: nothing installed reads .{suffix} configs; install this project (pip install .) "
        f"and PySlowFast, or use --variant, --frames and --size"
    )


if __name__ == "__main__":
    sys.exit(main())
