"""The shapes of one block, as plain data. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from numbers import Real


@dataclass(frozen=True)
class BlockSpec:
    """Shapes of one block.

    Args:
        dim: width of the tokens that come in.
        dim_att: width of attention and of ``norm2``.
        dim_out: width of the tokens that go out. ``dim_att`` equals ``dim_out`` where the width
            grows in attention, and ``dim`` where it grows in the MLP.
        num_heads: attention heads; must divide ``dim_att``.
        thw: nominal token grid at the block's input, one size per axis. It fixes the number of
            rows of the position tables; any other grid is accepted at run time.
        stride_q, stride_kv: strides of the pools, one per axis.
        kernel_q, kernel_kv: kernels of the pools, one per axis; None for no pool and no norm.
        drop_path: probability of dropping a residual branch, per sample.

    Raises:
        ValueError: a size is not positive, the ranks differ, or heads do not divide the width.
    """

    dim: int
    dim_att: int
    dim_out: int
    num_heads: int
    thw: tuple[int, ...]
    stride_q: tuple[int, ...]
    stride_kv: tuple[int, ...]
    kernel_q: tuple[int, ...] | None
    kernel_kv: tuple[int, ...] | None
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        for name in ("dim", "dim_att", "dim_out", "num_heads"):
            check_positive(name, getattr(self, name))
        check_sizes("thw", self.thw)
        for name in ("stride_q", "stride_kv", "kernel_q", "kernel_kv"):
            sizes = getattr(self, name)
            if sizes is not None or name.startswith("stride"):
                check_sizes(name, sizes, len(self.thw))
        if self.dim_att % self.num_heads:
            raise ValueError(
                f"num_heads must divide the attention width: num_heads={self.num_heads}, "
                f"dim_att={self.dim_att}"
            )
        if self.dim_att not in (self.dim, self.dim_out):
            raise ValueError(
                f"dim_att must be dim ({self.dim}) or dim_out ({self.dim_out}), got {self.dim_att}"
            )
        for pool in ("q", "kv"):
            kernel, stride = getattr(self, f"kernel_{pool}"), getattr(self, f"stride_{pool}")
            if kernel is None and max(stride) > 1:
                raise ValueError(
                    f"kernel_{pool} must be given where stride_{pool} exceeds 1, got "
                    f"stride_{pool}={stride}"
                )
        # Pooled q meets the max-pooled shortcut (kernel stride + 1), and both must have one size.
        if self.kernel_q is not None and not all(k % 2 for k in self.kernel_q):
            raise ValueError(f"kernel_q must be odd on every axis, got {self.kernel_q}")
        if not all(s == 1 or s % 2 == 0 for s in self.stride_q):
            raise ValueError(f"stride_q must be 1 or even on every axis, got {self.stride_q}")
        check_rate("drop_path", self.drop_path)

    @property
    def head_dim(self) -> int:
        return self.dim_att // self.num_heads

    @property
    def thw_out(self) -> tuple[int, ...]:
        """Nominal grid after q pooling: divided with floor, as the official tables are."""
        return tuple(max(n // s, 1) for n, s in zip(self.thw, self.stride_q, strict=True))

    def attended(self, q_thw: Sequence[int], k_thw: Sequence[int]) -> tuple[int, tuple[int, ...]]:
        """How many queries attend, and the grid of keys that each of them sees.

        Args:
            q_thw, k_thw: live pooled grids.
        """
        return prod(q_thw), tuple(k_thw)

    def rel_pos_rows(self, axis: int) -> int:
        """Rows of the stored relative-position table of ``axis``.

        Spatial tables follow the larger of the pooled q and kv sizes; the temporal table (first
        of three axes) has 2*T - 1 rows for the block's input T whatever its strides, as in
        PySlowFast's attention.py, on which the published SSv2 L checkpoint depends.
        """
        size = self.thw[axis]
        if len(self.thw) == 3 and axis == 0:
            return 2 * size - 1
        return 2 * max(size // self.stride_q[axis], size // self.stride_kv[axis], 1) - 1


def is_whole(value: object) -> bool:
    """Whether ``value`` is a whole number; True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_positive(name: str, value: object) -> None:
    """Raise ValueError unless ``value`` is a positive whole number."""
    if not (isinstance(value, int) and is_whole(value) and value > 0):
        raise ValueError(f"{name} must be a positive whole number, got {value!r}")


def check_count(name: str, value: object) -> None:
    """Raise ValueError unless ``value`` is a whole number from 0."""
    if not (isinstance(value, int) and is_whole(value) and value >= 0):
        raise ValueError(f"{name} must be 0 or positive, a whole number, got {value!r}")


def check_sizes(name: str, sizes: object, rank: int | None = None) -> None:
    """Raise ValueError unless ``sizes`` is a tuple of ``rank`` positive whole numbers.

    Without a ``rank``, of one to three of them.
    """
    ranks = (1, 2, 3) if rank is None else (rank,)
    if (
        not isinstance(sizes, tuple)
        or not sizes
        or len(sizes) not in ranks
        or not all(is_whole(n) and n > 0 for n in sizes)
    ):
        wanted = "1 to 3" if rank is None else rank
        raise ValueError(f"{name} must be {wanted} positive whole numbers, got {sizes!r}")


def check_flag(name: str, value: object) -> None:
    """Raise ValueError unless ``value`` is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {value!r}")


def check_rate(name: str, value: object) -> None:
    """Raise ValueError unless ``value`` is a number in [0, 1)."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not (number and 0 <= float(value) < 1):  # type: ignore[arg-type]
        raise ValueError(f"{name} must be in [0, 1), got {value!r}")


def check_scale(name: str, value: object) -> None:
    """Raise ValueError unless ``value`` is a positive finite number."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not (number and 0 < float(value) < math.inf):  # type: ignore[arg-type]
        raise ValueError(f"{name} must be positive and finite, got {value!r}")
