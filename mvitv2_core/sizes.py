"""Sizes that an exported program (``torch.export``) leaves open: nothing may be decided by them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def open_sizes(*sizes: int) -> bool:
    """Whether a program is exported that leaves some of ``sizes`` open."""
    exporting = getattr(torch.compiler, "is_exporting", bool)  # older releases have none
    if not exporting():
        return False
    from torch.fx.experimental.symbolic_shapes import has_static_value

    return not all(has_static_value(size) for size in sizes)


def equal_sizes(a: Sequence[int], b: Sequence[int]) -> bool:
    """Whether sizes are equal; False where an exported program leaves them open."""
    return not open_sizes(*a, *b) and tuple(a) == tuple(b)


def laid_out(x: Tensor, grid: Sequence[int]) -> Tensor:
    """A copy of ``x`` where ``grid`` is open: whether a view would do depends on it."""
    return x.clone(memory_format=torch.contiguous_format) if open_sizes(*grid) else x
