"""Loads checkpoints into models, accounting for every tensor."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ..config import MViTConfig
from ..model import MViT, MViTClassifier
from .download import official_path
from .fit import fit_state_dict
from .layout import Layout, read_layout
from .names import Named, to_project
from .positions import is_clip
from .reading import check_tensors, plain_state, read_checkpoint
from .registry import OFFICIAL
from .report import CheckpointError, Entry, LoadReport, listing, matches

HEAD = ("head",)


def load_checkpoint(
    model: MViT,
    path_or_state: str | os.PathLike[str] | Mapping[str, Tensor],
    *,
    allow_new: Iterable[str] = (),
    allow_unused: Iterable[str] = (),
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
        file = "the given tensors"
        state = plain_state(file, path_or_state)
        check_tensors(file, state)
    else:
        path = os.fspath(path_or_state)
        known = path in OFFICIAL and not os.path.exists(path)
        checkpoint = read_checkpoint(official_path(path) if known else path)
        file, state = checkpoint.file, checkpoint.state
    held = model.state_dict()
    if any(value.device.type == "meta" for value in held.values()):
        raise ValueError("model must hold its tensors: it is on the meta device")
    named = to_project(file, state)
    fitted, report = _fit(file, named, held, model.config)
    allow = tuple(allow_new), tuple(allow_unused)
    _judge(report, *allow, read_layout(named.state), read_layout(held))
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
    shapes = {name: tuple(value.shape) for name, value in held.items()}
    fitted, entries = fit_state_dict(named.state, shapes, config)
    entries = [
        entry if entry.source is None else replace(entry, source=named.sources[entry.source])
        for entry in entries
    ]
    return fitted, LoadReport(file, tuple(entries), named.format)


def _judge(
    report: LoadReport,
    allow_new: Iterable[str],
    allow_unused: Iterable[str],
    theirs: Layout,
    ours: Layout,
) -> None:
    """Raise CheckpointError unless everything is in place or allowed not to be."""
    entries = {(entry.status, entry.name): entry for entry in report.entries}
    replaced = {name for name in report.names("new") if matches(name, allow_new)}
    new = [name for name in report.names("new") if name not in replaced]
    unused = []
    for entry in report.entries:
        names = {entry.name, entry.source or entry.name}
        allowed = entry.name in replaced or any(matches(name, allow_unused) for name in names)
        if entry.status == "unused" and not allowed:
            unused.append(entry.name)
    if not new and not unused:
        return
    causes = []
    if theirs.structure != ours.structure:
        causes.append(f"the file holds {theirs}, the model is {ours}")
    misfits = [name for name in new if ("unused", name) in entries]
    for name in misfits[:6]:
        has, wants = entries["unused", name].source_shape, entries["new", name].shape
        causes.append(f"{name} is {has} in the file and {wants} in the model")
    if len(misfits) > 6:
        causes.append(f"{len(misfits) - 6} more shapes differ")
    missing = [name for name in new if name not in misfits]
    if missing:
        causes.append(f"missing in the file ({len(missing)}): {listing(missing)}")
    extra = [name for name in unused if name not in misfits]
    if extra:
        causes.append(f"without a place in the model ({len(extra)}): {listing(extra)}")
    cause = "; ".join(causes)
    raise CheckpointError(f"{report.file}: does not match the model: {cause}", report)


def inflate_state_dict(
    state: Mapping[str, Tensor], config: MViTConfig, *, file: str = "the image checkpoint"
) -> tuple[dict[str, Tensor], list[Entry]]:
    """An image model's tensors for a clip model (paper, section 5.3).

    Kernels of the patch embedding and of the pools go into the centre frame with zeros around
    them, positions in time are zero, spatial tables are resampled where nominal sizes differ, and
    absolute positions repeat in time. A class token, or a head of another number of classes, that
    has no counterpart stays out of the result and stands in the entries as "new" or "unused".

    Args:
        state: image checkpoint under the names of any known format; pools may be (C, 1, 3, 3)
            or (C, 1, 1, 3, 3). It is not changed.
        config: of the clip model.
        file: what messages call the checkpoint.

    Returns:
        The clip model's tensors, and one entry for each tensor of it and each unused one.

    Raises:
        CheckpointError: ``state`` is a clip model's, or anything but class token and head does
            not match.
    """
    state = plain_state(file, state)
    check_tensors(file, state)
    named = to_project(file, state)
    if is_clip(named.state):
        raise CheckpointError(f"{file}: is a clip model's already: it needs no inflation")
    with torch.device("meta"):
        held = MViTClassifier(config).state_dict()
    fitted, report = _fit(file, named, held, config)
    allowed = (*HEAD, "cls_token")
    _judge(report, allowed, allowed, read_layout(named.state), read_layout(held))
    return fitted, list(report.entries)
