"""Absolute positions for another model: resampled, repeated in time, or one frame of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from math import isqrt, prod

import torch
from torch import Tensor

from ..config import AbsPos
from ..model import resample_abs_pos
from .report import Status

KERNEL = re.compile(r"patch_embed\.proj\.weight|blocks\.\d+\.attn\.pool_[qkv]\.weight")
TABLE = re.compile(r"blocks\.\d+\.attn\.rel_pos_[thw]")
ABS_POS = ("pos_embed", "pos_embed_spatial", "pos_embed_temporal", "pos_embed_class")

Fitted = tuple[Tensor, Status, str]


def is_clip(state: Mapping[str, Tensor]) -> bool:
    """Whether the tensors are a clip model's: kernels over more than one frame, or positions in
    time."""
    for name, tensor in state.items():
        if name.endswith(".rel_pos_t") and TABLE.fullmatch(name):
            return True
        if KERNEL.fullmatch(name) and tensor.ndim == 5 and tensor.shape[2] > 1:
            return True
    return False


def in_float(function: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
    """``function`` of a tensor in at least float32: interpolation knows no half precision."""
    wide = tensor if tensor.dtype == torch.float64 else tensor.float()
    return function(wide).to(tensor.dtype).contiguous()


def held_grid(state: Mapping[str, Tensor]) -> tuple[tuple[int, ...] | None, bool]:
    """(H, W) of the absolute positions in ``state``, if any, and whether they have a class row."""
    if "pos_embed_spatial" in state:
        side = isqrt(state["pos_embed_spatial"].shape[1])
        return (side, side), "pos_embed_class" in state
    if "pos_embed" not in state:
        return None, False
    frames = _frames(state) if is_clip(state) else 1
    split = frames and _split(state["pos_embed"].shape[1], frames)
    return ((split[1], split[1]), bool(split[0])) if split else (None, False)


def centre_positions(state: Mapping[str, Tensor]) -> tuple[dict[str, Fitted], set[str]]:
    """An image model's table from a clip model's, and the names of the tensors it is made from."""
    grid, cls_row = held_grid(state)
    return ({}, set()) if grid is None else fit_positions(state, "joint", grid, cls_row)


def fit_positions(
    state: Mapping[str, Tensor], kind: AbsPos, thw: Sequence[int], row_wanted: bool
) -> tuple[dict[str, Fitted], set[str]]:
    """Absolute positions as a model has them, and the names of the tensors they are made from."""
    held = {name for name in ABS_POS if name in state}
    if not held or kind == "none":
        return {}, set()
    if held == {"pos_embed"}:
        return _fit_joint(state, kind, thw, row_wanted, not is_clip(state)), held
    if {"pos_embed_spatial", "pos_embed_temporal"} <= held:
        return _fit_separate(state, kind, thw, row_wanted), held
    return {}, set()


def _fit_joint(
    state: Mapping[str, Tensor], kind: AbsPos, thw: Sequence[int], row_wanted: bool, still: bool
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
    state: Mapping[str, Tensor], kind: AbsPos, thw: Sequence[int], row_wanted: bool
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
