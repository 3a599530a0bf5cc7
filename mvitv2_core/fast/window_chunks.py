"""Windows of a grid in chunks: some heads of equal windows, or some queries of one window."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil, prod

from torch import Tensor

from ..plain import partition, unpartition, window_counts


def _windows_first(x: Tensor, counts: Sequence[int], cells: Sequence[int]) -> Tensor:
    """(B, count * cells, ..., heads, head_dim) -> (B, count, ..., cells, ..., heads, head_dim)."""
    axes = len(counts)
    for axis in reversed(range(axes)):
        x = x.unflatten(1 + axis, (counts[axis], cells[axis]))
    outer, inner = range(1, 2 * axes, 2), range(2, 2 * axes + 1, 2)
    return x.permute(0, *outer, *inner, 2 * axes + 1, 2 * axes + 2)


def _merge(x: Tensor) -> Tensor:
    """(B, count, ..., cells, ..., heads, head_dim) -> (windows, cells, heads, head_dim)."""
    axes = (x.ndim - 3) // 2
    shape = prod(x.shape[: 1 + axes]), prod(x.shape[1 + axes : 1 + 2 * axes])
    return x.reshape(*shape, *x.shape[-2:])


@dataclass(frozen=True)
class Layout:
    """How queries and keys lie in windows. All attention without windows is one window.

    Args:
        batch, heads: of queries and keys.
        q_grid, q_window: one size per axis. Queries beyond the grid are never computed.
        k_grid, k_window: the same of keys, which have as many windows along each axis. Keys beyond
            the grid are zeros.

    Raises:
        ValueError: where queries and keys fall into different numbers of windows.
    """

    batch: int
    heads: int
    q_grid: tuple[int, ...]
    q_window: tuple[int, ...]
    k_grid: tuple[int, ...]
    k_window: tuple[int, ...]

    def __post_init__(self) -> None:
        grids = ((self.q_grid, self.q_window), (self.k_grid, self.k_window))
        q, k = (window_counts(*sizes) for sizes in grids)
        if q != k:
            raise ValueError(f"queries and keys must have equally many windows: {self}")


@dataclass(frozen=True)
class Chunk:
    """Some heads of equal windows, or of some queries of one window.

    Args:
        layout: what it is a part of.
        batch, heads: slices.
        windows: slice of the windows along each axis.
        queries: slice of the queries' grid along each axis.
    """

    layout: Layout
    batch: slice
    windows: tuple[slice, ...]
    queries: tuple[slice, ...]
    heads: slice

    def of_queries(self, x: Tensor) -> Tensor:
        """(B, N, heads, d) -> its (windows, queries, heads, d); a copy where they scatter."""
        return _merge(self._queries(x))

    def put_queries(self, x: Tensor, part: Tensor) -> None:
        """Writes what ``of_queries`` would read."""
        view = self._queries(x)
        axes = len(self.windows)
        part = part.unflatten(1, view.shape[1 + axes : 1 + 2 * axes])
        view.copy_(part.unflatten(0, view.shape[: 1 + axes]))

    def of_keys(self, x: Tensor) -> Tensor:
        """(B, N, heads, d) -> its (windows, keys of one, heads, d), those beyond the grid zeros."""
        keys = self._keys(x)
        return partition(keys.flatten(1, -3), keys.shape[1:-2], self.layout.k_window)

    def add_keys(self, x: Tensor, part: Tensor) -> None:
        """Adds to what ``of_keys`` would read, and drops what it would fill."""
        view = self._keys(x)
        part = unpartition(part, view.shape[0], view.shape[1:-2], self.layout.k_window)
        view.add_(part.view_as(view))

    def _queries(self, x: Tensor) -> Tensor:
        """-> (b, windows, ..., queries, ..., heads, d)."""
        x = x.unflatten(1, self.layout.q_grid)[(self.batch, *self.queries, self.heads)]
        counts = [windows.stop - windows.start for windows in self.windows]
        cells = [size // count for size, count in zip(x.shape[1:], counts, strict=False)]
        return _windows_first(x, counts, cells)

    def _keys(self, x: Tensor) -> Tensor:
        """-> (b, cells of windows, ..., heads, d), without what fills them."""
        cells = (
            slice(windows.start * size, windows.stop * size)
            for windows, size in zip(self.windows, self.layout.k_window, strict=True)
        )
        return x.unflatten(1, self.layout.k_grid)[(self.batch, *cells, self.heads)]


def window_chunks(
    layout: Layout, limit: int, by_heads: bool = False, least: int = 1, most: int = 0
) -> Iterator[Chunk]:
    """Chunks that cover all queries of all heads, with at most ``limit`` logits each.

    Whole samples, windows or heads where these have no more than that. Else equal parts of a
    window's rows (first axis), each with no fewer than ``least`` queries as long as they have no
    more than ``most`` logits; at least one row.

    Args:
        limit, most: logits of a chunk.
        by_heads: whether heads may be parted too.
        least: queries of a part of a window.
    """
    keys = prod(layout.k_window)
    kinds = (_kinds(n, w) for n, w in zip(layout.q_grid, layout.q_window, strict=True))
    for kind in product(*kinds):  # inner windows, and those that the grid's ends cut
        firsts, counts, cells = zip(*kind, strict=True)
        in_row = prod(cells[1:])
        per_row = max(in_row * keys * (1 if by_heads else layout.heads), 1)
        rows, room = cells[0], limit // (per_row * cells[0])
        if not room:
            rows = max(limit // per_row, min(ceil(least / in_row), most // per_row), 1)
            rows = ceil(cells[0] / ceil(cells[0] / rows))
        extents = (layout.batch, *counts, layout.heads if by_heads else 1)
        steps: list[int] = []
        for extent in reversed(extents):
            parts = ceil(extent / max(room, 1))
            steps.insert(0, max(ceil(extent / max(parts, 1)), 1))
            room //= steps[0]
        ranges = (range(0, extent, step) for extent, step in zip(extents, steps, strict=True))
        for *starts, row in product(*ranges, range(0, cells[0], rows)):
            batch, *inside, heads = (
                slice(start, min(start + step, extent))
                for start, step, extent in zip(starts, steps, extents, strict=True)
            )
            windows = [
                slice(first + part.start, first + part.stop)
                for first, part in zip(firsts, inside, strict=True)
            ]
            queries = [
                slice(part.start * size, (part.stop - 1) * size + n)
                for part, size, n in zip(windows, layout.q_window, cells, strict=True)
            ]
            if rows < cells[0]:  # of one window
                start = queries[0].start + row
                queries[0] = slice(start, min(start + rows, queries[0].stop))
            if not by_heads:
                heads = slice(0, layout.heads)
            yield Chunk(layout, batch, tuple(windows), tuple(queries), heads)


def _kinds(size: int, window: int) -> Iterator[tuple[int, int, int]]:
    """Whole windows along an axis, and what is left: the first, how many, their cells."""
    whole, left = divmod(size, window)
    if whole:
        yield 0, whole, window
    if left:
        yield whole, 1, left
