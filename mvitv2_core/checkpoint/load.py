"""Loads checkpoints into models, accounting for every tensor."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ..config import MViTConfig
from ..model import MViT, MViTClassifier
from .fit import fit_state_dict, is_clip
from .reading import check_tensors, plain_state, read_checkpoint
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
        path_or_state: a ``.pyth``, ``.pth``, ``.pt``, ``.pkl`` or ``.safetensors`` file, or
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
        checkpoint = read_checkpoint(path_or_state)
        file, state = checkpoint.file, checkpoint.state
    held = model.state_dict()
    if any(value.device.type == "meta" for value in held.values()):
        raise ValueError("model must hold its tensors: it is on the meta device")
    shapes = {name: tuple(value.shape) for name, value in held.items()}
    fitted, entries = fit_state_dict(state, shapes, model.config)
    report = LoadReport(file, tuple(entries))
    _judge(report, tuple(allow_new), tuple(allow_unused))
    with torch.no_grad():
        for name, value in fitted.items():
            held[name].copy_(value)  # state_dict() shares the model's memory
    return report


def _judge(report: LoadReport, allow_new: Iterable[str], allow_unused: Iterable[str]) -> None:
    new = [name for name in report.names("new") if not matches(name, allow_new)]
    replaced = {name for name in report.names("new") if matches(name, allow_new)}
    unused = [
        name
        for name in report.names("unused")
        if name not in replaced and not matches(name, allow_unused)
    ]
    if new or unused:
        notes = {(e.status, e.name): e for e in report.entries}
        causes = []
        misfits = [name for name in new if name in set(report.names("unused"))]
        for name in misfits[:6]:
            theirs, ours = notes["unused", name].source_shape, notes["new", name].shape
            causes.append(f"{name} is {theirs} in the file and {ours} in the model")
        missing = [name for name in new if name not in misfits]
        if missing:
            causes.append(f"missing in the file ({len(missing)}): {listing(missing)}")
        extra = [name for name in unused if name not in misfits]
        if extra:
            causes.append(f"without a place in the model ({len(extra)}): {listing(extra)}")
        raise CheckpointError(
            f"{report.file}: does not match the model: {'; '.join(causes)}", report
        )


def inflate_state_dict(
    state: Mapping[str, Tensor], config: MViTConfig
) -> tuple[dict[str, Tensor], list[Entry]]:
    """An image model's tensors for a clip model (paper, section 5.3).

    Kernels of the patch embedding and of the pools go into the centre frame with zeros around
    them, positions in time are zero, spatial tables are resampled where nominal sizes differ, and
    absolute positions repeat in time. A class token, or a head of another number of classes, that
    has no counterpart stays out of the result and stands in the entries as "new" or "unused".

    Args:
        state: image checkpoint under the official names; pools may be (C, 1, 3, 3) or
            (C, 1, 1, 3, 3). It is not changed.
        config: of the clip model.

    Returns:
        The clip model's tensors, and one entry for each tensor of it and each unused one.

    Raises:
        CheckpointError: ``state`` is a clip model's, or anything but class token and head does
            not match.
    """
    file = "the image checkpoint"
    state = plain_state(file, state)
    check_tensors(file, state)
    if is_clip(state):
        raise CheckpointError(f"{file}: is a clip model's already: it needs no inflation")
    with torch.device("meta"):
        held = MViTClassifier(config).state_dict()
    shapes = {name: tuple(value.shape) for name, value in held.items()}
    fitted, entries = fit_state_dict(state, shapes, config)
    allowed = (*HEAD, "cls_token")
    _judge(LoadReport(file, tuple(entries)), allowed, allowed)
    return fitted, entries
