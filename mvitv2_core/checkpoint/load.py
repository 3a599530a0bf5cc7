"""Loads, inflates and converts checkpoints, accounting for every tensor."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import accumulate
from math import prod

import torch
from torch import Tensor

from ..config import MViTConfig
from ..model import MViT, MViTClassifier
from .describe import Layout, read_layout
from .files import check_tensors, plain_state, read_checkpoint
from .fit import ABS_POS, NOT_CONVERTED, fit_state_dict, square
from .formats import (
    DETECTOR,
    FORMATS,
    KERNELS,
    Named,
    from_project,
    is_clip,
    to_project,
    uncompiled,
)
from .hub import weights_path
from .report import CheckpointError, Entry, LoadReport, listing

# What a backbone does without, on either side, and what it alone does without of a file.
OUTSIDE, DROPPED = ("head", "norm", "scale?_norm"), ("cls_token",)


def load_checkpoint(
    model: MViT,
    path_or_state: str | os.PathLike[str] | Mapping[str, Tensor],
    *,
    allow_new: Iterable[str] = (),
    allow_unused: Iterable[str] = (),
    backbone: bool = False,
    ema: bool = False,
) -> LoadReport:
    """Load a checkpoint into a model, or fail and leave the model as it was.

    Every tensor of the model must come from the file, and every tensor of the file must go into
    the model: as it is, resampled (position tables of another nominal size), inflated (an image
    checkpoint into a clip model) or, for an image model, taken from the centre frame.

    Args:
        model: this project's trunk, classifier, detectron2 backbone or PySlowFast model.
        path_or_state: a ``.pyth``, ``.pth``, ``.pt``, ``.pkl`` or ``.safetensors`` file, one of
            the official weights by name (MODEL_ZOO.md), which is downloaded on first use, or
            tensors by name.
        allow_new: names of the model's tensors, or of modules that hold them, that may keep their
            present values where the file has nothing that fits: ``("head",)`` for a new number of
            classes, which also drops the file's head. ``*`` stands for any text.
        allow_unused: names in the file, or of modules there, that may have no place in the model.
        backbone: take the backbone alone: the file's head and last norm may stay unused, the
            model's own head and norms of its outputs may stay new. So may a class token of the
            file, and what a detector's file holds beside its backbone, stay unused.
        ema: take the moving average of the weights that the file holds beside them.

    Returns:
        One entry for each tensor of the model and each unused one of the file.

    Raises:
        CheckpointError: a file that cannot be read, or tensors that do not match and are not
            allowed not to; the error's ``report`` lists all.
    """
    if not isinstance(model, MViT):
        raise TypeError(
            f"model must be an MViT of this project (for a detector, its backbone's bottom_up), "
            f"got {type(model).__name__}"
        )
    if isinstance(path_or_state, Mapping):
        if ema:
            raise ValueError("ema=True needs a file: of given tensors, give the averaged ones")
        file = "the given tensors"
        state = plain_state(file, path_or_state)
        check_tensors(file, state)
    else:
        checkpoint = read_checkpoint(weights_path(path_or_state), ema=ema)
        file, state = checkpoint.file, checkpoint.state
    held = model.state_dict()
    if any(value.device.type == "meta" for value in held.values()):
        raise ValueError("model must hold its tensors: it is on the meta device")
    named = to_project(file, state)
    fitted, report = fit_state_dict(file, named, held, model.config)
    new, unused = tuple(allow_new), tuple(allow_unused)
    detector = any(name.startswith(DETECTOR) for name in named.sources.values())
    parts = (*new, *OUTSIDE), (*unused, *OUTSIDE, *DROPPED, *(named.unknown if detector else ()))
    if backbone:
        new, unused = parts
    _judge(report, new, unused, named, held, () if backbone else parts)
    with torch.no_grad():
        for name, value in fitted.items():
            held[name].copy_(value)  # state_dict() shares the model's memory
    return report


def fit_checkpoint(
    model: MViT, state: Mapping[str, Tensor], file: str = "the given tensors"
) -> tuple[dict[str, Tensor], LoadReport]:
    """A checkpoint's tensors at the names and shapes of ``model``, without loading them.

    For adapters whose trainers load by themselves: nothing is judged.

    Raises:
        CheckpointError: names of no known format.
    """
    return fit_state_dict(file, to_project(file, state), model.state_dict(), model.config)


def _judge(
    report: LoadReport,
    allow_new: Iterable[str],
    allow_unused: Iterable[str],
    named: Named,
    held: Mapping[str, Tensor],
    backbone: tuple[Iterable[str], ...] = (),
) -> None:
    """Raise CheckpointError unless everything is in place or allowed not to be.

    Args:
        backbone: what a backbone alone would allow, for a hint where it is the remedy.
    """
    new, unused = _misplaced(report, allow_new, allow_unused)
    if not new and not unused:
        return
    theirs = read_layout(named.state)
    ours = read_layout({uncompiled(name): value for name, value in held.items()})
    causes = []
    if theirs.structure != ours.structure:
        causes.append(f"the file holds {theirs}, the model is {ours}")
    misfits = [entry for entry in new if entry.source_shape is not None]
    for entry in misfits[:6]:
        note = f" ({entry.note})" if "pos_embed" in entry.name else ""
        shapes = f"{entry.source_shape} in the file and {entry.shape} in the model"
        causes.append(f"{entry.name} is {shapes}{note}")
    if len(misfits) > 6:
        causes.append(f"{len(misfits) - 6} more shapes differ")
    seen = {uncompiled(entry.name) for entry in misfits}
    for text, entries in (("missing in the file", new), ("without a place in the model", unused)):
        names = [entry.name for entry in entries if uncompiled(entry.name) not in seen]
        if names:
            causes.append(f"{text} ({len(names)}): {listing(names)}")
    hint = ""
    if backbone and not any(_misplaced(report, *backbone)):
        hint = "; pass backbone=True to take the backbone alone"
    raise CheckpointError(
        f"{report.file}: does not match the model: {'; '.join(causes)}{hint}", report
    )


def _misplaced(
    report: LoadReport, allow_new: Iterable[str], allow_unused: Iterable[str]
) -> tuple[list[Entry], list[Entry]]:
    """New and unused tensors that these patterns do not allow to be.

    A new tensor that is allowed takes the file's of its name along.
    """
    replaced = {uncompiled(name) for name in report.names("new") if _matches(name, allow_new)}
    new, unused = [], []
    for entry in report.entries:
        if entry.status == "new" and uncompiled(entry.name) not in replaced:
            new.append(entry)
        allowed = entry.name in replaced or any(
            _matches(name, allow_unused) for name in (entry.name, entry.source or "")
        )
        if entry.status == "unused" and not allowed:
            unused.append(entry)
    return new, unused


def _matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether ``name``, or a module it lies in, is among ``patterns`` (``*`` for any text)."""
    heads = list(accumulate(name.split("."), "{}.{}".format))
    return any(fnmatchcase(head, pattern) for pattern in patterns for head in heads)


