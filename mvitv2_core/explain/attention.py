"""What chosen queries of a block attend to, by the plain definition (paper, section 4.1).

Weights are computed for a chunk of queries at a time: no tensor holds all queries by all keys, so
that images of detection size and long clips fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from math import prod
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from .. import plain
from ..block import MultiScaleBlock
from ..checks import is_whole, refuse
from ..model import MViT
from ..ops import axis_rows
from ..rel_pos import rel_pos_terms

CHUNK = 2**22  # attention weights that are held at a time (16 MiB of float32)
Query = str | tuple[int | slice, ...]


class AttentionMaps(NamedTuple):
    """What queries attend to: each query's and head's weights, which sum to 1.

    Attributes:
        grid: (B, queries, heads, *k_thw) weights of the keys' cells. In windows, keys of other
            windows have 0; what lies on zeros that fill a window is in no cell.
        cls: (B, queries, heads) weights of the class token; None without one.
    """

    grid: Tensor
    cls: Tensor | None


class BlockAttention:
    """One block's softmax weights, which are never held all together.

    Args:
        attn: a block's ``attn``.
        x: (B, N, dim) normalised tokens that come into it.
        thw: their grid.

    ``q_thw`` and ``k_thw`` are the pooled grids of its queries and keys. No gradient flows back.
    """

    @torch.no_grad()
    def __init__(self, attn: Any, x: Tensor, thw: Sequence[int]) -> None:
        heads = (attn.num_heads, attn.head_dim)
        q, k, _ = (part.unflatten(-1, heads) for part in plain.split_qkv(x, attn.qkv))
        pools_q, pools_k = ([attn.pool_q], [attn.norm_q]), ([attn.pool_k], [attn.norm_k])
        (self.q,), self.q_thw = plain.pool_heads([q], thw, *pools_q, attn.cls_token)
        (self.k,), self.k_thw = plain.pool_heads([k], thw, *pools_k, attn.cls_token)
        self.cls, self.windows = attn.cls_token, attn.windows
        tables = [getattr(attn, f"rel_pos_{axis}") for axis in attn.axes]
        self.axes = [axis for axis, table in enumerate(tables) if table is not None]
        sizes = zip(tables, self.q_thw, self.k_thw, *(self.windows or ()), strict=True)
        rows = [axis_rows(*axis) for axis in sizes]
        cells = plain.split_cls_token(self.q, self.cls)[1]
        self.terms = rel_pos_terms(cells, rows, self.q_thw)

    def apply(self, rows: Tensor) -> Tensor:
        """Weighted sums of the queries' attention.

        Args:
            rows: (B, n, Nq) a factor for each query; class token first.

        Returns:
            (B, n, heads, Nk) ``rows @ softmax`` for each head; class token first.
        """
        # (B, n, Nq) -> (B, Nq, 1, n)
        factors = rows.transpose(1, 2)[:, :, None]
        if self.windows is None:
            summed = self._sum(factors, self.q, self.k, self.terms, self.k_thw)
        else:
            q_window, k_window = self.windows
            parts = (factors, self.q, *self.terms)
            factors, q, *terms = (plain.partition(x, self.q_thw, q_window) for x in parts)
            k = plain.partition(self.k, self.k_thw, k_window)
            summed = self._sum(factors, q, k, terms, k_window)
            summed = plain.unpartition(summed, len(rows), self.k_thw, k_window)
        # (B, Nk, heads, n) -> (B, n, heads, Nk)
        return summed.permute(0, 3, 2, 1)

    def _sum(
        self, factors: Tensor, q: Tensor, k: Tensor, terms: Sequence[Tensor], k_thw: Sequence[int]
    ) -> Tensor:
        """(B, Nq, 1, n) -> (B, Nk, heads, n), of queries with a factor alone.

        ``rows @ softmax`` is the gradient of ``rows * (softmax @ v)`` by v, whatever v is: the
        weights are those of the plain definition itself.
        """
        batch, keys, heads, _ = k.shape
        row, factors = plain.split_cls_token(factors, self.cls)
        q_row, q = plain.split_cls_token(q, self.cls)
        total = k.new_zeros(batch, keys, heads, factors.shape[-1])
        used = factors.transpose(0, 1).flatten(1).any(dim=1).nonzero()[:, 0]
        for index in used.split(max(1, CHUNK // (batch * heads * keys) - int(self.cls))):
            # The class token's row leads every chunk, and counts in the first.
            chunk = plain.join_cls_token(q_row, q[:, index])
            chosen = [term[:, index] for term in terms]
            with torch.inference_mode(False), torch.enable_grad():
                v = torch.zeros_like(total, requires_grad=True)
                grids = (self.q_thw, k_thw)
                out = plain.attention(chunk, k, v, chosen, self.axes, *grids, self.cls)
            counted = plain.join_cls_token(row, factors[:, index]).expand_as(out)
            total += torch.autograd.grad(out, v, counted)[0]
            row = None if row is None else torch.zeros_like(row)
        return total


@torch.no_grad()
def attention_maps(
    model: MViT, x: Tensor, block: int, queries: Sequence[Query] = ("mean",)
) -> AttentionMaps:
    """What chosen queries of a block attend to.

    Args:
        model: a trunk, classifier, detectron2 backbone or PySlowFast model.
        x: (B, C, *spatial) images or clips.
        block: number of the block; negative ones from the end.
        queries: each "cls" for the class token, "mean" for the mean over the grid, or cells of
            the grid of pooled queries as an index of it: ``(3, 4)`` for one, ``(slice(0, 7),
            slice(7, 14))`` for the mean over a window of them; clips have the time in front.

    Raises:
        ValueError: a block or query that there is not.
    """
    tokens, thw, module = _before(model, x, block)
    attention = BlockAttention(module.attn, module.norm1(tokens), thw)
    rows = query_rows(queries, attention.q_thw, model.config.cls_token).to(attention.q)
    weights = attention.apply(rows.expand(len(tokens), -1, -1))
    row, grid = weights.split((int(attention.cls), prod(attention.k_thw)), dim=-1)
    maps = grid.unflatten(-1, attention.k_thw)
    return AttentionMaps(maps, row[..., 0] if attention.cls else None)


def block_index(model: MViT, block: int) -> int:
    """A block's number from 0; ValueError where there is no such block."""
    count = len(model.blocks)
    if not is_whole(block) or not -count <= block < count:
        refuse("block", f"from {-count} to {count - 1}", block)
    return block % count


