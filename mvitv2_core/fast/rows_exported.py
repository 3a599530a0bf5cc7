"""Position rows for exported programs whose sizes stay open, and for training that must repeat."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import rel_pos


def pair_rows(table: Tensor, q_size: int, k_size: int) -> Tensor:
    """``rel_pos.pair_rows`` by operations that every runtime has, and rounds alike.

    The definition asks whether the table must be resampled, which would tie a program to the sizes
    of its example; and runtimes resample with roundings of their own. Here each pair takes two rows
    of the stored table, with weights one and zero where nothing is to be resampled. Gradients of
    taken rows have a deterministic algorithm on GPUs, those of ``F.interpolate`` have none.
    """
    home = rel_pos.has_float64(table.device)
    index = rel_pos.rel_pos_index(q_size, k_size, home)
    # As F.interpolate: row i of n lies at (i + 1/2) * scale - 1/2. Sizes are tensors, or a runtime
    # would multiply by a reciprocal; the sum is rounded once.
    wide = torch.promote_types(table.dtype, torch.float32)
    stored, q, k = (
        torch.full((), n, dtype=torch.float64, device=home) for n in (len(table), q_size, k_size)
    )
    scale = (stored / (2 * torch.maximum(q, k) - 1)).to(wide).double()
    place = ((index + 0.5).double() * scale - 0.5).to(wide).clamp(min=0)
    first = place.long()
    second = (first + 1).clamp(max=len(table) - 1)
    weight = (place - first)[:, None].to(table.device)
    one, two = (table.index_select(0, rows.to(table.device)).to(wide) for rows in (first, second))
    mixed = (1 - weight) * one + weight * two
    return mixed.to(table.dtype).unflatten(0, (q_size, k_size))
