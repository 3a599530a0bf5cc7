"""``mvitv2 export``: finds a model, writes the file asked for, and compares what it gives."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mvitv2_core.arguments import add_command, positive, size

from .subject import FREE, PRECISIONS, Exported, Subject, backbone_subject, classifier_subject

EXAMPLES = """\
examples:
  mvitv2 export mvitv2_tiny_in1k tiny.onnx --dynamic batch size
  mvitv2 export mvitv2_small_16x4_k400 small.pt2 --dynamic size frames
  mvitv2 export mvitv2_tiny_in1k tiny.pt2 --compile     (ahead of time, for CPUs like this one)
  mvitv2 export outputs/demo backbone.onnx --dynamic size
  mvitv2 export mvitv2_tiny tiny.onnx --random          (without weights: to try a route)
docs/export.md says what each route can do, and how a file is run.
"""
# Largest difference from the model in float32, over its largest output.
ALLOWED = {"float32": 1e-5, "float16": 2e-2, "bfloat16": 1e-1}


def add_export(commands: Any) -> None:
    """Add ``export`` to a parser's commands (the entry point group ``mvitv2.commands``)."""
    text = "write a model as a file that runs without this project"
    add_arguments(add_command(commands, "export", run, text, EXAMPLES))


def add_arguments(command: Any) -> None:
    """The arguments of ``export``."""
    command.add_argument(
        "model",
        metavar="MODEL",
        help="as for `mvitv2 predict`: an official name, a checkpoint, a detectron2 config, or the "
        "output folder of a trainer; of a detector the backbone with its pyramid",
    )
    command.add_argument("output", metavar="OUT", help=".onnx, or .pt2 for PyTorch")
    command.add_argument(
        "--dynamic", nargs="+", default=[], choices=FREE, help="what may differ from call to call"
    )
    command.add_argument("--precision", choices=PRECISIONS, default="float32")
    command.add_argument(
        "--compile", action="store_true", help="a .pt2 compiled ahead of time (AOTInductor)"
    )
    command.add_argument("--size", type=size, help="224 or 224x320 (default: the model's)")
    command.add_argument("--frames", type=positive, help="of a clip (default: the model's)")
    command.add_argument("--batch", type=positive, default=1, help="default 1")
    command.add_argument("--weights", metavar="FILE", help="for a config, a variant or a folder")
    command.add_argument("--config", metavar="FILE", help="detectron2's, for a detector's file")
    command.add_argument("--labels", metavar="FILE", help="names of the classes, for the metadata")
    command.add_argument(
        "--random", action="store_true", help="random weights, for a name: to try a route"
    )
    command.add_argument("--trust-config", action="store_true", help="as for `mvitv2 predict`")
    command.add_argument("--force", action="store_true", help="replace OUT if it exists")
    command.add_argument("--quiet", action="store_true", help="no progress, no remarks")


def run(options: Any) -> int:
    """Do what the command line says; returns the exit code."""
    check(options)
    say = _silent if options.quiet else _say
    predictor, what = find(options)
    make = classifier_subject if hasattr(predictor, "info") else backbone_subject
    subject = make(predictor, options.batch, options.size, options.frames, options.dynamic)
    say(what)
    for line in export(
        subject, Path(options.output), options.precision, options.compile, options.dynamic, say
    ):
        print(line)
    return 0


def check(options: Any) -> None:
    """Raise ValueError for what cannot be done, before anything is."""
    output = Path(options.output)
    if output.suffix not in (".onnx", ".pt2"):
        raise ValueError(f"{output}: the name must end in .onnx or .pt2")
    if not output.absolute().parent.is_dir():
        raise ValueError(f"{output}: its folder is not there")
    if output.is_dir() or (output.exists() and not options.force):
        raise ValueError(f"{output}: exists already; use --force to replace it")
    if options.random and options.weights is not None:
        raise ValueError("--random does not go with --weights")
    if output.suffix == ".onnx":
        from .to_onnx import check_packages

        if options.compile:
            raise ValueError("--compile is for .pt2: onnxruntime compiles a file when it opens it")
        if options.precision == "bfloat16":
            raise ValueError(
                "--precision bfloat16 is for .pt2: onnxruntime's CPU has no matrix product of it"
            )
        check_packages()
    elif options.compile:
        from .to_package import check_compiler

        if {"size", "frames"} & set(options.dynamic):
            raise ValueError(
                "--compile is for one size and number of frames: on free ones PyTorch's compiler "
                "does not end in a reasonable time; make a package for each"
            )
        check_compiler()


def find(options: Any) -> tuple[Any, str]:
    """The model, as ``find_model`` has it, on the CPU, and a line that says what it is."""
    from mvitv2_tools.find_model import Options, find_model

    chosen = Options(
        weights=options.weights,
        config=options.config,
        labels=options.labels,
        device="cpu",
        trust_config=options.trust_config,
    )
    if not options.random:
        return find_model(options.model, chosen)
    from mvitv2_core import create_model
    from mvitv2_tools.classify import Classifier
    from mvitv2_tools.runs import find_labels

    model = create_model(options.model, frames=options.frames)
    info: Any = model.info
    labels = find_labels(options.labels or info.labels, [])
    return Classifier(model, info, labels, torch.device("cpu")), f"{info.name}: random weights"


