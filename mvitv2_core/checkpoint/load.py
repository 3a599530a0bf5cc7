"""Loads, inflates and converts checkpoints, accounting for every tensor."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ..config import MViTConfig
from ..model import MViT, MViTClassifier
from .describe import read_layout
from .files import check_tensors, plain_state, read_checkpoint
from .fit import centre_frame, fit_state_dict, is_clip, resize, shapes_of
from .formats import DETECTOR, FORMATS, KERNELS, Named, from_project, to_project, uncompiled
from .hub import OFFICIAL, official_path
from .report import CheckpointError, Entry, LoadReport, listing

HEAD = ("head",)
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
        path = os.fspath(path_or_state)
        known = path in OFFICIAL and not os.path.exists(path)
        checkpoint = read_checkpoint(official_path(path) if known else path, ema=ema)
        file, state = checkpoint.file, checkpoint.state
    held = model.state_dict()
    if any(value.device.type == "meta" for value in held.values()):
        raise ValueError("model must hold its tensors: it is on the meta device")
    named = to_project(file, state)
    fitted, report = _fit(file, named, held, model.config)
    allowed = tuple(allow_new), tuple(allow_unused)
    detector = any(name.startswith(DETECTOR) for name in named.sources.values())
    outside = named.unknown if detector else ()
    parts = (*allowed[0], *OUTSIDE), (*allowed[1], *OUTSIDE, *DROPPED, *outside)
    hint = ""
    if not backbone and not any(report.misplaced(*parts)):
        hint = "; pass backbone=True to take the backbone alone"
    _judge(report, *(parts if backbone else allowed), named, held, hint)
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
    return _fit(file, to_project(file, state), model.state_dict(), model.config)


def _fit(
    file: str, named: Named, held: Mapping[str, Tensor], config: MViTConfig
) -> tuple[dict[str, Tensor], LoadReport]:
    ours = {uncompiled(name): name for name in held}  # blocks may be compiled one by one
    shapes = {uncompiled(name): shape for name, shape in shapes_of(held).items()}
    fitted, entries = fit_state_dict(named.state, shapes, config)
    named_entries = (
        replace(
            entry,
            name=entry.name if entry.status == "unused" else ours[entry.name],
            source=None if entry.source is None else named.sources[entry.source],
        )
        for entry in entries
    )
    renamed = {ours[name]: value for name, value in fitted.items()}
    return renamed, LoadReport(file, tuple(named_entries), named.format)


def _judge(
    report: LoadReport,
    allow_new: Iterable[str],
    allow_unused: Iterable[str],
    named: Named,
    held: Mapping[str, Tensor],
    hint: str = "",
) -> None:
    """Raise CheckpointError unless everything is in place or allowed not to be."""
    new, unused = report.misplaced(allow_new, allow_unused)
    if not new and not unused:
        return
    theirs = read_layout(named.state)
    ours = read_layout({uncompiled(name): value for name, value in held.items()})
    causes = []
    if theirs.structure != ours.structure:
        causes.append(f"the file holds {theirs}, the model is {ours}")
    entries = {(entry.status, entry.name): entry for entry in report.entries}
    misfits = [name for name in new if ("unused", name) in entries]
    for name in misfits[:6]:
        entry = entries["new", name]
        note = f" ({entry.note})" if "pos_embed" in name else ""
        causes.append(
            f"{name} is {entry.source_shape} in the file and {entry.shape} in the model{note}"
        )
    if len(misfits) > 6:
        causes.append(f"{len(misfits) - 6} more shapes differ")
    missing = [name for name in new if name not in misfits]
    if missing:
        causes.append(f"missing in the file ({len(missing)}): {listing(missing)}")
    extra = [name for name in unused if name not in misfits]
    if extra:
        causes.append(f"without a place in the model ({len(extra)}): {listing(extra)}")
    cause = "; ".join(causes)
    raise CheckpointError(f"{report.file}: does not match the model: {cause}{hint}", report)


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
    if is_clip(shapes_of(named.state)):
        raise CheckpointError(f"{file}: is a clip model's already: it needs no inflation")
    with torch.device("meta"):
        held = MViTClassifier(config).state_dict()
    fitted, report = _fit(file, named, held, config)
    allowed = (*HEAD, "cls_token")
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
    current: dict[str, Tensor] = named.known
    _check_target(file, current, to)
    resampled: dict[str, Entry] = {}
    if input_size is not None:
        current, entries = resize(file, current, read_layout(current), input_size)
        resampled = {entry.name: entry for entry in entries}
    steps = [Entry(n, "loaded", tuple(v.shape), n, tuple(v.shape)) for n, v in current.items()]
    if 3 not in FORMATS[to].ranks or read_layout(current).rank == 2:
        current, steps = centre_frame(file, current)
        if to == "slowfast":
            # PySlowFast's image models pool with a time axis of one frame.
            current = {n: _deep(n, value) for n, value in current.items()}
    renamed, targets = from_project(current, to, prefix)
    report = []
    for step in steps:
        before = resampled.get(step.name, step)
        entry = replace(
            step,
            status=before.status if step.status == "loaded" else step.status,
            source=named.sources[step.name],
            source_shape=before.source_shape,
            note="; ".join(dict.fromkeys(n for n in (before.note, step.note) if n)),
        )
        if entry.name in targets:
            name = targets[entry.name]
            entry = replace(entry, name=name, shape=tuple(renamed[name].shape))
        elif entry.status != "unused":
            entry = replace(entry, status="unused", note=f"no place in {to}")
        report.append(entry)
    for name in named.unknown:
        shape = tuple(state[name].shape)
        report.append(Entry(name, "unused", shape, name, shape, "outside of the backbone"))
    return renamed, LoadReport(file, tuple(report), named.format)


def _deep(name: str, value: Tensor) -> Tensor:
    pool = name != "patch_embed.proj.weight" and KERNELS.fullmatch(name)
    return value.unsqueeze(2) if pool and value.ndim == 4 else value


def _check_target(file: str, state: Mapping[str, Tensor], to: str) -> None:
    layout, row = read_layout(state), FORMATS[to]
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
