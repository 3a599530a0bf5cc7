"""Fits tensors to a model's shapes: inflates, takes centre frames, resamples position tables.

Names are the project's (and the official checkpoints') throughout; ``names`` translates others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..config import MViTConfig
from ..rel_pos import resample_table
from .positions import (
    ABS_POS,
    KERNEL,
    TABLE,
    Fitted,
    centre_positions,
    fit_positions,
    in_float,
    is_clip,
)
from .report import Entry

PART = "part of pos_embed"


def fit_state_dict(
    state: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]], config: MViTConfig
) -> tuple[dict[str, Tensor], list[Entry]]:
    """Fit every tensor that can be fitted to a model, without judging what is left.

    Args:
        state: the checkpoint's tensors under the project's names; none is changed.
        shapes: shape of each tensor of the model.
        config: the model's.

    Returns:
        Tensors for the model, sharing memory with ``state`` where nothing was changed, and one
        entry for each tensor of the model and each left over of the checkpoint.
    """
    fitted: dict[str, Tensor] = {}
    entries: list[Entry] = []
    used: set[str] = set()
    misfits: dict[str, str] = {}
    still = not is_clip(state)
    row = config.abs_pos_cls_row
    row = config.cls_token if row is None else row
    thw = config.abs_pos_thw or config.blocks[0].thw
    positions, consumed = fit_positions(state, config.abs_pos, thw, row)
    used |= consumed
    for name, wanted in shapes.items():
        shape, source = tuple(wanted), state.get(name)
        result: Fitted | None = None
        if name in positions:
            result = positions[name]
            if tuple(result[0].shape) != shape:
                result = None
        elif source is not None and name not in ABS_POS:
            result = fit_tensor(name, source, shape)
        elif name.endswith(".rel_pos_t") and still and TABLE.fullmatch(name):
            like = state.get(f"{name[:-1]}h")
            zeros = torch.zeros(shape, dtype=torch.float32 if like is None else like.dtype)
            result = zeros, "inflated", "zero: an image has no positions in time"
        seen = None if source is None else tuple(source.shape)
        if result is None:
            note = "not in the file" if source is None else "no fit for the shape in the file"
            if source is not None:
                misfits[name] = f"the model's is {shape}"
            entries.append(Entry(name, "new", shape, None, seen, note))
            if name in ABS_POS:
                used.discard(name)
            continue
        tensor, status, note = result
        fitted[name] = tensor
        origin: str | None
        if name in positions:
            origin = name if name in consumed else min(consumed)
        else:
            origin = None if source is None else name
            used |= {name} if origin else set()
        entries.append(Entry(name, status, shape, origin, seen, note))
    for name, tensor in state.items():
        if name not in used:
            shape, note = tuple(tensor.shape), misfits.get(name, "no place in the model")
            entries.append(Entry(name, "unused", shape, name, shape, note))
    return fitted, entries


def fit_tensor(name: str, source: Tensor, shape: tuple[int, ...]) -> Fitted | None:
    """One tensor at the model's shape, how it came to it and a note; None if it cannot."""
    if tuple(source.shape) == shape:
        return source, "loaded", ""
    if KERNEL.fullmatch(name):
        return fit_kernel(source, shape)
    if TABLE.fullmatch(name):
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
        return inflated.reshape(shape), "inflated", f"centre of {wants} frames"
    if wants == 1:
        return clip[:, :, has // 2].reshape(shape), "centre", f"of {has} frames"
    return None


def fit_table(source: Tensor, shape: tuple[int, ...]) -> Fitted | None:
    """A (rows, head_dim) table of relative positions, resampled linearly; rows are odd."""
    if source.ndim != 2 or len(shape) != 2 or source.shape[1] != shape[1]:
        return None
    if source.shape[0] % 2 == 0:
        return None
    rows = in_float(lambda table: resample_table(table, shape[0]), source)
    return rows, "resampled", f"linearly, from {source.shape[0]} rows"


def centre_frame(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[Entry]]:
    """An image model's tensors from a clip model's or from PySlowFast's image model's.

    Takes the centre frame of every kernel and of absolute positions, and leaves positions in time
    out. Gives an inflated image checkpoint back bit for bit.

    Returns:
        The tensors, and one entry for each tensor of ``state``.
    """
    found: dict[str, Tensor] = {}
    entries: list[Entry] = []
    tables = ABS_POS if is_clip(state) else ABS_POS[1:]
    for name, source in state.items():
        seen = tuple(source.shape)
        result: Fitted = source, "loaded", ""
        if name in tables:
            continue
        if name.endswith(".rel_pos_t"):
            entries.append(Entry(name, "unused", seen, name, seen, "an image has no time"))
            continue
        if KERNEL.fullmatch(name) and source.ndim == 5:
            fitted = fit_kernel(source, (*seen[:2], *seen[3:]))
            result = result if fitted is None else fitted
        found[name] = result[0]
        entries.append(Entry(name, result[1], tuple(result[0].shape), name, seen, result[2]))
    positions, consumed = centre_positions(state) if set(tables) & set(state) else ({}, set())
    for name, (table, status, note) in positions.items():
        origin = name if name in consumed else min(consumed)
        found[name] = table
        seen = tuple(state[origin].shape)
        entries.append(Entry(name, status, tuple(table.shape), origin, seen, note))
    for name in tables:
        if name in state and name not in positions:
            seen = tuple(state[name].shape)
            note = PART if name in consumed else "its grid is unknown: neither square nor told"
            entries.append(Entry(name, "unused", seen, name, seen, note))
    return found, entries
