"""What chosen queries of a block attend to, by the plain definition (paper, section 4.1).

Weights are computed for a chunk of queries at a time: no tensor holds all queries by all keys, so
that images of detection size and long clips fit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from math import prod
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
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

    ``q_thw`` and ``k_thw`` are the pooled grids of its queries and keys.
    """

    def __init__(self, attn: Any, x: Tensor, thw: Sequence[int]) -> None:
        heads = (attn.num_heads, attn.head_dim)
        q, k, _ = (part.unflatten(-1, heads) for part in plain.split_qkv(x, attn.qkv))
        pools_q, pools_k = ([attn.pool_q], [attn.norm_q]), ([attn.pool_k], [attn.norm_k])
        (self.q,), self.q_thw = plain.pool_heads([q], thw, *pools_q, attn.cls_token)
        (self.k,), self.k_thw = plain.pool_heads([k], thw, *pools_k, attn.cls_token)
        self.cls, self.windows = int(attn.cls_token), attn.windows
        tables = [getattr(attn, f"rel_pos_{axis}") for axis in attn.axes]
        self.axes = [axis for axis, table in enumerate(tables) if table is not None]
        sizes = zip(tables, self.q_thw, self.k_thw, *(self.windows or ()), strict=True)
        rows = [axis_rows(*axis) for axis in sizes]
        terms = rel_pos_terms(self.q[:, self.cls :], rows, self.q_thw)
        # The class token's query has no positions.
        self.terms = [F.pad(term, (0, 0, 0, 0, self.cls, 0)) for term in terms]

    def apply(self, rows: Tensor) -> Tensor:
        """Weighted sums of the queries' attention.

        Args:
            rows: (B, n, Nq) a factor for each query; class token first.

        Returns:
            (B, n, heads, Nk) ``rows @ softmax`` for each head; class token first.
        """
        if self.windows is None:
            return self._sum(rows, self.q, self.k, self.terms, self.k_thw).transpose(1, 2)
        q_window, k_window = self.windows
        q, *terms = (plain.partition(t, self.q_thw, q_window) for t in (self.q, *self.terms))
        k = plain.partition(self.k, self.k_thw, k_window)
        # (B, n, Nq) -> (B, Nq, n, 1) -> (B * windows, cells, n, 1) -> (B * windows, n, cells)
        parts = plain.partition(rows.transpose(1, 2)[..., None], self.q_thw, q_window)
        summed = self._sum(parts[..., 0].transpose(1, 2), q, k, terms, k_window)
        # (B * windows, heads, n, cells) -> (B * windows, cells, heads, n) -> (B, Nk, heads, n)
        summed = plain.unpartition(summed.permute(0, 3, 1, 2), len(rows), self.k_thw, k_window)
        return summed.permute(0, 3, 2, 1)

    def _sum(
        self, rows: Tensor, q: Tensor, k: Tensor, terms: Iterable[Tensor], k_thw: Sequence[int]
    ) -> Tensor:
        """(B, n, Nq) -> (B, heads, n, Nk), of queries with a factor alone."""
        batch, keys, heads, _ = k.shape
        total = q.new_zeros(batch, heads, rows.shape[1], keys)
        used = rows.flatten(0, 1).any(dim=0).nonzero()[:, 0]
        for index in used.split(max(1, CHUNK // (batch * heads * keys))):
            chosen = [term[:, index] for term in terms]
            weights = self._logits(q[:, index], k, chosen, k_thw).softmax(dim=-1)
            # (B, 1, n, chunk) @ (B, heads, chunk, Nk)
            total += rows[:, None, :, index] @ weights
        return total

    def _logits(
        self, q: Tensor, k: Tensor, terms: Sequence[Tensor], k_thw: Sequence[int]
    ) -> Tensor:
        """``plain.attention``'s, of a chunk of queries: (B, heads, chunk, Nk)."""
        logits = (q * q.shape[-1] ** -0.5).transpose(1, 2) @ k.permute(0, 2, 3, 1)
        for axis, term in zip(self.axes, terms, strict=True):
            # -> (B, heads, chunk, 1.., k_size, ..1) -> (B, heads, chunk, Nk)
            shape = [k_thw[a] if a == axis else 1 for a in range(len(k_thw))]
            positions = term.transpose(1, 2).unflatten(-1, shape)
            positions = positions.expand(*positions.shape[:3], *k_thw).flatten(3)
            logits = logits + F.pad(positions, (self.cls, 0))
        return logits


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
    row, grid = weights.split((attention.cls, prod(attention.k_thw)), dim=-1)
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