def inflate_state_dict(
    state: Mapping[str, Tensor], config: MViTConfig, *, file: str = "the image checkpoint"
) -> tuple[dict[str, Tensor], list[Entry]]:
    """An image model's tensors for a clip model (paper, section 5.3).

    Kernels of the patch embedding and of the pools go into the centre frame with zeros around
    them, positions in time are zero, and spatial tables are resampled where nominal sizes differ.
    A class token, or a head of another number of classes, that has no counterpart stays out of
    the result and stands in the entries as "new" or "unused".

    Args:
        state: image checkpoint under the names of any known format; pools may be (C, 1, 3, 3)
            or (C, 1, 1, 3, 3). It is not changed.
        config: of the clip model.
        file: what messages call the checkpoint.

    Returns:
        The clip model's tensors, and one entry for each tensor of it and each unused one.

    Raises:
        CheckpointError: ``state`` is a clip model's, or anything but class token and head does
            not match: absolute positions never do.
    """
    state = plain_state(file, state)
    check_tensors(file, state)
    named = to_project(file, state)
    if is_clip(named.state):
        raise CheckpointError(f"{file}: is a clip model's already: it needs no inflation")
    with torch.device("meta"):
        held = MViTClassifier(config).state_dict()
    fitted, report = fit_state_dict(file, named, held, config)
    allowed = ("head", "cls_token")
    _judge(report, allowed, allowed, named, held)
    return fitted, list(report.entries)


