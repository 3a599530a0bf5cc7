"""The command ``mvitv2 explain``: where a classifier looks, drawn over its input."""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvitv2_core.arguments import add_command

from .predict import PACKAGES, check_out, what_is_missing

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

EXAMPLES = """\
examples:
  mvitv2 explain mvitv2_tiny_in1k photo.jpg --out out
  mvitv2 explain mvitv2_tiny_in1k photos/ --method attention --block 7 --query 3,10 --out out
  mvitv2 explain mvitv2_small_16x4_k400 dance.mp4 --method rollout --out out
Beside each other: what the model sees, and the same with the map, from dark to bright.
The exit code is 0 where every input has its picture, 1 where some could not be read, 2 where
nothing could be done, or the run stopped on the way.
"""
CAMS = ("taylor", "grad-cam", "layer-cam", "hires-cam")  # these explain a class, by gradients
METHODS = (*CAMS, "attention", "rollout")
SHOWN = 0.6  # of the map's colours in a drawing
LEAST = 224  # pixels of the shorter side from which on a drawing is not enlarged


def add_explain(commands: Any) -> None:
    """Add ``explain`` to a parser's commands (the entry point group ``mvitv2.commands``)."""
    text = "draw where a classifier looks in pictures and videos"
    command = add_command(commands, "explain", run, text, EXAMPLES)
    command.add_argument("model", metavar="MODEL", help="a classifier, as for `mvitv2 predict`")
    command.add_argument(
        "inputs", metavar="INPUT", nargs="+", help="pictures, videos, folders and patterns"
    )
    command.add_argument("--out", metavar="DIR", required=True, help="where drawings go")
    command.add_argument(
        "--method", choices=METHODS, default=METHODS[0], help=f"default {METHODS[0]}"
    )
    where = command.add_mutually_exclusive_group()
    where.add_argument("--block", type=int, help="number from 0, or from the end")
    where.add_argument(
        "--stage",
        type=int,
        help="the last block of a stage, from 1 (default: of the last stage but one; attention: of "
        "the last)",
    )
    command.add_argument(
        "--query",
        type=_query,
        help="whose attention: cls, mean, or a cell of the block's grid of queries as H,W or "
        "T,H,W (default: the class token, or else the mean)",
    )
    command.add_argument(
        "--target", type=int, help=f"class, for {', '.join(CAMS)} (default: the likeliest)"
    )
    command.add_argument("--weights", metavar="FILE", help="for a plain variant or a folder")
    command.add_argument("--labels", metavar="FILE", help="names of the classes")
    command.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU where there is one)")
    command.add_argument("--quiet", action="store_true", help="no progress, no remarks")


def _query(text: str) -> str | tuple[int, ...]:
    if text in ("cls", "mean"):
        return text
    if not re.fullmatch(r"\d+(,\d+){1,2}", text):
        raise argparse.ArgumentTypeError(f"must be cls, mean, H,W or T,H,W, got {text!r}")
    return tuple(int(part) for part in text.split(","))


@dataclass(frozen=True)
class Method:
    """What is drawn of a model.

    Args:
        name: one of METHODS.
        block: number of the block; not used by rollout.
        query: whose attention; not used by CAMS.
        target: class of CAMS; None for the likeliest.
    """

    name: str
    block: int
    query: Any = None
    target: int | None = None

    def maps(self, model: Any, x: Tensor) -> Tensor:
        """(1, C, *spatial) -> (1, *grid), at least 0."""
        from mvitv2_core.explain import attention_maps, attention_rollout, grad_cam

        if self.name in CAMS:
            return grad_cam(model, x, self.target, self.block, self.name)
        if self.name == "rollout":
            return attention_rollout(model, x, self.query)
        return attention_maps(model, x, self.block, [self.query]).grid[:, 0].mean(dim=1)

    def caption(self, answer: str, target: str) -> str:
        """Words below a drawing."""
        if self.name in CAMS:
            return f"{answer}; {self.name} of {target}, block {self.block}"
        named = {"cls": "the class token", "mean": "the mean"}
        whose = named.get(self.query, f"cell {self.query}")
        if self.name == "rollout":
            return f"{answer}; rollout of {whose}"
        return f"{answer}; attention of {whose}, block {self.block}"


