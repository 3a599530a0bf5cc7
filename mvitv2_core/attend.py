"""softmax(q k^T * scale + positions) v, without ever holding a queries x keys matrix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .context import transformed
from .linear import autocast_dtype, no_autocast
from .rel_pos import key_cells, rel_pos_terms

# The flash and cuDNN kernels take heads of at most this many channels.
MAX_HEAD_DIM = 256
# They pad heads to a multiple of this by copying, unless they come padded.
HEAD_DIM_STEP = 8
# Logits that the chunked path holds at a time: 8 MB in float32, which stays in the cache.
CHUNK_LOGITS = 2**21


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tables: Sequence[Tensor | None],
    q_thw: Sequence[int],
    k_thw: Sequence[int],
    cls_token: bool = False,
) -> Tensor:
    """Attention with decomposed relative positions (paper, section 4.1).

    Args:
        q: (B, Nq, heads, head_dim) queries, unscaled; the class token's row first, if any.
        k, v: (B, Nk, heads, head_dim) keys and values.
        tables: one stored (L, head_dim) position table per axis, None for axes without.
        q_thw, k_thw: live grids; ``Nq`` and ``Nk`` are their products, plus the class token.
        cls_token: whether row 0 is a class token, which takes part without positions.

    Returns:
        (B, Nq, heads, head_dim), without pooled q.
    """
    axes = [axis for axis, table in enumerate(tables) if table is not None]
    if torch.jit.is_tracing() or (not torch.compiler.is_compiling() and transformed()):
        # FLOP counters (fvcore), tracing exporters and torch.func know matmuls, not our kernels.
        return attend_plain(q, k, v, tables, q_thw, k_thw, cls_token)
    terms = rel_pos_terms(q[:, 1:] if cls_token else q, tables, q_thw, k_thw)
    if cls_token:
        terms = [F.pad(term, (0, 0, 0, 0, 1, 0)) for term in terms]
    path = choose_path(q.device.type, q.shape[-1], sum(term.shape[-1] for term in terms))
    if path == "fused":
        return _fused(q, k, v)
    if path == "folded":
        return _folded(q, k, v, terms, key_cells(k_thw, axes, cls_token, HEAD_DIM_STEP, k))
    dtype = autocast_dtype(q.device.type)
    if dtype is not None:
        q, k, v, *terms = (t.to(dtype) for t in (q, k, v, *terms))
    with no_autocast(q.device.type):
        return _Chunked.apply(q, k, v, tuple(k_thw), tuple(axes), cls_token, *terms)


def choose_path(device: str, head_dim: int, position_channels: int) -> str:
    """Which exact path attends: "fused", "folded" or "chunked".

    Args:
        device: "cpu", "cuda", ...
        head_dim: channels of a head.
        position_channels: key cells over all axes with positions; folding adds as many channels.

    Without positions PyTorch's fused attention does all. With them, accelerators and compilers
    fold positions into extra channels, up to the head size that fused kernels take. The rest goes
    by chunks of queries: heads too wide to fold, and eager CPU, where measured chunks beat folding
    by 1.1x in windows and 1.5x in global blocks, in inference as in training.
    """
    if not position_channels:
        return "fused"
    if head_dim + position_channels > MAX_HEAD_DIM:  # a multiple of the step itself
        return "chunked"
    return "chunked" if device == "cpu" and not torch.compiler.is_compiling() else "folded"


def _fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    # (B, N, heads, head_dim) -> (B, heads, N, head_dim) views; the kernels take any strides
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def _folded(q: Tensor, k: Tensor, v: Tensor, terms: Sequence[Tensor], cells: Tensor) -> Tensor:
    """Positions as channels: [q, terms] . [k, cells] is the whole logit, so no bias exists.

    Exact because a key's row of ``cells`` holds a one for its cell on each axis: the product
    picks that cell's term.
    """
    head_dim = q.shape[-1]
    scale = head_dim**-0.5
    # Attention scales the whole product, and positions stand outside the scale: undo it on them.
    positions = torch.cat(list(terms), dim=-1) * (1 / scale)
    # Channels up to a full step are zeros, in ``cells`` as well.
    width = cells.shape[-1] - positions.shape[-1]
    q = torch.cat([q, F.pad(positions, (0, width)).to(q.dtype)], dim=-1)
    k = torch.cat([k, cells[None, :, None].expand(*k.shape[:3], -1)], dim=-1)
    # Fused kernels want one head size for q, k and v.
    v = F.pad(v, (0, q.shape[-1] - head_dim))
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, scale=scale)
    return out.transpose(1, 2)[..., :head_dim]


class _Chunked(torch.autograd.Function):
    """Exact attention for some queries at a time: each sees all its keys, so rows are complete.

    Keeps q, k, v, the terms and the output for the backward pass, which makes each chunk's
    probabilities anew.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        k_thw: tuple[int, ...],
        axes: tuple[int, ...],
        cls_token: bool,
        *terms: Tensor,
    ) -> Tensor:
        ctx.layout = (k_thw, axes, cls_token)
        scale = q.shape[-1] ** -0.5
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        for batch, rows in _chunks(q, k):
            bias = _bias([t[batch, rows] for t in terms], k_thw, axes, cls_token)
            q_, k_, v_ = (x.transpose(1, 2) for x in (q[batch, rows], k[batch], v[batch]))
            part = F.scaled_dot_product_attention(q_, k_, v_, attn_mask=bias, scale=scale)
            out[batch, rows] = part.transpose(1, 2)
        ctx.save_for_backward(q, k, v, out, *terms)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, *terms = ctx.saved_tensors
        k_thw, axes, cls_token = ctx.layout
        scale, first = q.shape[-1] ** -0.5, int(cls_token)
        dq = torch.empty_like(q, memory_format=torch.contiguous_format)
        # Sums over chunks: float32 at least.
        wide = torch.promote_types(q.dtype, torch.float32)
        dk, dv = (torch.zeros(x.shape, dtype=wide, device=x.device) for x in (k, v))
        dterms = [torch.zeros(t.shape, dtype=t.dtype, device=t.device) for t in terms]
        for batch, rows in _chunks(q, k):
            # (b, n, heads, head_dim) -> (b, heads, n, head_dim)
            q_, g_, o_ = (x[batch, rows].transpose(1, 2) for x in (q, grad, out))
            k_, v_ = k[batch].transpose(1, 2) * scale, v[batch].transpose(1, 2)
            bias = _bias([t[batch, rows] for t in terms], k_thw, axes, cls_token)
            weights = (q_ @ k_.transpose(2, 3) + bias).to(wide).softmax(dim=-1)
            dv[batch] += (weights.to(g_.dtype).transpose(2, 3) @ g_).transpose(1, 2)
            delta = (g_ * o_).to(wide).sum(dim=-1, keepdim=True)
            # Gradient of the logits: weights * (grad v^T - delta)
            dlogits = (g_ @ v_.transpose(2, 3)).to(wide).sub_(delta).mul_(weights)
            narrow = dlogits.to(q.dtype)
            dq[batch, rows] = (narrow @ k_).transpose(1, 2)
            dk[batch] += (narrow.transpose(2, 3) @ q_).transpose(1, 2) * scale
            # Each term was added along the other axes: its gradient is the sum over them.
            cells = dlogits[..., first:].unflatten(-1, k_thw)
            for axis, dterm in zip(axes, dterms, strict=True):
                others = [3 + a for a in range(len(k_thw)) if a != axis]
                total = cells.sum(dim=others) if others else cells
                dterm[batch, rows] = total.transpose(1, 2).to(dterm.dtype)
        if cls_token:  # the class token's row holds no positions
            for dterm in dterms:
                dterm[:, 0] = 0
        return dq, dk.to(k.dtype), dv.to(v.dtype), None, None, None, *dterms


