"""Attention rollout over blocks whose pools change the grid."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..features import feature_grid
from ..model import MViT
from .attention import BlockAttention, Query, blocks_of, query_rows


@torch.no_grad()
def attention_rollout(model: MViT, x: Tensor, query: Query | None = None) -> Tensor:
    """How much each cell of the patch embedding's grid enters a query of the last block.

    Attention rollout (Abnar and Zuidema 2020, arXiv 2005.00928, section 3): a block passes on
    half of what its shortcut has and half of what its attention, averaged over heads, sees. Where
    pools change the grid, a cell stands for the equal mean of those under its kernel: a key for
    ``pool_k``'s, a cell of the shortcut for the max pool's. The class token is under no kernel.
    Residual pooling counts as the shortcut that it resembles, and the MLP, as there, as nothing.

    One query's row is carried from the last block to the first, so that memory is the tokens of
    every block and one chunk of weights, whatever the size of the image.

    Args:
        model, x: as for ``attention_maps``.
        query: of the last block, as there; None for the class token, else the mean.

    Returns:
        (B, *grid) shares, which sum to 1 but for the class token's and what fills windows.
    """
    stages = [model.embed(x), *model.walk(x)]
    cls = model.config.cls_token
    chosen: Query = query if query is not None else ("cls" if cls else "mean")
    tokens, thw = stages[-1]
    rows = query_rows([chosen], thw, cls).to(tokens).expand(len(tokens), -1, -1)
    for module, (tokens, before) in reversed(list(zip(blocks_of(model), stages, strict=False))):
        attention = BlockAttention(module.attn, module.norm1(tokens), before)
        seen = attention.apply(rows).mean(dim=2)
        pool: Any = module.attn.pool_k
        if pool is not None:
            seen = spread(seen, attention.k_thw, pool.kernel, pool.stride, before)
        stride = module.stride_q
        kernel = [s + 1 if s > 1 else 1 for s in stride]
        rows = (spread(rows, thw, kernel, stride, before) + seen) / 2
        thw = before
    return feature_grid(rows.transpose(1, 2), thw)[:, 0]


def spread(
    rows: Tensor, pooled: Sequence[int], kernel: Sequence[int], stride: Sequence[int],
    thw: Sequence[int],
) -> Tensor:  # fmt: skip
    """Hand each pooled cell's share in equal parts to the cells under its kernel.

    (B, n, prod(pooled)) -> (B, n, prod(thw)); a class token's share in front stays as it is.
    Padding is kernel // 2, as in every pool here, and no part goes to it.
    """
    cells = prod(pooled)
    row, grid = rows.split((rows.shape[-1] - cells, cells), dim=-1)
    if tuple(pooled) == tuple(thw) and max(kernel) == 1:
        return rows
    rank, padding = len(thw), [k // 2 for k in kernel]
    conv = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    back = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
    ones = rows.new_ones(1, 1, *kernel)
    under = conv(rows.new_ones(1, 1, *thw), ones, None, tuple(stride), padding)
    # (B, n, cells) -> (B * n, 1, *pooled) -> (B * n, 1, *thw) -> (B, n, prod(thw))
    grid = grid.flatten(0, 1).unflatten(1, (1, *pooled)) / under
    rest = [(n + 2 * p - k) % s for n, p, k, s in zip(thw, padding, kernel, stride, strict=True)]
    grid = back(grid, ones, None, tuple(stride), padding, rest).flatten(1)
    return torch.cat([row, grid.unflatten(0, rows.shape[:2])], dim=-1)
