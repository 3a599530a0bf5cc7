"""One row per block, the form in which every adapter describes a model; the published sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from .checks import check_flag, check_sizes, check_whole, refuse


class Variant(NamedTuple):
    """One size of the paper's Table 1: blocks per stage, width and heads of the first stage."""

    depths: tuple[int, ...]
    embed_dim: int
    num_heads: int


VARIANTS = {
    "T": Variant((1, 2, 5, 2), 96, 1),
    "S": Variant((1, 2, 11, 2), 96, 1),
    "B": Variant((2, 3, 16, 3), 96, 1),
    "L": Variant((2, 6, 36, 4), 144, 2),
    "H": Variant((4, 8, 60, 8), 192, 3),
}


class BlockRow(NamedTuple):
    """One block; see ``config.BlockSpec``, and ``config.lay_out``, which puts them together."""

    dim_out: int
    num_heads: int
    stride_q: tuple[int, ...]
    stride_kv: tuple[int, ...]
    kernel_q: tuple[int, ...] | None
    kernel_kv: tuple[int, ...] | None
    window_size: int = 0


def stage_rows(
    depths: Sequence[int],
    embed_dim: int,
    num_heads: int,
    stride_kv: tuple[int, ...],
    kernel: tuple[int, ...] | None = None,
    dim_mul_in_att: bool = True,
) -> list[BlockRow]:
    """The paper's stages (section 4, Table 1), image or video.

    Heads double, and the spatial stride of q is 2, in the first block of each stage but the first.
    The width doubles there too, or in the MLP of the block before; kv strides halve.

    Args:
        depths: blocks of each stage.
        embed_dim, num_heads: of the first stage.
        stride_kv: of the first stage, one per axis.
        kernel: of all pools, one size per axis; 3 by default.
        dim_mul_in_att: see ``lay_out``.
    """
    if not isinstance(depths, Sequence) or isinstance(depths, str) or not depths:
        raise ValueError(f"depths must hold the blocks of each stage, got {depths!r}")
    for name, size in (*(("depths", n) for n in depths), ("num_heads", num_heads)):
        check_whole(name, size)
    check_whole("embed_dim", embed_dim)
    check_sizes("stride_kv", stride_kv)
    rank, starts = len(stride_kv), {sum(depths[:stage]) for stage in range(1, len(depths))}
    kernel, dim, rows = kernel or (3,) * rank, embed_dim, []
    for index in range(sum(depths)):
        step = (1, 2, 2)[-rank:] if index in starts else (1,) * rank
        stride_kv = tuple(max(kv // q, 1) for kv, q in zip(stride_kv, step, strict=True))
        num_heads *= 2 if index in starts else 1
        dim *= 2 if (index if dim_mul_in_att else index + 1) in starts else 1
        rows.append(BlockRow(dim, num_heads, step, stride_kv, kernel, kernel))
    return rows


def published(
    name: str,
    input_size: tuple[int, ...],
    kv_stride: int | None = None,
    dim_mul_in_att: bool = True,
) -> tuple[tuple[list[BlockRow], int, tuple[int, ...]], dict[str, Any]]:
    """A published size: rows, width and token grid for ``lay_out``, and the config's other fields.

    Args:
        name: a key of ``VARIANTS``.
        input_size: (H, W), or (T, H, W) for clips: patches of 3x7x7 with stride 2x4x4.
        kv_stride: spatial kv stride of the first stage, halved at each stage; None for 4 on images
            and 8 on clips, as published (paper, sections 5.1 and 5.3).
        dim_mul_in_att: False for the published IN-1K L and the MaskFeat fine-tunes, whose width
            grows in the MLP of the block before.

    Raises:
        ValueError: unknown ``name``, or a size that does not fit.
    """
    if not isinstance(name, str) or name not in VARIANTS:
        refuse("name", f"one of {', '.join(VARIANTS)}", name)
    if not isinstance(input_size, tuple) or len(input_size) not in (2, 3):
        refuse("input_size", "(H, W) or (T, H, W)", input_size)
    rank = len(input_size)
    check_sizes("input_size", input_size, rank)
    stride = (2, 4, 4)[-rank:]
    thw = tuple(n // s for n, s in zip(input_size, stride, strict=True))
    if not all(thw):
        refuse("input_size", f"at least {stride}", input_size)
    if kv_stride is None:
        kv_stride = 8 if rank == 3 else 4
    check_whole("kv_stride", kv_stride)
    check_flag("dim_mul_in_att", dim_mul_in_att)
    stride_kv = (1, kv_stride, kv_stride)[-rank:]
    rows = stage_rows(*VARIANTS[name], stride_kv, dim_mul_in_att=dim_mul_in_att)
    fields = {
        "input_size": input_size,
        "patch_kernel": (3, 7, 7)[-rank:],
        "patch_stride": stride,
        "patch_padding": (1, 3, 3)[-rank:],
        "rel_pos": (True,) * rank,
        "cls_token": rank == 3,
    }
    return (rows, VARIANTS[name].embed_dim, thw), fields
