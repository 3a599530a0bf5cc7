"""Fits tensors to a model's shapes: inflates, takes centre frames, resamples position tables.

Names are the project's (and the official checkpoints') throughout; ``formats`` translates others.
Absolute positions are resampled from image to image alone: no published MViTv2 has any.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from math import isqrt, prod

import torch
from torch import Tensor

from ..config import MViTConfig
from ..model import MViTClassifier, resample_abs_pos
from ..rel_pos import resample_table
from .describe import Layout
from .formats import KERNELS
from .report import CheckpointError, Entry, Status, listing

TABLES = re.compile(r"blocks\.\d+\.attn\.rel_pos_[thw]")
ABS_POS = re.compile(r"pos_embed(_spatial|_temporal|_class)?")
NOT_CONVERTED = "absolute positions are resampled from image to image alone, on square grids"

# A tensor, how it came about and a note.
Fitted = tuple[Tensor, Status, str]


def is_clip(shapes: Mapping[str, Sequence[int]]) -> bool:
    """Whether shapes by name are a clip model's: kernels over more than one frame, or positions
    in time."""
    return any(
        (name.endswith(".rel_pos_t") and TABLES.fullmatch(name))
        or (len(shape) == 5 and shape[2] > 1 and KERNELS.fullmatch(name))
        for name, shape in shapes.items()
    )


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor."""
    return {name: tuple(value.shape) for name, value in state.items()}


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
    left = dict(state)
    notes: dict[str, str] = {}
    clips = is_clip(shapes_of(state)), is_clip(shapes)
    for name, wanted in shapes.items():
        shape, source = tuple(wanted), state.get(name)
        result: Fitted | None = None
        if source is None:
            if name.endswith(".rel_pos_t") and not clips[0] and TABLES.fullmatch(name):
                like = state.get(f"{name[:-1]}h")
                zeros = torch.zeros(shape, dtype=torch.float32 if like is None else like.dtype)
                result = zeros, "inflated", "zero: an image has no positions in time"
        elif ABS_POS.fullmatch(name):
            result = fit_positions(name, source, shape, config, clips)
        else:
            result = fit_tensor(name, source, shape)
        seen = None if source is None else tuple(source.shape)
        if result is None:
            note = "not in the file"
            if source is not None:
                note = NOT_CONVERTED if ABS_POS.fullmatch(name) else "no fit for the file's shape"
                notes[name] = f"the model's is {shape}"
            entries.append(Entry(name, "new", shape, None, seen, note))
        else:
            fitted[name], status, note = result
            left.pop(name, None)
            entries.append(Entry(name, status, shape, name if seen else None, seen, note))
    for name, tensor in left.items():
        shape = tuple(tensor.shape)
        note = notes.get(name, "no place in the model")
        entries.append(Entry(name, "unused", shape, name, shape, note))
    return fitted, entries


def fit_tensor(name: str, source: Tensor, shape: tuple[int, ...]) -> Fitted | None:
    """One tensor at the model's shape, how it came to it and a note; None if it cannot."""
    if tuple(source.shape) == shape:
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


def fit_positions(
    name: str, source: Tensor, shape: tuple[int, ...], config: MViTConfig, clips: tuple[bool, bool]
) -> Fitted | None:
    """Absolute positions: as they are, or an image's (1, rows, C) table, the class token's row
    first where there is one, resampled bicubically as detectron2 does.

    Args:
        clips: whether the file's model, and whether this one, is for clips.
    """
    if tuple(source.shape) == shape and clips[0] == clips[1]:
        return source, "loaded", ""
    if name != "pos_embed" or any(clips) or source.ndim != 3:
        return None
    if (source.shape[0], source.shape[2]) != (shape[0], shape[2]):
        return None
    hw = tuple(config.abs_pos_thw or config.blocks[0].thw)[-2:]
    wants_row, split = shape[1] - prod(hw), square(source.shape[1])
    if split is None or wants_row not in (0, 1):
        return None
    has_row, side = split
    row = source[:, :1] if has_row else torch.zeros_like(source[:, :1])
    cells = in_float(lambda t: resample_abs_pos(t, (side, side), hw), source[:, has_row:])
    note = f"bicubically, from {source.shape[1]} rows"
    if wants_row and not has_row:
        note += ", zero for the class token"
    return (torch.cat([row, cells], 1) if wants_row else cells), "resampled", note


def square(rows: int) -> tuple[int, int] | None:
    """Class rows (0 or 1) and side of the square grid of an image's table with ``rows`` rows."""
    for cells in (rows, rows - 1):
        if cells > 0 and isqrt(cells) ** 2 == cells:
            return rows - cells, isqrt(cells)
    return None


def in_float(function: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
    """``function`` of a tensor in at least float32: interpolation knows no half precision."""
    wide = tensor if tensor.dtype == torch.float64 else tensor.float()
    return function(wide).to(tensor.dtype).contiguous()


def centre_frame(file: str, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[Entry]]:
    """An image model's tensors from a clip model's or from PySlowFast's image model's.

    Takes the centre frame of every kernel, and leaves positions in time out. Gives an inflated
    image checkpoint back bit for bit.

    Returns:
        The tensors, and one entry for each tensor of ``state``.

    Raises:
        CheckpointError: a clip model with absolute positions; names the tensor.
    """
    found: dict[str, Tensor] = {}
    entries: list[Entry] = []
    clip = is_clip(shapes_of(state))
    for name, source in state.items():
        seen = tuple(source.shape)
        if clip and ABS_POS.fullmatch(name):
            raise CheckpointError(f"{file}: {name} cannot be converted: {NOT_CONVERTED}")
        if name.endswith(".rel_pos_t"):
            entries.append(Entry(name, "unused", seen, name, seen, "an image has no time"))
            continue
        result: Fitted | None = None
        if KERNELS.fullmatch(name) and source.ndim == 5:
            result = fit_kernel(source, (*seen[:2], *seen[3:]))
        found[name], status, note = result or (source, "loaded", "")
        entries.append(Entry(name, status, tuple(found[name].shape), name, seen, note))
    return found, entries


def resize(
    file: str, state: Mapping[str, Tensor], layout: Layout, input_size: tuple[int, ...]
) -> tuple[dict[str, Tensor], list[Entry]]:
    """Position tables for another nominal size, of a published variant, and one entry for each
    tensor; CheckpointError if there are tables that cannot be had."""
    if layout.variant is None:
        raise CheckpointError(f"{file}: only published variants can be resized, it holds {layout}")
    if len(input_size) != layout.rank:
        raise CheckpointError(f"{file}: input_size must have {layout.rank} sizes, got {input_size}")
    config = MViTConfig.variant(
        layout.variant, input_size, dim_mul_in_att=layout.in_att is not False
    )
    with torch.device("meta"):
        shapes = shapes_of(MViTClassifier(config).state_dict())
    # Only position tables follow the size; everything else keeps the file's shape.
    wanted = {n: shapes.get(n, s) if "rel_pos_" in n else s for n, s in shapes_of(state).items()}
    if layout.rank == 2 and (split := square(*wanted.get("pos_embed", (0, 0))[1:2])):
        rows = split[0] + prod(config.blocks[0].thw)
        wanted["pos_embed"] = (1, rows, wanted["pos_embed"][2])
    fitted, entries = fit_state_dict(state, wanted, config)
    lost = [name for name in state if name not in fitted]
    if layout.rank == 3:
        lost += [name for name in state if name.startswith("pos_embed")]
    if lost:
        raise CheckpointError(f"{file}: cannot be resized to {input_size}: {listing(lost)}")
    return fitted, entries
