"""Fits tensors to a model's shapes: inflates, takes centre frames, resamples position tables.

Names are the project's (and the official checkpoints') throughout; ``formats`` translates others.
Absolute positions are taken as they are or not at all: no published MViTv2 has any.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ..rel_pos import resample_table
from .formats import KERNELS, Named, is_clip, uncompiled
from .report import Entry, LoadReport, Status

TABLES = re.compile(r"blocks\.\d+\.attn\.rel_pos_[thw]")
ABS_POS = re.compile(r"pos_embed(_spatial|_temporal|_class)?")
NOT_CONVERTED = "absolute positions are not resampled: no published MViTv2 has any"

# A tensor, how it came about and a note.
Fitted = tuple[Tensor, Status, str]


def fit_state_dict(
    file: str, named: Named, held: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], LoadReport]:
    """Fit every tensor that can be fitted to a model, without judging what is left.

    Args:
        file: what the report calls the checkpoint.
        named: the checkpoint's tensors under the project's names; none is changed.
        held: the model's tensors, of which only the shapes count; blocks may be compiled one by
            one.

    Returns:
        Tensors by the model's names, sharing memory with the checkpoint's where nothing was
        changed, and one entry for each tensor of the model and each left over of the checkpoint.
    """
    fitted: dict[str, Tensor] = {}
    entries: list[Entry] = []
    left, notes = dict(named.state), {}
    plain = {name: uncompiled(name) for name in held}
    clips = is_clip(named.state), is_clip({plain[name]: value for name, value in held.items()})
    for name, value in held.items():
        ours, shape = plain[name], tuple(value.shape)
        source = named.state.get(ours)
        seen = None if source is None else tuple(source.shape)
        result = fit_tensor(ours, named.state, shape, clips)
        if result is not None:
            fitted[name], status, note = result
            left.pop(ours, None)
            entries.append(Entry(name, status, shape, named.sources.get(ours), seen, note))
            continue
        note = "not in the file"
        if source is not None:
            note = NOT_CONVERTED if ABS_POS.fullmatch(ours) else "no fit for the file's shape"
            notes[ours] = f"the model's is {shape}"
        entries.append(Entry(name, "new", shape, None, seen, note))
    for name, value in left.items():
        shape, note = tuple(value.shape), notes.get(name, "no place in the model")
        entries.append(Entry(name, "unused", shape, named.sources[name], shape, note))
    return fitted, LoadReport(file, tuple(entries), named.format)


def fit_tensor(
    name: str, state: Mapping[str, Tensor], shape: tuple[int, ...], clips: tuple[bool, bool]
) -> Fitted | None:
    """One tensor at the model's shape, how it came to it and a note; None if it cannot.

    Args:
        clips: whether the file's model, and whether this one, is for clips.
    """
    source = state.get(name)
    if source is None:
        if not name.endswith(".rel_pos_t") or clips[0]:
            return None
        like = state.get(f"{name[:-1]}h")
        zeros = torch.zeros(shape, dtype=torch.float32 if like is None else like.dtype)
        return zeros, "inflated", "zero: an image has no positions in time"
    if tuple(source.shape) == shape and (clips[0] == clips[1] or not ABS_POS.fullmatch(name)):
        return source, "loaded", ""
    if KERNELS.fullmatch(name):
        return fit_kernel(source, shape)
    if TABLES.fullmatch(name):
        return fit_table(source, shape)
    return None


def fit_kernel(source: Tensor, shape: tuple[int, ...]) -> Fitted | None:
    """A convolution's weight for another number of frames.

    Both layouts of stills are known: (C, I, h, w), and (C, I, 1, h, w) as in PySlowFast's image
    models. The paper's image initialisation puts the kernel into the centre frame and zeros
    around it; the other way, the centre frame is taken.
    """
    if source.ndim not in (4, 5) or len(shape) not in (4, 5):
        return None
    clip = source if source.ndim == 5 else source.unsqueeze(2)
    wanted = shape if len(shape) == 5 else (*shape[:2], 1, *shape[2:])
    if (*clip.shape[:2], *clip.shape[3:]) != (*wanted[:2], *wanted[3:]):
        return None
    has, wants = clip.shape[2], wanted[2]
    if has == wants:
        return clip.reshape(shape), "loaded", "time axis of one frame added or left out"
    if has == 1:
        inflated = clip.new_zeros(wanted)
        inflated[:, :, wants // 2] = clip[:, :, 0]
        return inflated, "inflated", f"centre of {wants} frames"
    if wants == 1:
        return clip[:, :, has // 2].reshape(shape), "centre", f"of {has} frames"
    return None


def fit_table(source: Tensor, shape: tuple[int, ...]) -> Fitted | None:
    """A (rows, head_dim) table of relative positions, resampled linearly; rows are odd."""
    if source.ndim != 2 or source.shape[1:] != shape[1:] or source.shape[0] % 2 == 0:
        return None
    # Interpolation knows no half precision.
    wide = source if source.dtype == torch.float64 else source.float()
    rows = resample_table(wide, shape[0]).to(source.dtype).contiguous()
    return rows, "resampled", f"linearly, from {source.shape[0]} rows"
