"""The door to ``fast``: which form of an operation runs is chosen in one table, ``forms.FORMS``.

``MVITV2_REFERENCE=1`` runs the plain definitions alone. ``MVITV2_ATTENTION=folded`` and the like
(an operation of ``FORMS``, a form of it) take that form wherever it can run, for debugging.
``MVITV2_TRITON=1`` lets Triton's kernels run where they can.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .fast.compiled import compile_blocks
from .fast.context import observed
from .forms import FORMS, Form
from .plain import Windows, partition, split_cls_token, unpartition, window_counts

__all__ = ["CONVOLUTIONS", "HeadPool", "attention", "compile_blocks", "make_norm"]
__all__ += ["max_pool_skip", "mlp", "pool_heads", "split_qkv"]
logger = logging.getLogger(__name__)
REFERENCE = os.environ.get("MVITV2_REFERENCE") == "1"


def _forced() -> dict[str, str]:
    """{operation: form} from the environment; ValueError on an unknown form."""
    forced = {}
    for operation, forms in FORMS.items():
        variable, names = f"MVITV2_{operation.upper()}", [form.name for form in forms]
        name = os.environ.get(variable)
        if name is not None and name not in names:
            raise ValueError(f"{variable} must be one of {', '.join(names)}, got {name!r}")
        if name is not None:
            forced[operation] = name
    return forced


FORCED = _forced()
_said: set[tuple[str, str, str]] = set()


def choose(operation: str, *call: Any) -> Form:
    """The form that runs a call. Tracers and transforms get the definition."""
    *fast, definition = FORMS[operation]
    if REFERENCE or observed():
        return definition
    forced = FORCED.get(operation)
    for form in FORMS[operation]:
        if form.name == forced and form.can(*call):
            return form
    for form in fast:
        if form.should(*call) and form.can(*call):
            return form
    return definition


def run(operation: str, *call: Any) -> Any:
    form = choose(operation, *call)
    if not torch.compiler.is_compiling():
        first = call[0] if isinstance(call[0], Tensor) else call[0][0]
        said = (operation, form.name, first.device.type)
        if said not in _said:
            _said.add(said)
            logger.info("%s on %s runs as %s", operation, said[2], form.name)
    return form.run(*call)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tables: Sequence[Tensor | None],
    q_thw: Sequence[int],
    k_thw: Sequence[int],
    cls_token: bool = False,
    add_q: bool = False,
    windows: Windows | None = None,
) -> Tensor:
    """``plain.attention`` with positions from one stored (L, head_dim) table per axis, or None.

    Raises:
        ValueError: windows with a class token, or not equally many of queries and keys.
    """
    if windows:
        grids = ((q_thw, windows[0]), (k_thw, windows[1]))
        counts = [window_counts(*sizes) for sizes in grids]
        if cls_token:
            raise ValueError("windows must be None with cls_token=True: it has no window")
        if counts[0] != counts[1]:
            raise ValueError(f"windows must be equally many of queries and keys, got {counts}")
        if REFERENCE or observed():
            # Positions of what fills the windows too, as upstream has it and published FLOPs count.
            k, v = (partition(x, *grids[1]) for x in (k, v))
            out = attention(partition(q, *grids[0]), k, v, tables, *windows)
            out = unpartition(out, q.shape[0], *grids[0])
            return out + q if add_q else out
    axes = [axis for axis, table in enumerate(tables) if table is not None]
    terms = _terms(q, tables, q_thw, k_thw, cls_token, windows) if axes else []
    return run("attention", q, k, v, terms, axes, q_thw, k_thw, cls_token, add_q, windows)


def _terms(
    q: Tensor,
    tables: Sequence[Tensor | None],
    q_thw: Sequence[int],
    k_thw: Sequence[int],
    cls_token: bool,
    windows: Windows | None,
) -> list[Tensor]:
    """Terms of positions. What they are made from is freed before attention runs."""
    rows = [axis_rows(*axis) for axis in zip(tables, q_thw, k_thw, *(windows or ()), strict=True)]
    # Contiguous once, or each axis would copy what the class token's row parts from it.
    queries = split_cls_token(q, cls_token)[1].contiguous()
    return run("terms", queries, rows, q_thw)


def axis_rows(table: Tensor | None, q_size: int, k_size: int, *windows: int) -> Tensor | None:
    """Rows of one axis: (q_size, k_size, head_dim), with the sizes of windows on it, if any."""
    if table is None:
        return None
    rows = run("rows", table, *(windows or (q_size, k_size)))
    # The same in each window that the queries fall into.
    return rows.repeat(*window_counts([q_size], windows[:1]), 1, 1)[:q_size] if windows else rows


def split_qkv(x: Tensor, linear: nn.Module) -> tuple[Tensor, ...]:
    return run("split_qkv", x, linear)


def pool_heads(
    xs: Sequence[Tensor],
    thw: Sequence[int],
    pools: Sequence[Any],
    norms: Sequence[Any],
    cls_token: bool,
) -> tuple[Sequence[Tensor], tuple[int, ...]]:
    return run("pool_heads", xs, thw, pools, norms, cls_token)


def max_pool_skip(x: Tensor, thw: Sequence[int], stride: Sequence[int], cls_token: bool) -> Tensor:
    return run("max_pool_skip", x, thw, stride, cls_token)


def mlp(x: Tensor, fc1: nn.Module, act: nn.Module, fc2: nn.Module, drop: nn.Module) -> Tensor:
    return run("mlp", x, fc1, act, fc2, drop)


def drop_path(x: Tensor, keep: float) -> Tensor:
    return run("drop_path", x, keep)


class HeadPool(nn.Module):
    """Depthwise convolution over the grid with one set of weights shared by all heads.

    Args:
        head_dim: channels of a head; ``weight`` is (head_dim, 1, *kernel), as on disk.
        kernel, stride: one size per axis; padding is kernel // 2.
    """

    of_tensors = True  # a form may run it by its tensors alone

    def __init__(self, head_dim: int, kernel: Sequence[int], stride: Sequence[int]) -> None:
        super().__init__()
        self.kernel, self.stride = tuple(kernel), tuple(stride)
        self.weight = nn.Parameter(torch.empty(head_dim, 1, *kernel))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))  # as nn.Conv starts

    def forward(self, x: Tensor) -> Tensor:
        """(B, *grid, heads * head_dim) -> (B, *pooled grid, heads * head_dim)."""
        return run("pool", x, self.weight, self.stride)


class LayerNorm(nn.LayerNorm):
    """PyTorch's, through the door."""

    of_tensors = True

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return run("layer_norm", x, self.normalized_shape, self.weight, self.bias, self.eps)


def make_norm(norm_layer: Callable[[int], nn.Module], channels: int) -> nn.Module:
    """A norm of ``channels``; where it is PyTorch's LayerNorm with weights, ours."""
    norm = norm_layer(channels)
    if type(norm) is nn.LayerNorm and norm.weight is not None:
        norm.__class__ = LayerNorm
    return norm


class _Convolution(nn.Module):
    """PyTorch's module of as many axes, through the door."""

    def forward(self: Any, x: Tensor) -> Tensor:
        """(B, C, *grid) -> (B, C', *grid')."""
        return run("convolution", x, self.weight, self.bias, self.stride, self.padding)


class Conv1d(_Convolution, nn.Conv1d):
    pass


class Conv2d(_Convolution, nn.Conv2d):
    pass


class Conv3d(_Convolution, nn.Conv3d):
    pass


CONVOLUTIONS: tuple[Any, ...] = (Conv1d, Conv2d, Conv3d)