def export(
    subject: Subject,
    output: Path,
    precision: str = "float32",
    compiled: bool = False,
    free: Sequence[str] = (),
    say: Any = lambda text: None,
) -> list[str]:
    """Write ``subject`` as ``output``, once it ran and gave what the model gives.

    Args:
        subject: of ``classifier_subject`` or ``backbone_subject``. Its model is left in
            ``precision``.
        output: ``.onnx`` or ``.pt2``.
        precision: a key of ``PRECISIONS``.
        compiled: whether a ``.pt2`` is compiled ahead of time.
        free: what of ``FREE`` is, for the metadata.
        say: is told what is being done.

    Returns:
        Lines that say what was compared, and what was written.

    Raises:
        ValueError: the route cannot have this model, or gives something else.
    """
    from . import to_onnx, to_package

    onnx = output.suffix == ".onnx"
    if not onnx and has_windows(subject) and 0 in subject.free:
        raise ValueError(
            "--dynamic batch does not go with --dynamic size in a .pt2 where blocks attend inside "
            "windows: PyTorch ties the program to more than one image; .onnx can"
        )
    say("the model's own outputs")
    inputs = subject.inputs()
    with torch.inference_mode():
        first = Exported(subject.model, subject.outputs, torch.float32)
        expected = [list(first(x)) for x in inputs]
    subject.metadata.update(precision=precision, free=list(free), shape=list(subject.shape))
    program = trace(subject, precision, say)
    with tempfile.TemporaryDirectory(prefix=".mvitv2-", dir=output.absolute().parent) as folder:
        file = Path(folder) / output.name
        start = time.perf_counter()
        route = "ONNX" if onnx else "compiling (minutes)" if compiled else "writing"
        say(route)
        try:
            if onnx:
                to_onnx.write(program, subject, file)
            elif compiled:
                to_package.write_compiled(program, subject, file)
            else:
                to_package.write(program, subject, file)
        except RuntimeError as error:
            raise ValueError(f"{output}: {_first_line(error)}") from error
        say(f"running it ({time.perf_counter() - start:.0f} s so far)")
        got = to_onnx.run(file, inputs) if onnx else to_package.run(file, inputs, compiled)
        lines = compare(inputs, got, expected, ALLOWED[precision])
        written = sorted(Path(folder).iterdir(), key=lambda path: path == file)
        size = sum(path.stat().st_size for path in written)
        for path in written:  # what the file refers to comes first
            with open(path, "rb") as stream:
                os.fsync(stream.fileno())
            os.replace(path, output.absolute().parent / path.name)
    return [*lines, f"{output}: {size / 2**20:.1f} MiB"]


def trace(
    subject: Subject, precision: str, say: Any = lambda text: None
) -> torch.export.ExportedProgram:
    """The program of ``subject`` in ``precision``.

    Raises:
        ValueError: PyTorch cannot export it with these axes free.
    """
    module = Exported(subject.model, subject.outputs, PRECISIONS[precision])
    free = " and ".join(subject.free.values())
    say("torch.export" + (f" with {free} free (minutes)" if free else ""))
    dims = subject.dynamic_shapes()
    # A program for a batch of one is for one alone: the example of a free batch has two.
    shape = (max(subject.shape[0], 2 if 0 in subject.free else 1), *subject.shape[1:])
    try:
        with torch.no_grad(), any_windows(subject):
            return torch.export.export(
                module,
                (torch.zeros(shape),),
                dynamic_shapes=(dims,) if dims else None,
                strict=False,
            )
    except RuntimeError as error:
        raise ValueError(f"torch.export: {_first_line(error)}") from error


def any_windows(subject: Subject) -> AbstractContextManager:
    """Exporting asks of no size whether it is 0 or 1, where windows meet free sizes.

    What the example answers would tie a program to it: whether there is one window, and whether
    windows are filled up. ``torch.onnx.export`` sets the same.
    """
    config: Any = getattr(torch.fx.experimental, "_config", None)
    if not has_windows(subject) or not hasattr(config, "backed_size_oblivious"):  # PyTorch 2.6
        return nullcontext()
    return config.patch(backed_size_oblivious=True)


def has_windows(subject: Subject) -> bool:
    """Whether size is free, and blocks attend inside windows."""
    free = len(subject.shape) - 1 in subject.free
    return free and any(getattr(m, "windows", None) for m in subject.model.modules())


def compare(
    inputs: Sequence[Tensor],
    got: Sequence[Sequence[Tensor]],
    expected: Sequence[Sequence[Tensor]],
    allowed: float,
) -> list[str]:
    """A line for each input.

    Raises:
        ValueError: a difference over the largest value is more than ``allowed``, or no number.
    """
    lines = []
    for x, parts, references in zip(inputs, got, expected, strict=True):
        shape = "x".join(map(str, x.shape))
        pairs = list(zip(parts, references, strict=True))
        if any(a.shape != b.shape for a, b in pairs):
            raise ValueError(f"for {shape} the file gives tensors of other shapes")
        errors = [_error(a, b) for a, b in pairs]
        for error in errors:  # each by itself: max() loses a NaN
            if not error <= allowed:
                raise ValueError(
                    f"for {shape} the file differs from the model by {error:.1e} of its largest "
                    f"output, more than {allowed:.0e}: nothing was written"
                )
        lines.append(f"{shape}: differs by {max(errors):.1e} of the largest output")
    return lines


def _error(a: Tensor, b: Tensor) -> float:
    """The largest difference over the largest value of ``b``, which may be 0 where they agree."""
    difference = (a - b).abs().max()
    return (difference / b.abs().max()).item() if difference else 0.0


def _say(text: str) -> None:
    print(f"mvitv2: {text}", file=sys.stderr, flush=True)


def _silent(text: str) -> None:
    pass


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
