"""Attention with decomposed relative positions (paper, section 4.1) as Triton kernels.

Exact: softmax(q k^T * head_dim**-0.5 + positions) v with the positions' logits given per query and
key cell of an axis. Nothing of size queries x keys is ever in memory, windows are index arithmetic
with masked loads, and gradients are sums in a fixed order (no atomics).

Positions are added by a product with a one-hot matrix that is made from the keys' indices: on an
H100 64 one-hot rows cost the tensor cores 1/32 clock for each logit, and making them some 0.5
integer operations for each (they are shared by all queries of a block), where a gather would take
one load from shared memory and two integer operations for each logit and axis. All axes share one
such product, whose backward (dlogits one_hot^T) sums the gradient of the terms inside the block.

Proven right in Triton's interpreter and compiled for sm_90; not yet timed on a GPU.
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from ..plain import window_counts
from .triton_attention_op import attention_op
from .triton_device import DTYPES, available, runs_on

MAX_HEAD_DIM = 128
# Sums of the key cells of all axes.
MAX_KEY_CELLS = 256


def supports(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    terms: Sequence[Tensor],
    q_thw: Sequence[int],
    k_thw: Sequence[int],
    windows: tuple[Sequence[int], Sequence[int]] | None = None,
) -> bool:
    """Whether ``attention`` takes these: a device that it runs on, one dtype, sizes that fit."""
    tensors = (q, k, v, *terms)
    return (
        available()
        and runs_on(q.device)
        and q.dtype in DTYPES
        and all(x.dtype == q.dtype and x.device == q.device for x in tensors)
        and all(x.stride(-1) == 1 for x in (q, k, v))
        and q.shape[-1] <= MAX_HEAD_DIM
        and 1 <= len(q_thw) == len(k_thw) <= 3
        and sum(term.shape[-1] for term in terms) <= MAX_KEY_CELLS
        and max(q.shape[1], k.shape[1], *(prod(w) for w in windows or ())) < 2**20
        and all(x.shape[1] * x.stride(1) < 2**31 for x in (q, k, v))
        and max(q.shape[1], k.shape[1]) * q.shape[2] * MAX_KEY_CELLS < 2**31
        and q.shape[0] * q.shape[2] < 2**16
        and q.numel() > 0
        and k.numel() > 0
    )


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
    windows: tuple[Sequence[int], Sequence[int]] | None = None,
) -> Tensor:
    """Exact attention; one launch forward, two or three backward.

    Args:
        q: (B, Nq, heads, head_dim), unscaled, the class token's row first; any strides, but of 1
            along head_dim. float32, bfloat16 or float16.
        k, v: (B, Nk, heads, head_dim) of the same dtype, any strides but of 1 along head_dim.
        terms: for each of ``axes`` (B, Nq less the class token, heads, key cells along the axis)
            logits of each query for each key cell, unscaled. With windows, cells of a window.
        axes: which axes have positions, ascending.
        q_thw, k_thw: grids, of one to three axes; their products, and a class token, are Nq and Nk.
        cls_token: whether the first rows of q, k and v are a class token, without positions.
        add_q: whether to add q to the result (residual pooling), but for the class token's row.
        windows: sizes along each axis of the windows of q and of those of k and v. Queries see the
            keys of their own window; zeros that fill the last ones take part as keys.

    Returns:
        (B, Nq, heads, head_dim), contiguous.

    Raises:
        ValueError: shapes, strides, dtypes or windows that do not fit one another.
    """
    q_window, k_window = ((), ()) if windows is None else windows
    _check(q, k, v, terms, axes, q_thw, k_thw, cls_token, q_window, k_window)
    keep = add_q and torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v, *terms))
    out, _, _ = attention_op(
        *(q, k, v, list(terms), list(axes), list(q_thw), list(k_thw)),
        *(cls_token, add_q, list(q_window), list(k_window), keep),
    )
    return out


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    terms: Sequence[Tensor],
    axes: Sequence[int],
    q_thw: Sequence[int],
    k_thw: Sequence[int],
    cls_token: bool,
    q_window: Sequence[int],
    k_window: Sequence[int],
) -> None:
    batch, nq, heads, head_dim = q.shape
    nk, first = k.shape[1], int(cls_token)
    if q.dtype not in DTYPES or any(x.dtype != q.dtype for x in (k, v, *terms)):
        dtypes = [x.dtype for x in (q, k, v, *terms)]
        raise ValueError(f"q, k, v and terms must all be of one of {DTYPES}, got {dtypes}")
    if any(x.stride(-1) != 1 for x in (q, k, v)):
        strides = [x.stride() for x in (q, k, v)]
        raise ValueError(f"q, k and v must have stride 1 along head_dim, got {strides}")
    if len(q_thw) != len(k_thw) or not 1 <= len(q_thw) <= 3:
        raise ValueError(f"q_thw and k_thw must have 1 to 3 sizes: {q_thw}, {k_thw}")
    if nq != prod(q_thw) + first or nk != prod(k_thw) + first:
        raise ValueError(f"{nq} queries, {nk} keys do not fill q_thw={q_thw}, k_thw={k_thw}")
    if k.shape != (batch, nk, heads, head_dim) or v.shape != k.shape:
        raise ValueError(f"k and v must fit q {tuple(q.shape)}: {k.shape}, {v.shape}")
    if q_window:
        if cls_token:
            raise ValueError("windows must be None with cls_token=True: it has no window")
        if len(q_window) != len(q_thw) or len(k_window) != len(k_thw):
            raise ValueError(f"windows must have a size per axis, got {q_window}, {k_window}")
        if window_counts(q_thw, q_window) != window_counts(k_thw, k_window):
            raise ValueError(f"q and k must have equally many windows: {q_window}, {k_window}")
    seen = k_window or k_thw
    if list(axes) != sorted(set(axes)) or len(axes) != len(terms):
        raise ValueError(f"axes must ascend, one for each of {len(terms)} terms, got {axes}")
    for axis, term in zip(axes, terms, strict=True):
        if term.shape != (batch, nq - first, heads, seen[axis]):
            raise ValueError(
                f"the term of axis {axis} must be {(batch, nq - first, heads, seen[axis])}, "
                f"got {tuple(term.shape)}"
            )
