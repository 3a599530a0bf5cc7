"""Checks of arguments: ValueError with the argument's name, its value and what is allowed."""

from __future__ import annotations

import math
from numbers import Real


def is_whole(value: object) -> bool:
    """Whether ``value`` is a whole number; True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_positive(name: str, value: object) -> None:
    """A whole number from 1."""
    if not (isinstance(value, int) and is_whole(value) and value > 0):
        raise ValueError(f"{name} must be a positive whole number, got {value!r}")


def check_count(name: str, value: object) -> None:
    """A whole number from 0."""
    if not (isinstance(value, int) and is_whole(value) and value >= 0):
        raise ValueError(f"{name} must be 0 or positive, a whole number, got {value!r}")


def check_sizes(name: str, sizes: object, rank: int | None = None, least: int = 1) -> None:
    """A tuple of ``rank`` whole numbers from ``least``; without a ``rank``, of one to three."""
    lengths = (1, 2, 3) if rank is None else (rank,)
    known = isinstance(sizes, tuple) and len(sizes) in lengths
    if not known or not all(is_whole(n) and n >= least for n in sizes):  # type: ignore[attr-defined]
        many = "1 to 3" if rank is None else rank
        kind = "positive whole numbers" if least == 1 else f"whole numbers >= {least}"
        raise ValueError(f"{name} must be {many} {kind}, got {sizes!r}")


def check_flag(name: str, value: object) -> None:
    """True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {value!r}")


def check_rate(name: str, value: object) -> None:
    """A number in [0, 1)."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not (number and 0 <= float(value) < 1):  # type: ignore[arg-type]
        raise ValueError(f"{name} must be in [0, 1), got {value!r}")


def check_scale(name: str, value: object) -> None:
    """A positive finite number."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not (number and 0 < float(value) < math.inf):  # type: ignore[arg-type]
        raise ValueError(f"{name} must be positive and finite, got {value!r}")
