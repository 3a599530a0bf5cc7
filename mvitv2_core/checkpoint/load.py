"""Loads, inflates and converts checkpoints, accounting for every tensor."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import accumulate

import torch
from torch import Tensor

from ..config import MViTConfig
from ..model import MViT, MViTClassifier
from .describe import Layout, read_layout
from .files import plain_state, read_checkpoint
from .fit import ABS_POS, fit_state_dict
from .formats import FORMATS, KERNELS, Named, from_project, is_clip, to_project, uncompiled
from .hub import OFFICIAL, PREFIX, official_path
from .report import CheckpointError, Entry, LoadReport, listing

OUTSIDE = ("head", "norm", "scale?_norm")  # what a backbone does without, in a model or a file
GIVEN = "the given tensors"
Patterns = Sequence[str]


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
        path_or_state: a file (``.pyth``, ``.pth``, ``.pt``, ``.bin``, ``.ckpt``, ``.safetensors``,
            ``.pkl`` or ``.pickle``), one of the official weights by name (MODEL_ZOO.md;
            ``mvitv2://NAME`` as trainers have it, too), which is downloaded on first use, or
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
        file, state = GIVEN, plain_state(GIVEN, path_or_state, check=True)
    else:
        checkpoint = read_checkpoint(weights_path(path_or_state), ema=ema)
        file, state = checkpoint.file, checkpoint.state
    held = model.state_dict()
    if any(value.device.type == "meta" for value in held.values()):
        raise ValueError("model must hold its tensors: it is on the meta device")
    named = to_project(file, state)
    fitted, report = fit_state_dict(file, named, held)
    strict = tuple(allow_new), tuple(allow_unused)
    parts = (*strict[0], *OUTSIDE), (*strict[1], *OUTSIDE, "cls_token", *named.beside)
    if misplaced := _misplaced(report, *(parts if backbone else strict)):
        helps = not backbone and not _misplaced(report, *parts)
        hint = "; pass backbone=True to take the backbone alone" if helps else ""
        raise _mismatch(report, named, held, misplaced, hint)
    with torch.no_grad():
        for name, value in fitted.items():
            held[name].copy_(value)  # state_dict() shares the model's memory
    return report


def weights_path(path: str | os.PathLike[str]) -> str:
    """A file as it is; ``mvitv2://NAME``, or an official name that is no file, as the path of its
    download."""
    name = os.fspath(path)
    if name.startswith(PREFIX) or (name in OFFICIAL and not os.path.exists(name)):
        return official_path(name.removeprefix(PREFIX))
    return name


def _mismatch(
    report: LoadReport, named: Named, held: Mapping[str, Tensor], misplaced: list[Entry], hint: str
) -> CheckpointError:
    """Says how a file differs from a model: structures, then shapes, then names."""
    theirs = read_layout(named.state)
    ours = read_layout({uncompiled(name): value for name, value in held.items()})
    causes = []
    if theirs.structure != ours.structure:
        causes.append(f"the file holds {theirs}, the model is {ours}")
    misfits = {
        e.name: f"{e.name} is {e.source_shape} in the file and {e.shape} in the model"
        + (f" ({e.note})" if "pos_embed" in e.name else "")
        for e in misplaced
        if e.status == "new" and e.source_shape is not None
    }
    if misfits:
        causes.append(listing(list(misfits.values()), 6))
    told = {uncompiled(name) for name in misfits}
    texts = {"new": "missing in the file", "unused": "without a place in the model"}
    rest = [entry for entry in misplaced if uncompiled(entry.name) not in told]
    for status, text in texts.items():
        if names := [entry.name for entry in rest if entry.status == status]:
            causes.append(f"{text} ({len(names)}): {listing(names)}")
    cause = "; ".join(causes)
    return CheckpointError(f"{report.file}: does not match the model: {cause}{hint}", report)


def _misplaced(report: LoadReport, allow_new: Patterns, allow_unused: Patterns) -> list[Entry]:
    """New and unused tensors that these patterns do not allow to be; a new one that is allowed
    takes the file's of its name along."""
    new = [entry for entry in report.entries if entry.status == "new"]
    replaced = {uncompiled(e.name) for e in new if _matches(e.name, allow_new)}
    new = [entry for entry in new if uncompiled(entry.name) not in replaced]
    unused = [e for e in report.entries if e.status == "unused" and e.name not in replaced]
    return new + [
        e for e in unused if not any(_matches(n, allow_unused) for n in (e.name, e.source or ""))
    ]


