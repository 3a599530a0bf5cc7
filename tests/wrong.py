"""Wrong values by kind of setting, and what counts as refusing one."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

CLAIM = "wrong settings refused"
NAN, INF = float("nan"), float("inf")
POSITIVE = [0, -1, 1.5, NAN, "3", None, True, [3]]
FLAG = [None, 1, "yes", 0.0]
RATE = [-0.1, 1.0, NAN, "0.1", None, True]
SCALE = [0.0, -1.0, NAN, INF, "4", None, True]
MAKER = [None, "LayerNorm", 1]


def sizes(rank: int, most: int = 3) -> list[Any]:
    """Wrong values of a setting that holds ``rank`` positive whole numbers."""
    good = (3,) * rank
    wrong = [(0, *good[1:]), (-1, *good[1:]), (1.5, *good[1:]), ("3", *good[1:])]
    return [*wrong, (True, *good[1:]), (), good + (3,) * (most + 1 - rank), "3" * rank, 2.5]


def table(settings: Mapping[str, Sequence[Any]]) -> pytest.MarkDecorator:
    """Parametrizes ``key`` and ``value`` over ``{key: wrong values}``."""
    cases = [(key, value) for key, values in settings.items() for value in values]
    return pytest.mark.parametrize(
        ("key", "value"), cases, ids=[f"{key}={value!r}" for key, value in cases]
    )


def refused(build: Callable[[], object], key: str, tally: Callable[..., None]) -> None:
    """Assert that ``build`` raises at construction, and names the setting."""
    with pytest.raises((ValueError, TypeError, KeyError, AssertionError)) as caught:
        build()
    assert re.search(rf"\b{re.escape(key)}\b", str(caught.value), re.IGNORECASE), caught.value
    tally(CLAIM)