def choose(model: Any, options: Any) -> Method:
    """The method that a command line asks for.

    Raises:
        ValueError: options that do not go together, or name what the model does not have.
    """
    from mvitv2_core.explain import deepest_block, stage_block
    from mvitv2_core.explain.attention import block_index

    name, count, stages = options.method, len(model.blocks), len(model.config.stage_ends)
    given = options.block is not None or options.stage is not None
    if name == "rollout" and given:
        raise ValueError("--method rollout goes through all blocks: give no --block, no --stage")
    if name in CAMS and options.query is not None:
        raise ValueError(f"--query goes with attention and rollout, not with {name}")
    if name not in CAMS and options.target is not None:
        raise ValueError(f"--target goes with {', '.join(CAMS)}, not with {name}")
    classes = model.config.num_classes
    if options.target is not None and not 0 <= options.target < classes:
        raise ValueError(f"--target must be from 0 to {classes - 1}, got {options.target}")
    query = options.query
    if query is None:
        query = "cls" if model.config.cls_token else "mean"
    elif query == "cls" and not model.config.cls_token:
        raise ValueError("--query cls: the model has no class token")
    elif isinstance(query, tuple) and len(query) != model.config.rank:
        raise ValueError(f"--query must have {model.config.rank} numbers, got {query}")
    # In the last stage cells have seen all others: its gradients point less at an object.
    block = stage_block(model, -min(2, stages)) if name in CAMS else count - 1
    if options.stage is not None:
        if not 1 <= options.stage <= stages:
            raise ValueError(f"--stage must be from 1 to {stages}, got {options.stage}")
        block = stage_block(model, options.stage - 1)
    if options.block is not None:
        block = block_index(model, options.block)
        if name in CAMS and block > deepest_block(model):
            raise ValueError(
                f"--block must be at most {deepest_block(model)}: of the last block's output the "
                "head sees the class token alone"
            )
    return Method(name, block, query, options.target)


def run(options: Any) -> int:
    """Do what the command line says; returns the exit code."""
    missing = what_is_missing(True)
    if missing:
        raise ValueError(f"explain needs {', '.join(missing)}: {PACKAGES}")
    from .classify import Classifier
    from .find_model import Options, find_model
    from .inputs import find_inputs

    inputs, problems = find_inputs(options.inputs)
    for problem in problems:
        print(f"mvitv2: {problem}", file=sys.stderr)
    if not inputs:
        return 2
    check_out(options.out, [item.path for item in inputs])
    # One clip of a video: its middle. --window 0 makes one part of a long one.
    chosen = Options(options.weights, None, options.labels, options.device, window=0.0)
    predictor, what = find_model(options.model, chosen)
    if not isinstance(predictor, Classifier):
        raise ValueError(f"{options.model}: explain takes classifiers (detectors: docs/explain.md)")
    method = choose(predictor.model, options)
    if not options.quiet:
        print(f"mvitv2: {what}", file=sys.stderr)
    failed = draw_all(predictor, inputs, method, Path(options.out), options.quiet)
    return 1 if failed or problems else 0


def draw_all(
    predictor: Any, inputs: list[Any], method: Method, folder: Path, quiet: bool = False
) -> int:
    """Write the drawing of every input; returns how many have none."""
    from tqdm import tqdm

    from .feed import feed

    failed, taken = 0, set()  # type: int, set[str]
    parts = feed(inputs, predictor.read_picture, predictor.read_video)
    hidden = True if quiet else None
    with tqdm(total=len(inputs), unit="input", disable=hidden, file=sys.stderr) as bar:
        for part in parts:
            if part.error:
                failed += 1
                print(f"mvitv2: {part.error}", file=sys.stderr)
            else:
                frames, text = draw(predictor, part.data, method)
                target = write(frames, folder, part.input.path, taken, predictor.info)
                with bar.external_write_mode(file=sys.stdout):
                    print(f"{target}  {text}", flush=True)
            if part.last:
                bar.update(min(1, bar.total - bar.n))
    return failed