def _before(model: MViT, x: Tensor, block: int) -> tuple[Tensor, tuple[int, ...], MultiScaleBlock]:
    """A block with the tokens that come into it and their grid; no later block runs."""
    index = block_index(model, block)
    before = next(islice(model.walk(x), index - 1, None)) if index else model.embed(x)
    return *before, blocks_of(model)[index]


def blocks_of(model: MViT) -> list[MultiScaleBlock]:
    """The blocks, as what they are."""
    return cast("list[MultiScaleBlock]", list(model.blocks))


def query_rows(queries: Sequence[Query], thw: Sequence[int], cls_token: bool) -> Tensor:
    """(queries, Nq) factors whose row is the mean over the tokens that a query names."""
    if isinstance(queries, str) or not queries:
        refuse("queries", "a sequence of queries", queries)
    rows = torch.zeros(len(queries), int(cls_token) + prod(thw), dtype=torch.float64)
    for row, query in zip(rows, queries, strict=True):
        if query == "cls":
            if not cls_token:
                refuse("queries", "without 'cls' for a model without class token", query)
            row[0] = 1
            continue
        grid = row[int(cls_token) :].view(*thw)
        if query == "mean":
            grid.fill_(1)
        elif isinstance(query, tuple) and len(query) == len(thw) and not _outside(query, thw):
            grid[query] = 1
        else:
            refuse("queries", f"'cls', 'mean' or indices of the grid {tuple(thw)}", query)
        row /= row.sum()
    return rows


def _outside(query: Sequence[int | slice], thw: Sequence[int]) -> bool:
    """Whether an index names no cell."""

    def named(part: int | slice, size: int) -> bool:
        if isinstance(part, slice):
            return len(range(*part.indices(size))) > 0
        return is_whole(part) and -size <= part < size

    return not all(named(part, size) for part, size in zip(query, thw, strict=True))
