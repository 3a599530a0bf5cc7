"""Decomposed relative positions: which table row each query-key pair uses, on any axis.

Paper, section 4.1: the logit of query i and key j gets q_i . R_a[p_a(i) - p_a(j)] for each axis a.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor


def rel_pos_index(q_size: int, k_size: int, device: torch.device) -> Tensor:
    """Table row for each query and key cell of one axis: (q_size * k_size,) int64.

    ``int(i * max(k/q, 1) - j * max(q/k, 1) + (k - 1) * max(q/k, 1))`` in float32 (the official
    ``get_rel_pos`` of detectron2's backbone/utils.py and PySlowFast's attention.py). It rounds the
    products and truncates the sum, so the published weights were trained with its rounding. Here
    products are formed in float64 and rounded once by the conversion, which no compiler may
    contract with the subtraction that follows. Sizes become tensors first: those of a tracer are,
    and their quotients would be float32.
    """
    q, k = (torch.full((), n, dtype=torch.float64, device=device) for n in (q_size, k_size))
    q_ratio, k_ratio = (k / q).clamp(min=1), (q / k).clamp(min=1)
    q_places, k_places = (
        (torch.arange(n, device=device, dtype=torch.float64) * ratio.float().double()).float()
        for n, ratio in ((q_size, q_ratio), (k_size, k_ratio))
    )
    last = ((k - 1) * k_ratio).float()
    return (q_places[:, None] - k_places[None, :] + last).long().flatten()


def resample_table(table: Tensor, length: int) -> Tensor:
    """A (L, head_dim) position table resampled linearly to ``length`` rows."""
    if table.shape[0] == length:
        return table
    return F.interpolate(table.t()[None], size=length, mode="linear")[0].t()


def pair_rows(table: Tensor, q_size: int, k_size: int) -> Tensor:
    """The row that each pair of a query's and a key's cell uses: (q_size, k_size, head_dim).

    Args:
        table: stored (L, head_dim) table, resampled where L is not ``2 * max(q, k) - 1``.
        q_size, k_size: live sizes of the pooled grids along the axis.
    """
    table = resample_table(table, 2 * max(q_size, k_size) - 1)
    return table[rel_pos_index(q_size, k_size, table.device)].unflatten(0, (q_size, k_size))


def rel_pos_terms(
    q: Tensor,
    tables: Sequence[Tensor | None],
    q_thw: Sequence[int],
    k_thw: Sequence[int],
    window: Sequence[int] | None = None,
    rows_of: Callable[[Tensor, int, int], Tensor] = pair_rows,
) -> list[Tensor]:
    """What positions add to the logits: for each axis with a table, one term per key cell.

    Args:
        q: unscaled (B, Nq, heads, head_dim) queries of the grid, without class token.
        tables: one (L, head_dim) table or None per axis.
        q_thw, k_thw: live pooled grids.
        window: sizes of the windows that ``q_thw`` falls into; ``k_thw`` is then that of keys.
        rows_of: ``pair_rows`` or another form of it.

    Returns:
        One (B, Nq, heads, k_size) tensor per axis that has a table.
    """
    batch, _, heads, head_dim = q.shape
    terms = []
    for axis, table in enumerate(tables):
        if table is None:
            continue
        # (q_size, k_size, head_dim) -> (q_size, head_dim, k_size)
        rows = rows_of(table, (window or q_thw)[axis], k_thw[axis]).transpose(1, 2)
        if window:  # the same rows in each
            rows = rows.repeat((q_thw[axis] + window[axis] - 1) // window[axis], 1, 1)
            rows = rows[: q_thw[axis]]
        before, after = batch * prod(q_thw[:axis]), prod(q_thw[axis + 1 :]) * heads
        if axis < len(tables) - 1:
            # (before, size, after, head_dim) @ (size, head_dim, k_size): q stays where it lies
            term = q.reshape(before, q_thw[axis], after, head_dim) @ rows
        else:
            # Heads lie inside the last axis, so (axis, head) is the batch of the product:
            # (size * heads, before, head_dim) @ (size * heads, head_dim, k_size), q not copied
            wide = rows.repeat_interleave(heads, dim=0) if heads > 1 else rows
            moved = q.reshape(before, q_thw[axis] * heads, head_dim).transpose(0, 1)
            term = torch.bmm(moved, wide).transpose(0, 1)
        terms.append(term.reshape(batch, prod(q_thw), heads, k_thw[axis]))
    return terms
