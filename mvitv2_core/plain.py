"""The definition of every operation that has a fast form, as the paper has it and no faster.

``MVITV2_REFERENCE=1`` runs nothing else; every fast form is tested against these.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .sizes import equal_sizes, laid_out

Windows = tuple[Sequence[int], Sequence[int]]


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
    """softmax(q k^T / sqrt(head_dim) + positions) v (paper, section 4.1), in whole matrices.

    Args:
        q: (B, Nq, heads, head_dim) queries; the class token's row first, if any.
        k, v: (B, Nk, heads, head_dim) keys and values.
        terms: of ``rel_pos_terms``: one (B, Nq without class token, heads, k_size) per axis.
        axes: which axes these are of.
        q_thw, k_thw: live grids; ``Nq`` and ``Nk`` are their products, plus the class token.
        cls_token: whether row 0 is a class token, which takes part without positions.
        add_q: whether to add q (residual pooling), but for the class token's row, as upstream.
        windows: sizes of the windows of q and of k and v: queries see the keys of their own
            window. Zeros that fill the last ones take part as keys: published AP depends on it.

    Returns:
        (B, Nq, heads, head_dim).
    """
    if windows:
        q_window, k_window = windows
        q_, *terms = (partition(x, q_thw, q_window) for x in (q, *terms))
        k, v = (partition(x, k_thw, k_window) for x in (k, v))
        out = unpartition(attention(q_, k, v, terms, axes, *windows), q.shape[0], q_thw, q_window)
        return out + q if add_q else out
    first = int(cls_token)
    # Content logits are scaled, positions' are not. A tracer's size is a tensor, its power float32.
    scale = torch.full((), q.shape[-1], dtype=torch.float64) ** -0.5
    # (B, heads, Nq, head_dim) @ (B, heads, head_dim, Nk)
    logits = (q * scale).transpose(1, 2) @ k.permute(0, 2, 3, 1)
    for axis, term in zip(axes, terms, strict=True):
        # -> (B, heads, Nq, 1.., k_size, ..1) -> (B, heads, Nq, Nk)
        shape = [k_thw[a] if a == axis else 1 for a in range(len(k_thw))]
        positions = term.transpose(1, 2).unflatten(-1, shape)
        positions = positions.expand(*positions.shape[:3], *k_thw).flatten(3)
        logits = logits + F.pad(positions, (first, 0, first, 0))
    out = (logits.softmax(dim=-1) @ v.transpose(1, 2)).transpose(1, 2)
    return add_residual(out, q, cls_token) if add_q else out


def add_residual(out: Tensor, q: Tensor, cls_token: bool) -> Tensor:
    """``out + q`` of (B, Nq, heads, head_dim) rows, but for the class token's."""
    row, others = split_cls_token(out, cls_token)
    return join_cls_token(row, others + split_cls_token(q, cls_token)[1])


