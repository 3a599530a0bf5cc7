"""Position rows as one opaque operation, for programs compiled for sizes not known yet.

Traced through, the resampling of a table to a symbolic length and the index of symbolic sizes give
the compiler expressions that take it minutes to reason about. As one operation they are a shape.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import rel_pos

# Older releases cannot be asked what a compiler knows of a size.
_ASKABLE = hasattr(torch.compiler, "is_exporting")


def sizes_unknown(*sizes: int) -> bool:
    """Whether a compiler is at work that does not know ``sizes``. Exporters do not count."""
    if not _ASKABLE or not torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return False
    from torch.fx.experimental.symbolic_shapes import has_static_value

    return not all(has_static_value(size) for size in sizes)


@torch.library.custom_op("mvitv2::pair_rows", mutates_args=())
def pair_rows(table: Tensor, q_size: int, k_size: int) -> Tensor:
    """``rel_pos.pair_rows`` of (L, head_dim): (q_size, k_size, head_dim)."""
    return rel_pos.pair_rows(table, q_size, k_size)


@pair_rows.register_fake
def _(table: Tensor, q_size: int, k_size: int) -> Tensor:
    return table.new_empty(q_size, k_size, table.shape[1])


@torch.library.custom_op("mvitv2::pair_rows_backward", mutates_args=())
def pair_rows_backward(grad: Tensor, length: int) -> Tensor:
    """Gradient of the stored (length, head_dim) table from that of its rows."""
    q_size, k_size, head_dim = grad.shape
    rows = 2 * max(q_size, k_size) - 1
    index = rel_pos.rel_pos_index(q_size, k_size, grad.device)
    total = grad.new_zeros(rows, head_dim).index_add_(0, index, grad.flatten(0, 1))
    if rows == length:
        return total
    columns = total.t()[None]
    shape = [1, head_dim, length]
    return torch.ops.aten.upsample_linear1d_backward(columns, [rows], shape, False)[0].t().clone()


@pair_rows_backward.register_fake
def _(grad: Tensor, length: int) -> Tensor:
    return grad.new_empty(length, grad.shape[-1])


def _setup(ctx: Any, inputs: tuple[Tensor, int, int], output: Tensor) -> None:
    ctx.length = inputs[0].shape[0]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    return pair_rows_backward(grad, ctx.length), None, None


pair_rows.register_autograd(_backward, setup_context=_setup)