def convert_state_dict(
    state: Mapping[str, Tensor],
    to: str,
    *,
    prefix: str = "",
    input_size: tuple[int, ...] | None = None,
    file: str = "the given tensors",
) -> tuple[dict[str, Tensor], LoadReport]:
    """A checkpoint's tensors in another format.

    From clips to a format for images, the centre frame is taken. From images to clips, use
    ``inflate_state_dict``. Tensors that the format has no place for (the head, for a detectron2
    backbone) stay out and are reported as unused.

    Args:
        state: tensors in any known format; not changed.
        to: "image", "slowfast", "detectron2", "timm" or "torchvision".
        prefix: put in front of every name: "backbone.bottom_up." makes a part of a detector.
        input_size: another nominal (H, W) or (T, H, W) to resample the position tables to: linear
            for relative positions, bicubic for absolute ones of images. Published variants only.
        file: what messages call the checkpoint.

    Returns:
        The tensors, which share memory with ``state`` where nothing was changed, and a report
        whose names are the new format's.

    Raises:
        CheckpointError: names of no known format, or a model that ``to`` cannot hold; absolute
            positions of clips among them.
    """
    if to not in FORMATS:
        raise CheckpointError(f"{file}: format must be one of {', '.join(FORMATS)}, got {to!r}")
    named = to_project(file, state)
    if named.unknown and named.format != "detectron2":
        raise CheckpointError(f"{file}: no {named.format} names: {listing(named.unknown)}")
    layout = read_layout(named.known)
    _check_target(file, layout, to)
    held, config = _converted_model(file, named.known, layout, to, input_size)
    fitted, report = fit_state_dict(file, named, held, config)
    if lost := report.names("new"):
        raise CheckpointError(f"{file}: cannot be resized to {input_size}: {listing(lost)}")
    renamed, targets = from_project(fitted, to, prefix)
    entries = []
    for entry in report.entries:
        name = targets.get(entry.name)
        if name is None or entry.status == "unused":
            entries.append(replace(entry, status="unused", note=f"no place in {to}"))
        else:
            entries.append(replace(entry, name=name, shape=tuple(renamed[name].shape)))
    return renamed, LoadReport(file, tuple(entries), named.format)


def _check_target(file: str, layout: Layout, to: str) -> None:
    row = FORMATS[to]
    if layout.rank not in row.ranks and layout.rank == 2:
        raise CheckpointError(
            f"{file}: holds {layout}, and {row.source} takes clips: inflate it first"
        )
    if row.needs_cls_token and not layout.cls_token:
        raise CheckpointError(f"{file}: has no class token, which {row.source} cannot do without")
    if layout.in_att is False and not row.grows_in_mlp:
        raise CheckpointError(
            f"{file}: its width grows in the MLP, in {row.source} it grows in attention"
        )


def _converted_model(
    file: str,
    state: Mapping[str, Tensor],
    layout: Layout,
    to: str,
    input_size: tuple[int, ...] | None,
) -> tuple[dict[str, Tensor], MViTConfig | None]:
    """Tensors, without memory, of the shapes that ``to`` holds; the config of a resized model."""
    still = layout.rank == 2 or 3 not in FORMATS[to].ranks
    fixed = [name for name in state if ABS_POS.fullmatch(name)]
    if fixed and layout.rank == 3 and (still or input_size is not None):
        raise CheckpointError(f"{file}: {listing(fixed)} cannot be converted: {NOT_CONVERTED}")
    config, tables = None, dict(state)
    if input_size is not None:
        config = _resized_config(file, layout, input_size)
        with torch.device("meta"):
            tables |= MViTClassifier(config).state_dict()
    held = {}
    for name, value in state.items():
        shape = tuple(value.shape)
        if "rel_pos_" in name:
            if still and name.endswith("_t"):
                continue
            shape = tuple(tables[name].shape)
        elif KERNELS.fullmatch(name) and still and len(shape) in (4, 5):
            # PySlowFast's image models pool with a time axis of one frame.
            frame = (1,) if to == "slowfast" and ".pool_" in name else ()
            shape = (*shape[:2], *frame, *shape[-2:])
        elif name == "pos_embed" and config is not None and len(shape) == 3:
            cls_row, _ = square(shape[1]) or (0, 0)
            shape = (1, cls_row + prod(config.blocks[0].thw), shape[2])
        held[name] = value.new_empty(shape, device="meta")
    return held, config


def _resized_config(file: str, layout: Layout, input_size: tuple[int, ...]) -> MViTConfig:
    if layout.variant is None:
        raise CheckpointError(f"{file}: only published variants can be resized, it holds {layout}")
    if len(input_size) != layout.rank:
        raise CheckpointError(f"{file}: input_size must have {layout.rank} sizes, got {input_size}")
    in_att = layout.in_att is not False
    return MViTConfig.variant(layout.variant, input_size, dim_mul_in_att=in_att)
