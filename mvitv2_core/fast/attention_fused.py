"""Attention without positions: PyTorch's fused kernels do all of it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..plain import Windows, add_residual, partition, unpartition
from .fused_kernels import fused_attention


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    terms: Sequence[Tensor],
    axes: Sequence[int],
    q_thw: Sequence[int],
    k_thw: Sequence[int],
    cls_token: bool = False,
    add_q: bool = False,
    windows: Windows | None = None,
) -> Tensor:
    """``plain.attention`` without terms."""
    inner = q
    if windows:
        inner = partition(q, q_thw, windows[0])
        k, v = (partition(x, k_thw, windows[1]) for x in (k, v))
    # (B, N, heads, head_dim) -> (B, heads, N, head_dim) views; the kernels take any strides
    inner, k, v = (x.transpose(1, 2) for x in (inner, k, v))
    out = fused_attention(inner, k, v, q.shape[-1] ** -0.5).transpose(1, 2)
    if windows:
        out = unpartition(out, q.shape[0], q_thw, windows[0])
    return add_residual(out, q, cls_token) if add_q else out
