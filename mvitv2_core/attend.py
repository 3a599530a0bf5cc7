"""softmax(q k^T * scale + positions) v, without ever holding a queries x keys matrix."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .rel_pos import key_cells, rel_pos_terms

# The flash and cuDNN kernels take heads of at most this many channels.
MAX_HEAD_DIM = 256


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
    scale = q.shape[-1] ** -0.5
    axes = [axis for axis, table in enumerate(tables) if table is not None]
    if torch.jit.is_tracing():
        # FLOP counters (fvcore) and tracing exporters know matmuls, not fused attention.
        return attend_plain(q, k, v, tables, q_thw, k_thw, cls_token)
    if axes:
        grid_q = q[:, 1:] if cls_token else q
        terms = rel_pos_terms(grid_q, tables, q_thw, k_thw)
        # SDPA scales the whole product, and positions stand outside the scale: undo it on them.
        positions = torch.cat(terms, dim=-1) * (1 / scale)
        if cls_token:
            positions = F.pad(positions, (0, 0, 0, 0, 1, 0))
        cells = key_cells(k_thw, axes, cls_token, k)
        cells = cells[None, :, None].expand(k.shape[0], -1, k.shape[2], -1)
        width = q.shape[-1]
        q = torch.cat([q, positions.to(q.dtype)], dim=-1)
        k = torch.cat([k, cells], dim=-1)
        # Fused kernels want one head size for q, k and v.
        v = F.pad(v, (0, q.shape[-1] - width))
    else:
        width = q.shape[-1]
    # (B, N, heads, head_dim) -> (B, heads, N, head_dim) views; the kernels take any strides
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), scale=scale
    )
    return out.transpose(1, 2)[..., :width]


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
    rank, first = len(q_thw), int(cls_token)
    logits = (q * q.shape[-1] ** -0.5).transpose(1, 2) @ k.permute(0, 2, 3, 1)
    terms = iter(rel_pos_terms(q[:, first:], tables, q_thw, k_thw))
    bias = None
    for axis, table in enumerate(tables):
        if table is not None:
            shape = [1] * rank
            shape[axis] = k_thw[axis]
            # (B, Nq, heads, k_size) -> (B, heads, Nq, 1.., k_size, ..1)
            term = next(terms).transpose(1, 2).unflatten(-1, shape)
            bias = term if bias is None else bias + term
    if bias is not None:
        bias = bias.expand(*bias.shape[:3], *k_thw).flatten(3)
        logits = logits + F.pad(bias, (first, 0, first, 0))
    return (logits.softmax(dim=-1) @ v.transpose(1, 2)).transpose(1, 2)
