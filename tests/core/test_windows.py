"""Windows of a grid, and the chunks that attention takes them in."""

import itertools
from math import ceil, prod

import pytest
import torch
from torch import Tensor

from mvitv2_core import ops
from mvitv2_core.fast.window_chunks import Layout, window_chunks
from mvitv2_core.plain import partition, unpartition
from tests.compare import error
from tests.forms import attend_plain, forced

# Grids of one to three axes and windows that fit, that are cut at the ends, that exceed the grid.
LAYOUTS = [
    ((1,), (1,)),
    ((3000,), (3000,)),
    ((1025,), (100,)),
    ((8, 12), (4, 4)),
    ((9, 13), (4, 5)),
    ((70, 66), (56, 14)),
    ((3, 5), (7, 7)),
    ((5, 9, 4), (2, 4, 4)),
    ((0, 5), (2, 2)),
]


@pytest.mark.parametrize("batch", [0, 1, 5])
@pytest.mark.parametrize(("grid", "window"), LAYOUTS)
@pytest.mark.parametrize("heads", [1, 3, 8])
@pytest.mark.parametrize("keys", [1, 49, 1088])
@pytest.mark.parametrize("by_heads", [False, True])
@pytest.mark.parametrize("limit", [1, 2**13, 2**17])
def test_chunks(
    batch: int,
    grid: tuple[int, ...],
    window: tuple[int, ...],
    heads: int,
    keys: int,
    by_heads: bool,
    limit: int,
) -> None:
    """They cover every query of every head once, with the keys of its window, in bounds."""
    windows = [ceil(n / w) for n, w in zip(grid, window, strict=True)]
    # Each query knows its window and head, each key too.
    cells = torch.meshgrid(*(torch.arange(n) for n in (batch, *grid, heads)), indexing="ij")
    own = cells[0]
    for cell, size, count in zip(cells[1:-1], window, windows, strict=True):
        own = own * count + cell // size
    own = (own * heads + cells[-1] + 1).view(batch, prod(grid), heads, 1)
    # Keys stand along the last axis of a window; the last of the grid's are zeros that fill it.
    k_window = (*(1 for _ in window[1:]), keys)
    k_grid = (*windows[:-1], windows[-1] * keys - (keys - 1) // 2)
    layout = Layout(batch, heads, grid, window, k_grid, k_window)
    k = torch.arange(1, batch * prod(windows) * heads + 1).view(batch, prod(windows), 1, heads, 1)
    k = (
        k.expand(-1, -1, keys, -1, -1)
        .flatten(1, 2)
        .unflatten(1, (*windows[:-1], windows[-1] * keys))
    )
    k = k[(slice(None),) * len(grid) + (slice(k_grid[-1]),)].flatten(1, len(grid))
    seen = torch.zeros_like(own)
    gathered = torch.zeros(k.shape, dtype=torch.long)
    most = 2**15
    for chunk in window_chunks(layout, limit, by_heads, least=64, most=most):
        queries, its_keys = chunk.of_queries(own), chunk.of_keys(k)
        assert queries.shape[0] == its_keys.shape[0] and its_keys.shape[1] == keys
        assert (queries == its_keys[:, :1]).all()
        assert ((its_keys == its_keys[:, :1]) | (its_keys == 0)).all()
        count, rows = queries.numel(), queries.shape[1]
        one_row = count == rows * queries.shape[2] and rows <= prod(window[1:])
        assert count and (count * keys <= max(limit, most) or one_row)
        if not by_heads:
            assert queries.shape[2] == heads
        chunk.put_queries(seen, chunk.of_queries(seen) + 1)
        chunk.add_keys(gathered, torch.ones_like(its_keys))
    assert (seen == 1).all()
    if by_heads and keys * prod(window) * heads <= limit:
        assert (gathered == 1).all()  # windows stay whole where they may


def test_few_queries_with_many_keys_stay_together() -> None:
    """``least`` queries at a time, as long as ``most`` logits hold them."""
    layout = Layout(1, 2, (3000,), (3000,), (1088,), (1088,))
    sizes = [
        c.of_queries(torch.empty(1, 3000, 2, 1)).shape[1:3] for c in window_chunks(layout, 2**13)
    ]
    assert {rows for rows, _ in sizes} <= {1, 2, 3} and {heads for _, heads in sizes} == {2}
    parts = list(window_chunks(layout, 2**13, True, least=1000, most=2**21))
    sizes = [c.of_queries(torch.empty(1, 3000, 2, 1)).shape[1:3] for c in parts]
    assert sizes == [(1000, 1)] * 6


@pytest.mark.parametrize(("grid", "window"), [case for case in LAYOUTS if prod(case[0])])
def test_partition(grid: tuple[int, ...], window: tuple[int, ...]) -> None:
    """Each window holds its cells in order and zeros beyond the grid; the way back drops those."""
    x = torch.randn(2, prod(grid), 3, 4, dtype=torch.float64)
    parts = partition(x, grid, window)
    counts = [ceil(n / w) for n, w in zip(grid, window, strict=True)]
    assert parts.shape == (2 * prod(counts), prod(window), 3, 4)
    whole = x.unflatten(1, grid)
    places = itertools.product(range(2), *(range(c) for c in counts))
    for part, (sample, *place) in zip(parts, places, strict=True):
        cut = whole[
            (sample, *(slice(i * w, i * w + w) for i, w in zip(place, window, strict=True)))
        ]
        wanted = torch.zeros(*window, 3, 4, dtype=torch.float64)
        wanted[tuple(slice(0, n) for n in cut.shape[: len(window)])] = cut
        assert torch.equal(part, wanted.flatten(0, len(window) - 1))
    assert torch.equal(unpartition(parts, 2, grid, window), x)


WINDOWED = {
    "cut at both ends": ((9, 13), (5, 7), (4, 4), (2, 2)),
    "whole": ((8, 8), (4, 4), (4, 4), (2, 2)),
    "smaller than a window": ((3, 2), (2, 1), (4, 4), (2, 2)),
    "same grid": ((5, 6), (5, 6), (4, 4), (4, 4)),
    "more keys than queries": ((5, 6), (9, 12), (4, 4), (8, 8)),
    "clip": ((3, 5, 6), (3, 3, 3), (2, 4, 4), (2, 2, 2)),
}


@pytest.mark.parametrize(
    ("path", "limit"),
    [("plain", 0), ("folded", 0), ("chunked", 2**21), ("chunked", 300), ("chunked", 1)],
)
@pytest.mark.parametrize("add_q", [False, True])
@pytest.mark.parametrize("name", WINDOWED)
def test_windows_equal_plain(name: str, add_q: bool, path: str, limit: int) -> None:
    """Values and gradients, whether windows are parted by copies or chunk by chunk."""
    q_thw, k_thw, *windows = WINDOWED[name]
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    q, k, v = (draw(2, prod(thw), 3, 4) for thw in (q_thw, k_thw, k_thw))
    tables = [draw(2 * max(a, b), 4) for a, b in zip(*windows, strict=True)]
    with forced(limit, attention=path):
        got = ops.attention(q, k, v, tables, q_thw, k_thw, add_q=add_q, windows=tuple(windows))
    parts = [
        partition(x, thw, window)
        for x, thw, window in ((q, q_thw, windows[0]), *((x, k_thw, windows[1]) for x in (k, v)))
    ]
    out = attend_plain(*parts, tables, *windows)
    expected = unpartition(out, 2, q_thw, windows[0]) + (q if add_q else 0)
    assert error(got, expected) < 1e-12
    weight = torch.randn(expected.shape, dtype=torch.float64)
    leaves = [q, k, v, *tables]
    for ours, reference in zip(
        chunked_grad(got, leaves, weight, limit),
        torch.autograd.grad(expected, leaves, weight),
        strict=True,
    ):
        assert error(ours, reference) < 1e-10


def chunked_grad(
    out: Tensor, leaves: list[Tensor], weight: Tensor, limit: int
) -> tuple[Tensor, ...]:
    with forced(limit):
        return torch.autograd.grad(out, leaves, weight)


def test_windows_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="equally many windows"):
        Layout(1, 1, (9,), (4,), (4,), (2,))
    q = torch.zeros(1, 4, 1, 8)
    with pytest.raises(ValueError, match="windows must be None with cls_token"):
        ops.attention(q, q, q, [None], (3,), (3,), True, windows=((2,), (2,)))
    with pytest.raises(ValueError, match="equally many"):
        ops.attention(q, q, q, [None], (4,), (4,), windows=((2,), (4,)))