def _chunks(q: Tensor, k: Tensor) -> Iterator[tuple[slice, slice]]:
    """Slices of the batch and of the queries with at most ``CHUNK_LOGITS`` logits each."""
    batch, queries, heads = q.shape[:3]
    per_query = max(heads * k.shape[1], 1)
    per_sample = max(per_query * queries, 1)
    samples = max(CHUNK_LOGITS // per_sample, 1)
    rows = max(min(CHUNK_LOGITS // per_query, queries), 1)
    for i in range(0, batch, samples):
        for j in range(0, queries, rows):
            yield slice(i, i + samples), slice(j, j + rows)


def _bias(
    terms: Sequence[Tensor], k_thw: Sequence[int], axes: Sequence[int], cls_token: bool
) -> Tensor:
    """(b, n, heads, k_size) terms of each axis -> (b, heads, n, Nk) logits to add."""
    bias: Tensor | None = None
    for axis, term in zip(axes, terms, strict=True):
        shape = [1] * len(k_thw)
        shape[axis] = k_thw[axis]
        # (b, n, heads, k_size) -> (b, heads, n, 1.., k_size, ..1)
        term = term.transpose(1, 2).unflatten(-1, shape)
        bias = term if bias is None else bias + term
    assert bias is not None
    bias = bias.expand(*bias.shape[:3], *k_thw).flatten(3)
    return F.pad(bias, (1, 0)) if cls_token else bias


def attend_plain(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tables: Sequence[Tensor | None],
    q_thw: Sequence[int],
    k_thw: Sequence[int],
    cls_token: bool = False,
) -> Tensor:
    """The same as ``attend`` in plain matrix products, holding the whole matrix.

    The definition that every fast path is tested against, and what tracers see.
    """
    first = int(cls_token)
    logits = (q * q.shape[-1] ** -0.5).transpose(1, 2) @ k.permute(0, 2, 3, 1)
    terms = rel_pos_terms(q[:, first:], tables, q_thw, k_thw)
    if terms:
        axes = [axis for axis, table in enumerate(tables) if table is not None]
        terms = [F.pad(term, (0, 0, 0, 0, first, 0)) for term in terms]
        logits = logits + _bias(terms, k_thw, axes, cls_token)
    return (logits.softmax(dim=-1) @ v.transpose(1, 2)).transpose(1, 2)
