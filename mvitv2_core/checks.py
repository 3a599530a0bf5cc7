"""Checks of arguments: each names the argument, what is allowed and what it got."""

from __future__ import annotations

import math
from numbers import Real
from typing import Literal, NoReturn


def refuse(name: str, allowed: str, value: object, error: type[Exception] = ValueError) -> NoReturn:
    raise error(f"{name} must be {allowed}, got {value!r}")


def is_whole(value: object, least: int | None = None) -> bool:
    """Whether ``value`` is a whole number (True and False are not), from ``least``."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    return whole and (least is None or value >= least)  # type: ignore[operator]


def check_whole(name: str, value: object, least: Literal[0, 1] = 1) -> None:
    if not is_whole(value, least):
        refuse(name, ("0 or positive, a whole number", "a positive whole number")[least], value)


def check_sizes(name: str, sizes: object, rank: int | None = None, least: int = 1) -> None:
    """A tuple of ``rank`` whole numbers from ``least``; without a ``rank``, of one to three."""
    known = isinstance(sizes, tuple) and len(sizes) in ((1, 2, 3) if rank is None else (rank,))
    if not known or not all(is_whole(n, least) for n in sizes):  # type: ignore[attr-defined]
        kind = "positive whole numbers" if least else "whole numbers >= 0"
        refuse(name, f"{rank or '1 to 3'} {kind}", sizes)


def check_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        refuse(name, "True or False", value)


def check_rate(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) < 1:
        refuse(name, "in [0, 1)", value)


def check_scale(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < math.inf:
        refuse(name, "positive and finite", value)


def check_maker(name: str, value: object) -> None:
    """A class or function that makes a layer, not a layer itself."""
    if not callable(value) or (hasattr(value, "forward") and not isinstance(value, type)):
        refuse(name, "a class or function that makes a layer", value, TypeError)
