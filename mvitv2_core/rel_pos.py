"""Decomposed relative positions: which table row each query-key pair uses, on any axis.

Paper, section 4.1: the logit of query i and key j gets q_i . R_a[p_a(i) - p_a(j)] for each axis a.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from . import dynamic
from .context import transformed

CACHE_BYTES = 64 * 2**20


class TensorCache:
    """Constant tensors by key, on the device that asked, at most ``CACHE_BYTES`` in all.

    Never part of a module's state, so that copies, pickles and moves to another device need not
    know of it. Least recently used entries go first. Safe to use from several threads.
    """

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self.limit, self.size = limit, 0
        self._entries: OrderedDict[tuple, Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple, make: Callable[[], Tensor]) -> Tensor:
        """The tensor of ``key``, made by ``make`` where it is not held."""
        # The compiler folds constants itself; tensors made inside a transform belong to it.
        if torch.compiler.is_compiling() or transformed():
            return make()
        with self._lock:
            held = self._entries.get(key)
            if held is not None:
                self._entries.move_to_end(key)
                return held
        with torch.inference_mode(False):  # or training could not use it after inference
            made = make()
        size = made.numel() * made.element_size()
        # Tensor subclasses (fake tensors of a tracer) must not outlive their mode.
        if type(made) is Tensor and made.device.type != "meta" and size <= self.limit:
            with self._lock:
                if key not in self._entries:
                    self._entries[key] = made
                    self.size += size
                while self.size > self.limit:
                    _, dropped = self._entries.popitem(last=False)
                    self.size -= dropped.numel() * dropped.element_size()
        return made

    def after_fork(self) -> None:
        """In a forked child: the thread that held the lock, if any, does not exist there."""
        if self._lock.locked():  # and may have left the entries half changed
            self._entries, self.size = OrderedDict(), 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)


CACHE = TensorCache()
if hasattr(os, "register_at_fork"):  # not on Windows, which cannot fork
    os.register_at_fork(after_in_child=lambda: CACHE.after_fork())


def _scaled_positions(size: int, ratio: float, device: torch.device) -> Tensor:
    """``arange(size) * ratio`` rounded to float32 after the product, and nothing else.

    The official code computes in float32 and truncates, so the published weights were trained
    with its rounding. The product is exact in float64 and rounded once by the conversion, which
    no compiler may contract into a fused multiply-add with the subtraction that follows.
    """
    ratio32 = torch.full((), ratio, dtype=torch.float32, device=device).double()
    return (torch.arange(size, device=device, dtype=torch.float64) * ratio32).float()


def rel_pos_index(q_size: int, k_size: int, device: torch.device) -> Tensor:
    """Table row for each query and key cell of one axis: (q_size * k_size,) int64.

    ``int(i * max(k/q, 1) - j * max(q/k, 1) + (k - 1) * max(q/k, 1))`` in float32 (the official
    ``get_rel_pos`` of detectron2's backbone/utils.py and PySlowFast's attention.py).
    """

    def make() -> Tensor:
        k_ratio = max(q_size / k_size, 1.0)
        q = _scaled_positions(q_size, max(k_size / q_size, 1.0), device)
        k = _scaled_positions(k_size, k_ratio, device)
        return (q[:, None] - k[None, :] + (k_size - 1) * k_ratio).long().flatten()

    return CACHE.get(("index", q_size, k_size, device), make)


def resample_table(table: Tensor, rows: int) -> Tensor:
    """A (L, head_dim) position table resampled linearly to ``rows`` rows."""
    if table.shape[0] == rows:
        return table
    return F.interpolate(table.t()[None], size=rows, mode="linear")[0].t()


def rel_pos_rows(table: Tensor, q_size: int, k_size: int) -> Tensor:
    """The rows that each query and key cell of one axis use: (q_size, k_size, head_dim).

    Args:
        table: stored (L, head_dim) table, resampled where L is not ``2 * max(q, k) - 1``.
        q_size, k_size: live sizes of the pooled grids along the axis.
    """
    if dynamic.is_dynamic(q_size, k_size):
        return dynamic.rel_pos_rows(table, q_size, k_size)
    table = resample_table(table, 2 * max(q_size, k_size) - 1)
    index = rel_pos_index(q_size, k_size, table.device)
    return table.index_select(0, index).view(q_size, k_size, -1)


def rel_pos_terms(
    q: Tensor,
    tables: Sequence[Tensor | None],
    q_thw: Sequence[int],
    k_thw: Sequence[int],
    window: Sequence[int] | None = None,
) -> list[Tensor]:
    """Logit terms of every query for the key cells of each axis that has a table.

    Args:
        q: unscaled (B, Nq, heads, head_dim) queries of the grid, without class token.
        tables: one (L, head_dim) table or None per axis.
        q_thw, k_thw: live pooled grids.
        window: sizes of the windows that ``q_thw`` falls into; ``k_thw`` then is one of keys.

    Returns:
        One (B, Nq, heads, k_size) tensor per axis that has a table.
    """
    batch, _, heads, head_dim = q.shape
    terms = []
    for axis, table in enumerate(tables):
        if table is None:
            continue
        rows = rel_pos_rows(table, (window or q_thw)[axis], k_thw[axis]).transpose(1, 2)
        if window:  # the same rows in each
            rows = rows.repeat(-(-q_thw[axis] // window[axis]), 1, 1)[: q_thw[axis]]
        before, after = batch * prod(q_thw[:axis]), prod(q_thw[axis + 1 :]) * heads
        if axis < len(tables) - 1:
            # (before, size, after, head_dim) @ (size, head_dim, k_size): q stays where it lies
            term = q.reshape(before, q_thw[axis], after, head_dim) @ rows
        else:
            # Heads lie inside the last axis, so (axis, head) is the batch of the product:
            # (size * heads, before, head_dim) @ (size * heads, head_dim, k_size), q not copied
            wide = rows.repeat_interleave(heads, dim=0) if heads > 1 else rows
            moved = q.reshape(before, q_thw[axis] * heads, head_dim).transpose(0, 1)
            term = torch.bmm(moved, wide).transpose(0, 1)
        terms.append(term.reshape(batch, prod(q_thw), heads, k_thw[axis]))
    return terms


def key_cells(
    k_thw: Sequence[int], axes: Sequence[int], cls_token: bool, step: int, like: Tensor
) -> Tensor:
    """Which cell of each axis a key stands in, as ones: (Nk, sum of k sizes of ``axes``).

    Columns of zeros fill the channels of ``like`` and these up to a multiple of ``step``.

    ``q @ key_cells.T`` with position terms as q adds each term to the keys of its cell, so that
    positions become extra channels of q and k and no bias matrix exists. A class token's row is
    zero: it has no position.
    """
    device, dtype = like.device, like.dtype

    def make() -> Tensor:
        cells = []
        for axis in axes:
            eye = torch.eye(k_thw[axis], device=device, dtype=dtype)
            shape = [1] * len(k_thw) + [k_thw[axis]]
            shape[axis] = k_thw[axis]
            cells.append(eye.view(shape).expand(*k_thw, -1).flatten(0, -2))
        ones = torch.cat(cells, dim=-1)
        used = like.shape[-1] + ones.shape[-1]
        fill = (used + step - 1) // step * step - used
        return F.pad(ones, (0, fill, int(cls_token), 0))

    key = ("cells", tuple(k_thw), tuple(axes), cls_token, step, like.shape[-1], device, dtype)
    return CACHE.get(key, make)