def _matches(name: str, patterns: Patterns) -> bool:
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
    named = to_project(file, plain_state(file, state, check=True))
    if is_clip(named.state):
        raise CheckpointError(f"{file}: is a clip model's already: it needs no inflation")
    held = _without_memory(config)
    fitted, report = fit_state_dict(file, named, held)
    allowed = ("head", "cls_token")
    if misplaced := _misplaced(report, allowed, allowed):
        raise _mismatch(report, named, held, misplaced, "")
    return fitted, list(report.entries)


def convert_state_dict(
    state: Mapping[str, Tensor],
    to: str,
    *,
    prefix: str = "",
    input_size: tuple[int, ...] | None = None,
    file: str = GIVEN,
) -> tuple[dict[str, Tensor], LoadReport]:
    """A checkpoint's tensors in another format.

    From clips to a format for images, the centre frame is taken. From images to clips, use
    ``inflate_state_dict``. Tensors that the format has no place for (the head, for a detectron2
    backbone) stay out and are reported as unused.

    Args:
        state: tensors in any known format; not changed.
        to: "image", "slowfast", "detectron2", "timm" or "torchvision".
        prefix: put in front of every name: "backbone.bottom_up." makes a part of a detector.
        input_size: another nominal (H, W) or (T, H, W) to resample the tables of relative
            positions to, linearly. Published variants only, without absolute positions.
        file: what messages call the checkpoint.

    Returns:
        The tensors, which share memory with ``state`` where nothing was changed, and a report
        whose names are the new format's.

    Raises:
        CheckpointError: names of no known format, or a model that ``to`` cannot hold.
    """
    if to not in FORMATS:
        raise CheckpointError(f"{file}: format must be one of {', '.join(FORMATS)}, got {to!r}")
    named = to_project(file, state)
    if named.unknown and named.format != "detectron2":
        raise CheckpointError(f"{file}: no {named.format} names: {listing(named.unknown)}")
    layout = read_layout(named.known)
    if cause := _obstacle(layout, to, input_size):
        raise CheckpointError(f"{file}: {cause}")
    held = _converted(named.known, layout, to, input_size)
    fitted, report = fit_state_dict(file, named, held)
    fixed = [name for name in fitted if ABS_POS.fullmatch(name) and input_size is not None]
    if lost := [*report.names("new"), *fixed]:
        raise CheckpointError(f"{file}: {listing(lost)} cannot be converted")
    renamed, targets = from_project(fitted, to, prefix)
    entries = []
    for entry in report.entries:
        name = targets.get(entry.name)
        if name is None or entry.status == "unused":
            entries.append(replace(entry, status="unused", note=f"no place in {to}"))
        else:
            entries.append(replace(entry, name=name, shape=tuple(renamed[name].shape)))
    return renamed, LoadReport(file, tuple(entries), named.format)


def _obstacle(layout: Layout, to: str, input_size: tuple[int, ...] | None) -> str:
    """Why a model cannot be held by a format, or not at this size; "" if it can."""
    row = FORMATS[to]
    if layout.rank == 2 and 2 not in row.ranks:
        return f"holds {layout}, and {row.source} takes clips: inflate it first"
    if row.one_model and not layout.cls_token:
        return f"has no class token, which {row.source} cannot do without"
    if row.one_model and layout.in_att is False:
        return f"its width grows in the MLP, in {row.source} it grows in attention"
    if input_size is not None and layout.variant is None:
        return f"only published variants can be resized, it holds {layout}"
    if input_size is not None and len(input_size) != layout.rank:
        return f"input_size must have {layout.rank} sizes, got {input_size}"
    return ""


def _converted(
    state: Mapping[str, Tensor], layout: Layout, to: str, input_size: tuple[int, ...] | None
) -> dict[str, Tensor]:
    """Tensors, without memory, of the shapes that a format's model has."""
    still, tables = layout.rank == 2 or 3 not in FORMATS[to].ranks, dict(state)
    if input_size is not None and layout.variant is not None:
        in_att = layout.in_att is not False
        tables |= _without_memory(
            MViTConfig.variant(layout.variant, input_size, dim_mul_in_att=in_att)
        )
    held = {}
    for name, value in state.items():
        if still and name.endswith(".rel_pos_t"):
            continue
        shape = tuple(tables[name].shape if "rel_pos_" in name else value.shape)
        if still and KERNELS.fullmatch(name):
            # PySlowFast's image models pool with a time axis of one frame.
            frame = (1,) if to == "slowfast" and ".pool_" in name else ()
            shape = (*shape[:2], *frame, *shape[-2:])
        held[name] = value.new_empty(shape, device="meta")
    return held


def _without_memory(config: MViTConfig) -> dict[str, Tensor]:
    with torch.device("meta"):
        return MViTClassifier(config).state_dict()