def window_counts(grid: Sequence[int], window: Sequence[int]) -> list[int]:
    """How many windows lie along an axis each; no negative is divided, which ONNX rounds up."""
    return [(n + w - 1) // w for n, w in zip(grid, window, strict=True)]


def partition(x: Tensor, grid: Sequence[int], window: Sequence[int]) -> Tensor:
    """(B, N, heads, d) -> (B * windows, cells of one, heads, d), filled up with zeros."""
    axes, counts = len(grid), window_counts(grid, window)
    fill = [c * w - n for c, w, n in zip(counts, window, grid, strict=True)]
    x = x.unflatten(1, tuple(grid))
    if not equal_sizes(fill, [0] * axes):  # on the right and at the bottom
        x = F.pad(x, [0] * 4 + [n for end in reversed(fill) for n in (0, end)])
    for axis in reversed(range(axes)):
        x = x.unflatten(1 + axis, (counts[axis], window[axis]))
    # (B, count, w, count, w, ..., heads, d) -> (B, count, count, ..., w, w, ..., heads, d)
    order = [*range(1, 2 * axes, 2), *range(2, 2 * axes + 1, 2)]
    return laid_out(x.permute(0, *order, -2, -1), grid).flatten(1 + axes, 2 * axes).flatten(0, axes)


def unpartition(x: Tensor, batch: int, grid: Sequence[int], window: Sequence[int]) -> Tensor:
    """(B * windows, cells of one, heads, d) -> (B, N, heads, d), without what filled them."""
    axes, counts = len(grid), window_counts(grid, window)
    x = x.unflatten(1, tuple(window)).unflatten(0, (batch, *counts))
    # (B, count, count, ..., w, w, ..., heads, d) -> (B, count, w, count, w, ..., heads, d)
    x = x.permute(0, *(d for axis in range(axes) for d in (1 + axis, 1 + axes + axis)), -2, -1)
    x = laid_out(x, grid)
    for axis, size in enumerate(grid):
        x = x.flatten(1 + axis, 2 + axis).narrow(1 + axis, 0, size)
    return laid_out(x, grid).flatten(1, axes)


def split_qkv(x: Tensor, linear: nn.Module) -> tuple[Tensor, ...]:
    """(B, N, dim) -> queries, keys and values, each (B, N, dim_att)."""
    return linear(x).chunk(3, dim=-1)


def pool_heads(
    xs: Sequence[Tensor],
    thw: Sequence[int],
    pools: Sequence[Any],
    norms: Sequence[Any],
    cls_token: bool,
) -> tuple[Sequence[Tensor], tuple[int, ...]]:
    """(B, N, heads, head_dim) each -> (B, N', heads, head_dim), pooled and normed, and the grid.

    ``xs`` is q alone, or k and v, on grid ``thw``; ``pools`` and ``norms`` are the modules of each,
    since hooks on them count, or None for no pool and no norm.
    """
    if pools[0] is None:
        return xs, tuple(thw)
    pooled = []
    for x, pool, norm in zip(xs, pools, norms, strict=True):
        row, others = split_cls_token(x.flatten(2), cls_token)
        grid = pool(others.unflatten(1, tuple(thw)))
        # The class token passes the convolution by, not the norm.
        tokens = join_cls_token(row, grid.flatten(1, -2))
        pooled.append(norm(tokens.unflatten(-1, x.shape[2:])))
    return pooled, tuple(grid.shape[1:-1])


def pool(x: Tensor, weight: Tensor, stride: Sequence[int]) -> Tensor:
    """Depthwise convolution over the grid, one set of weights for all heads.

    (B, *grid, heads * head_dim) * (head_dim, 1, *kernel) -> (B, *pooled grid, heads * head_dim),
    with padding kernel // 2.
    """
    batch, heads = x.shape[0], x.shape[-1] // weight.shape[0]
    # -> (B * heads, head_dim, *grid)
    x = x.unflatten(-1, (heads, -1)).movedim((-2, -1), (1, 2)).flatten(0, 1).contiguous()
    padding = [n // 2 for n in weight.shape[2:]]
    x = convolution(x, weight, None, tuple(stride), padding, 1, weight.shape[0])
    return x.unflatten(0, (batch, heads)).movedim((1, 2), (-2, -1)).flatten(-2)


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
    """(B, C, *grid) -> (B, C', *grid'), on one to three axes; PyTorch's options."""
    return (F.conv1d, F.conv2d, F.conv3d)[weight.ndim - 3](x, weight, bias, *options)


def mlp(x: Tensor, fc1: nn.Module, act: nn.Module, fc2: nn.Module, drop: nn.Module) -> Tensor:
    """(B, N, dim) -> (B, N, dim_out)."""
    return drop(fc2(drop(act(fc1(x)))))


def drop_path(x: Tensor, keep: float) -> Tensor:
    """(B, ...) with whole samples zero, the others with probability ``keep`` and over it."""
    return x * x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep).div_(keep)


def max_pool_skip(x: Tensor, thw: Sequence[int], stride: Sequence[int], cls_token: bool) -> Tensor:
    """Max-pools the shortcut's (B, N, C) tokens to pooled q's grid; the class token passes by."""
    if max(stride) == 1:
        return x
    row, x = split_cls_token(x, cls_token)
    kernel = [s + 1 if s > 1 else 1 for s in stride]
    max_pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(stride) - 1]
    grid = x.unflatten(1, tuple(thw)).movedim(-1, 1)
    grid = max_pool(grid, kernel, tuple(stride), [k // 2 for k in kernel])
    return join_cls_token(row, grid.flatten(2).transpose(1, 2))


def split_cls_token(x: Tensor, cls_token: bool) -> tuple[Tensor | None, Tensor]:
    """(B, N, ...) tokens -> views of the class token's row, if there is one, and of the others."""
    if not cls_token:
        return None, x
    # One split, whose gradient is one concatenation; that of two slices is two sums with zeros.
    row, others = x.split((1, x.shape[1] - 1), dim=1)
    return row, others


def join_cls_token(row: Tensor | None, others: Tensor) -> Tensor:
    """What ``split_cls_token`` took apart."""
    return others if row is None else torch.cat([row, others], dim=1)
