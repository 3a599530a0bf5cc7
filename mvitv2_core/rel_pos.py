"""Decomposed relative positions: which table row each query-key pair uses, on any axis.

Paper, section 4.1: the logit of query i and key j gets q_i . R_a[p_a(i) - p_a(j)] for each axis a.
"""

from __future__ import annotations

from collections.abc import Sequence

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
    home = has_float64(device)
    q, k = (torch.full((), n, dtype=torch.float64, device=home) for n in (q_size, k_size))
    q_ratio, k_ratio = (k / q).clamp(min=1), (q / k).clamp(min=1)
    q_places, k_places = (
        (torch.arange(n, device=home, dtype=torch.float64) * ratio.float().double()).float()
        for n, ratio in ((q_size, q_ratio), (k_size, k_ratio))
    )
    last = ((k - 1) * k_ratio).float()
    return (q_places[:, None] - k_places[None, :] + last).long().flatten().to(device)


def has_float64(device: torch.device) -> torch.device:
    """``device``, or the CPU in place of Apple's MPS, which has no float64."""
    return torch.device("cpu") if device.type == "mps" else device


def resample_table(table: Tensor, length: int) -> Tensor:
    """A (L, head_dim) position table resampled linearly to ``length`` rows."""
    if table.shape[0] == length:
        return table
    return F.interpolate(table.t()[None], size=length, mode="linear")[0].t()


def pair_rows(table: Tensor, q_size: int, k_size: int) -> Tensor:
    """The row that each pair of a query's and a key's cell uses: (q_size, k_size, head_dim).

    The stored (L, head_dim) ``table`` is resampled where L is not ``2 * max(q_size, k_size) - 1``.
    """
    table = resample_table(table, 2 * max(q_size, k_size) - 1)
    return table[rel_pos_index(q_size, k_size, table.device)].unflatten(0, (q_size, k_size))


def rel_pos_terms(q: Tensor, rows: Sequence[Tensor | None], q_thw: Sequence[int]) -> list[Tensor]:
    """What positions add to the logits: for each axis that has them, one term per key cell.

    Args:
        q: unscaled (B, Nq, heads, head_dim) queries of the grid ``q_thw``, without class token.
        rows: for each axis the (q_size, k_size, head_dim) rows of ``pair_rows``, or None.

    Returns:
        One (B, Nq, heads, k_size) tensor per axis that has rows.
    """
    terms = []
    for axis, pairs in enumerate(rows):
        if pairs is not None:
            # (B, Nq, heads, head_dim) -> (size, B, ..., heads, head_dim), the axis in front
            cells = q.unflatten(1, tuple(q_thw)).movedim(1 + axis, 0)
            # (size, n, head_dim) @ (size, head_dim, k_size), n being all but the axis
            term = cells.flatten(1, -2) @ pairs.transpose(1, 2)
            term = term.unflatten(1, cells.shape[1:-1]).movedim(0, 1 + axis)
            terms.append(term.flatten(1, len(q_thw)))
    return terms