def draw(predictor: Any, views: Tensor, method: Method) -> tuple[list[np.ndarray], str]:
    """The frames of a drawing, (H, W, 3) uint8 each, and the words below it.

    Args:
        predictor: a ``Classifier``.
        views: (views, 3, *spatial) of one input; the middle clip's central crop is explained.
        method: what to draw.
    """
    import numpy as np
    import torch

    from mvitv2_core.explain import enlarge

    crops = predictor.info.views[1] if predictor.info.task == "clip" else 1
    middle = len(views) // crops // 2 * crops + crops // 2  # a clip's crops follow each other
    x = views[middle][None].to(predictor.device)
    with torch.no_grad():
        logits = predictor.model(x).float()[0]
    scores = logits.sigmoid() if predictor.info.activation == "sigmoid" else logits.softmax(dim=0)
    best = int(scores.argmax())
    answer = f"{_name(predictor, best)} {100 * scores[best].item():.1f} %"
    text = method.caption(
        answer, _name(predictor, best if method.target is None else method.target)
    )
    maps = enlarge(method.maps(predictor.model, x), tuple(x.shape[2:]))[0].cpu().float()
    spread = (maps.max() - maps.min()).clamp_min(1e-12)
    maps = (maps - maps.min()) / spread
    pixels = pixels_of(x[0].cpu(), predictor.info)
    frames = zip(pixels, maps if maps.ndim == 3 else maps[None], strict=True)
    return [beside(np.asarray(p), np.asarray(m), text) for p, m in frames], text


def _name(predictor: Any, index: int) -> str:
    return predictor.name(index) or f"class {index}"


def pixels_of(x: Tensor, info: Any) -> Tensor:
    """A model's input (3, H, W) or (3, T, H, W) as (frames, H, W, 3) uint8 RGB."""
    import torch

    shape = (3,) + (1,) * (x.ndim - 1)
    mean, std = (torch.tensor(values).view(shape) for values in (info.mean, info.std))
    x = ((x * std + mean).clamp(0, 1) * 255).round().to(torch.uint8)
    x = x.flip(0) if info.channel_order == "BGR" else x
    x = x if x.ndim == 4 else x[:, None]
    return x.permute(1, 2, 3, 0).contiguous()


def beside(pixels: np.ndarray, heat: np.ndarray, text: str) -> np.ndarray:
    """Input (H, W, 3), the same under a map (H, W) from 0 to 1, and words below."""
    import numpy as np
    from matplotlib import colormaps
    from PIL import Image, ImageDraw, ImageFont

    colours = colormaps["inferno"](heat)[..., :3] * 255
    over = ((1 - SHOWN) * pixels + SHOWN * colours).round().astype(np.uint8)
    both = np.concatenate([pixels, over], axis=1)
    larger = -(-LEAST // min(pixels.shape[:2]))
    both = both.repeat(larger, axis=0).repeat(larger, axis=1)
    font = ImageFont.load_default(14)
    bar = Image.new("RGB", (both.shape[1], 26), "white")
    ImageDraw.Draw(bar).text((6, 4), text, "black", font)
    drawing = np.concatenate([both, np.asarray(bar)])
    return drawing[: len(drawing) // 2 * 2, : drawing.shape[1] // 2 * 2]


def write(frames: list[np.ndarray], folder: Path, source: str, taken: set[str], info: Any) -> Path:
    """One frame as a picture, several as a video; a number tells inputs of one name apart."""
    from PIL import Image

    from .draw import VideoFile

    stem = re.sub(r"[^\w.-]+", "_", Path(source).stem) or "input"
    name, number = stem, 2
    while name in taken:
        name, number = f"{stem}_{number}", number + 1
    taken.add(name)
    if info.task == "image":
        target = folder / f"{name}.jpg"
        Image.fromarray(frames[0]).save(target, quality=92)
        return target
    rate = info.frames / info.seconds if info.seconds else 8.0
    video = VideoFile(folder / f"{name}.mp4", rate)
    try:
        for frame in frames:
            video.add(frame)
    finally:
        video.close()
    return video.path
