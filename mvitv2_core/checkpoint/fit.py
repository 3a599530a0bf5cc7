"""Fits tensors to a model's shapes: inflates, takes centre frames, resamples position tables.

Names are the project's (and the official checkpoints') throughout; ``names`` translates others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import isqrt, prod

import torch
from torch import Tensor

from ..config import MViTConfig
from ..model import resample_abs_pos
from ..rel_pos import resample_table
from .report import Entry, Status

KERNEL = re.compile(r"patch_embed\.proj\.weight|blocks\.\d+\.attn\.pool_[qkv]\.weight")
TABLE = re.compile(r"blocks\.\d+\.attn\.rel_pos_[thw]")
ABS_POS = ("pos_embed", "pos_embed_spatial", "pos_embed_temporal", "pos_embed_class")

Fitted = tuple[Tensor, Status, str]


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
    positions, consumed = _fit_abs_pos(state, config, still)
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


def is_clip(state: Mapping[str, Tensor]) -> bool:
    """Whether the tensors are a clip model's: kernels over more than one frame, or positions in
    time."""
    for name, tensor in state.items():
        if name.endswith(".rel_pos_t") and TABLE.fullmatch(name):
            return True
        if KERNEL.fullmatch(name) and tensor.ndim == 5 and tensor.shape[2] > 1:
            return True
    return False


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


def in_float(function, tensor: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
    """``function`` of a tensor in at least float32: interpolation knows no half precision."""
    wide = tensor if tensor.dtype == torch.float64 else tensor.float()
    return function(wide).to(tensor.dtype).contiguous()


def _fit_abs_pos(
    state: Mapping[str, Tensor], config: MViTConfig, still: bool
) -> tuple[dict[str, Fitted], set[str]]:
    """Absolute positions for ``config``, and the names of the tensors they were made from."""
    held = {name for name in ABS_POS if name in state}
    if not held or config.abs_pos == "none":
        return {}, set()
    thw = config.abs_pos_thw or config.blocks[0].thw
    row_wanted = config.abs_pos_cls_row
    row_wanted = config.cls_token if row_wanted is None else row_wanted
    if held == {"pos_embed"}:
        return _fit_joint(state, config.abs_pos, thw, row_wanted, still), {"pos_embed"}
    if {"pos_embed_spatial", "pos_embed_temporal"} <= held:
        return _fit_separate(state, config.abs_pos, thw, row_wanted), held
    return {}, set()


def _fit_joint(
    state: Mapping[str, Tensor], kind: str, thw: Sequence[int], row_wanted: bool, still: bool
) -> dict[str, Fitted]:
    table = state["pos_embed"]
    if table.ndim != 3 or table.shape[0] != 1:
        return {}
    rows, wanted = table.shape[1], int(row_wanted) + prod(thw)
    if kind == "joint" and rows == wanted and still == (len(thw) == 2 or thw[0] == 1):
        return {"pos_embed": (table, "loaded", "")}
    frames = 1 if still else _frames(state)
    split = None if frames is None else _split(rows, frames)
    if frames is None or split is None:
        return {}
    cls_row, size = split
    row, cells = table[:, :cls_row], table[:, cls_row:]
    grid, note = (size, size), f"from {rows} rows"
    status: Status = "resampled"
    hw = tuple(thw[-2:])
    if still:
        cells = in_float(lambda t: resample_abs_pos(t, grid, hw), cells)
        if len(thw) == 3 and thw[0] > 1:
            status = "inflated"
            if kind == "joint":
                cells = cells.repeat(1, thw[0], 1)
    elif kind == "separate":
        return {}
    elif len(thw) == 2 or thw[0] == 1:
        cells = cells.unflatten(1, (frames, -1))[:, frames // 2]
        cells, status = in_float(lambda t: resample_abs_pos(t, grid, hw), cells), "centre"
    else:
        clip_grid = (frames, *grid)
        cells = in_float(lambda t: resample_abs_pos(t, clip_grid, thw), cells)
    if row_wanted and not cls_row:
        row, note = torch.zeros_like(cells[:, :1]), f"{note}, zero for the class token"
    if kind == "joint":
        return {"pos_embed": (torch.cat([row, cells], 1) if row_wanted else cells, status, note)}
    zeros = cells.new_zeros(1, thw[0], cells.shape[2])
    found: dict[str, Fitted] = {
        "pos_embed_spatial": (cells, status, note),
        "pos_embed_temporal": (zeros, "inflated", "zero: an image has no positions in time"),
    }
    if row_wanted:
        found["pos_embed_class"] = (row, status, note)
    return found


def _fit_separate(
    state: Mapping[str, Tensor], kind: str, thw: Sequence[int], row_wanted: bool
) -> dict[str, Fitted]:
    space, time = state["pos_embed_spatial"], state["pos_embed_temporal"]
    row = state.get("pos_embed_class")
    size = isqrt(space.shape[1]) if space.ndim == 3 else 0
    if not size or size**2 != space.shape[1] or time.ndim != 3:
        return {}
    hw = tuple(thw[-2:])
    resized = in_float(lambda t: resample_abs_pos(t, (size, size), hw), space)
    space_status: Status = "loaded" if hw == (size, size) else "resampled"
    if row_wanted and row is None:
        row = torch.zeros_like(space[:, :1])
    found: dict[str, Fitted] = {}
    if kind == "separate":
        frames = time.shape[1]
        longer = in_float(lambda t: resample_abs_pos(t, (frames,), thw[:1]), time)
        time_status: Status = "loaded" if frames == thw[0] else "resampled"
        found["pos_embed_spatial"] = resized, space_status, ""
        found["pos_embed_temporal"] = longer, time_status, ""
        if row_wanted and row is not None:
            found["pos_embed_class"] = row, "loaded", ""
    elif len(thw) == 2 or thw[0] == 1:
        middle = time[:, time.shape[1] // 2]
        # Adding zeros would turn -0.0 into 0.0.
        cells = resized + middle[:, None] if middle.any() else resized
        joint = torch.cat([row, cells], 1) if row_wanted and row is not None else cells
        found["pos_embed"] = joint, "centre", "spatial table plus the centre frame's row"
    return found


def _frames(state: Mapping[str, Tensor]) -> int | None:
    """Frames of a clip model's token grid, from the first block's table of positions in time."""
    table = state.get("blocks.0.attn.rel_pos_t")
    return None if table is None or table.ndim != 2 else (table.shape[0] + 1) // 2


def _split(rows: int, frames: int) -> tuple[int, int] | None:
    """Class rows (0 or 1) and width of the square grid of a table with ``rows`` rows."""
    for cls_row in (0, 1):
        cells, rest = divmod(rows - cls_row, frames)
        if rest == 0 and cells > 0 and isqrt(cells) ** 2 == cells:
            return cls_row, isqrt(cells)
    return None
