"""Which block of the backbone does what, as detectron2's arguments say it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from mvitv2_core.checks import check_whole, is_whole
from mvitv2_core.rows import BlockRow, stage_rows

SCALES = ("scale2", "scale3", "scale4", "scale5")


def as_tuple(name: str, values: object) -> tuple:
    """``values`` as a tuple; ValueError where they are no sequence."""
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise ValueError(f"{name} must be a sequence, got {values!r}")
    return tuple(values)


def check_ends(last_block_indexes: Sequence[int], depth: int) -> tuple[int, ...]:
    """``last_block_indexes`` as a tuple; ValueError where it does not fit ``depth``."""
    check_whole("depth", depth)
    ends = as_tuple("last_block_indexes", last_block_indexes)
    rising = all(map(is_whole, ends)) and all(a < b for a, b in itertools.pairwise(ends))
    if not 1 <= len(ends) <= len(SCALES) or not rising or ends[0] < 0 or ends[-1] != depth - 1:
        raise ValueError(
            f"last_block_indexes must be at most {len(SCALES)} rising block indexes that end with "
            f"depth - 1 = {depth - 1}, got {ends}"
        )
    return ends


def check_features(out_features: Sequence[str], stages: int) -> tuple[str, ...]:
    """The requested names in the order of the stages; ValueError on an unknown one."""
    known = SCALES[:stages]
    names = as_tuple("out_features", out_features)
    if not names or not all(n in known for n in names) or len(set(names)) < len(names):
        raise ValueError(
            f"out_features must be some of {', '.join(known)}, each once, got {out_features!r}"
        )
    return tuple(name for name in known if name in out_features)


def layout_rows(
    ends: tuple[int, ...],
    embed_dim: int,
    num_heads: int,
    kernel: tuple[int, ...],
    kv_stride: int,
    window_size: int,
    dim_mul_in_att: bool,
) -> list[BlockRow]:
    """The paper's stages with what detectron2 adds (its modeling/backbone/mvit.py).

    Args:
        ends: index of each stage's last block.
        embed_dim, num_heads: of the first stage.
        kernel: of the pools, one size per axis.
        kv_stride, window_size: of the first stage; halved from stage to stage.
        dim_mul_in_att: whether widths grow in attention, or in the MLP of the block before.
    """
    check_whole("adaptive_kv_stride", kv_stride)
    check_whole("adaptive_window_size", window_size, 0)
    depths = [end - before for before, end in itertools.pairwise((-1, *ends))]
    stride_kv = (kv_stride, kv_stride)
    rows = stage_rows(depths, embed_dim, num_heads, stride_kv, kernel, dim_mul_in_att)
    for index, row in enumerate(rows):
        # Quirk: the last block of the second and of the third stage pools kv twice as much.
        if index in ends[1:3]:
            row = row._replace(stride_kv=tuple(2 * stride for stride in row.stride_kv))
        # Quirk: a stage's first block still has the previous stage's window, on its input.
        rows[index] = row._replace(window_size=0 if index in ends[1:] else window_size)
        if index - 1 in ends:
            window_size //= 2
    return rows
