"""Lists in a PySlowFast config: sizes per axis, and rows that each speak of one block."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mvitv2_core.checks import check_sizes, is_whole


def read_multipliers(name: str, rows: Any, blocks: range) -> dict[int, float]:
    """{block: multiplier} of rows [block, multiplier]."""
    multipliers: dict[int, float] = {}
    for row in _rows(f"MVIT.{name}", rows):
        block, multiplier = row if len(row) == 2 else (None, None)
        number = isinstance(multiplier, (int, float)) and not isinstance(multiplier, bool)
        known = is_whole(block) and block in blocks and block not in multipliers
        if not (known and number and 0 < multiplier < math.inf):  # type: ignore[operator]
            raise ValueError(
                f"MVIT.{name} must hold rows [block, multiplier > 0], each block of "
                f"{blocks.start} to {blocks.stop - 1} at most once, got {list(row)}"
            )
        multipliers[int(row[0])] = float(row[1])
    return multipliers


def read_strides(name: str, rows: Any, depth: int) -> dict[int, tuple[int, ...]]:
    """{block: (t, h, w)} of rows [block, t, h, w]."""
    strides: dict[int, tuple[int, ...]] = {}
    for row in _rows(f"MVIT.{name}", rows):
        if not row or not is_whole(row[0]) or row[0] not in range(depth) or row[0] in strides:
            raise ValueError(
                f"MVIT.{name} must hold rows [block, t, h, w], each block of 0 to {depth - 1} at "
                f"most once, got {list(row)}"
            )
        strides[row[0]] = read_sizes(f"MVIT.{name}", row[1:], 3)
    return strides


def read_windows(rows: Any, depth: int) -> dict[int, int]:
    """{block: window size} of rows [block, size] under MVITV2.WINDOW_SIZE."""
    windows: dict[int, int] = {}
    for row in _rows("MVITV2.WINDOW_SIZE", rows):
        whole = len(row) == 2 and all(map(is_whole, row))
        if not whole or row[0] not in range(depth) or row[0] in windows or row[1] < 1:
            raise ValueError(
                f"MVITV2.WINDOW_SIZE must hold rows [block, size >= 1], each block of 0 to "
                f"{depth - 1} at most once, got {list(row)}"
            )
        windows[row[0]] = row[1]
    return windows


def _rows(name: str, rows: Any) -> list[Sequence[Any]]:
    """``rows`` if they are a list of lists; ValueError otherwise."""
    lists = (list, tuple)
    if not isinstance(rows, lists) or not all(isinstance(row, lists) for row in rows):
        raise ValueError(f"{name} must be a list of rows, got {rows!r}")
    return list(rows)


def read_sizes(name: str, sizes: Any, rank: int, smallest: int = 1) -> tuple[int, ...]:
    """``rank`` whole numbers from ``smallest``, as a tuple; ValueError otherwise."""
    if not isinstance(sizes, (list, tuple)):
        raise ValueError(f"{name} must be {rank} whole numbers, got {sizes!r}")
    shifted = tuple(n + 1 - smallest if is_whole(n) else n for n in sizes)
    try:
        check_sizes(name, shifted, rank)
    except ValueError:
        raise ValueError(
            f"{name} must be {rank} whole numbers >= {smallest}, got {list(sizes)}"
        ) from None
    return tuple(sizes)
