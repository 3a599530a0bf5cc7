"""Which block of the backbone does what: strides, widths and windows by block index."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from mvitv2_core.spec import check_count, check_flag, check_positive, check_rate, is_whole

from .attention import WindowBlockSpec

SCALES = ("scale2", "scale3", "scale4", "scale5")


def as_tuple(name: str, values: object) -> tuple:
    """``values`` as a tuple; ValueError where they are no sequence."""
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise ValueError(f"{name} must be a sequence, got {values!r}")
    return tuple(values)


def check_ends(last_block_indexes: Sequence[int], depth: int) -> tuple[int, ...]:
    """``last_block_indexes`` as a tuple; ValueError where it does not fit ``depth``."""
    check_positive("depth", depth)
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


def stage_blocks(
    hw: tuple[int, ...],
    embed_dim: int,
    depth: int,
    num_heads: int,
    ends: tuple[int, ...],
    kernel: tuple[int, ...],
    kv_stride: int,
    window_size: int,
    drop_path_rate: float,
    dim_mul_in_att: bool,
) -> tuple[WindowBlockSpec, ...]:
    """Block specs of detectron2's layout (its modeling/backbone/mvit.py), ValueErrors included.

    Args:
        hw: token grid of the first stage.
        embed_dim, num_heads: of the first stage; double in each stage's first block.
        depth: number of blocks.
        ends: index of each stage's last block.
        kernel: of the pools, one size per axis.
        kv_stride, window_size: of the first stage; halved from stage to stage.
        drop_path_rate: drop path of the last block; rises linearly from 0.
        dim_mul_in_att: whether the width grows in attention, or in the MLP of the block before.
    """
    check_positive("num_heads", num_heads)
    check_positive("adaptive_kv_stride", kv_stride)
    check_count("adaptive_window_size", window_size)
    check_rate("drop_path_rate", drop_path_rate)
    check_flag("dim_mul_in_att", dim_mul_in_att)
    dim, specs = embed_dim, []
    for i in range(depth):
        first = i - 1 in ends
        if first:
            num_heads *= 2
            kv_stride = max(kv_stride // 2, 1)
        # Quirk: the last block of the second and of the third stage pools kv twice as much.
        stride_kv = kv_stride * 2 if i in ends[1:3] else kv_stride
        widens = first if dim_mul_in_att else i in ends[:-1]
        dim_out = dim * 2 if widens else dim
        spec = WindowBlockSpec(
            dim=dim,
            dim_att=dim_out if dim_mul_in_att else dim,
            dim_out=dim_out,
            num_heads=num_heads,
            thw=hw,
            stride_q=(2, 2) if first else (1, 1),
            stride_kv=(stride_kv, stride_kv),
            kernel_q=kernel,
            kernel_kv=kernel,
            drop_path=drop_path_rate * i / max(depth - 1, 1),
            # Quirk: a stage's first block still has the previous stage's window, on its input.
            window_size=0 if i in ends[1:] else window_size,
        )
        specs.append(spec)
        dim, hw = spec.dim_out, spec.thw_out
        if first:
            window_size //= 2
    return tuple(specs)
