"""Attention problems for the Triton kernels, and the formula that they are held against."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from mvitv2_core.fast import triton_attention
from tests import plain

Grid = tuple[int, ...]


@dataclass(frozen=True)
class Problem:
    """Inputs of an attention, but for the tensors."""

    q_thw: Grid
    k_thw: Grid
    axes: tuple[int, ...]
    head_dim: int
    batch: int = 1
    heads: int = 1
    cls_token: bool = False
    add_q: bool = False
    windows: tuple[Grid, Grid] | None = None
    dtype: torch.dtype = torch.float32
    device: str = "cpu"

    def tensors(self, layout: str = "contiguous") -> list[Tensor]:
        """q, k, v and the terms, and last a gradient of the result; all but that need gradients.

        Layouts: "contiguous", or parts of products: "product" of one for each, "gapped" at
        addresses that do not align.
        """
        first, seen = int(self.cls_token), self.windows[1] if self.windows else self.k_thw
        nq, nk = prod(self.q_thw) + first, prod(self.k_thw) + first

        def draw(*shape: int) -> Tensor:
            x = torch.randn(shape, dtype=torch.float64).to(self.device, self.dtype)
            return x.requires_grad_()

        extra = {"contiguous": 0, "product": 2 * self.heads * self.head_dim, "gapped": 3}[layout]
        tensors = []
        for rows in (nq, nk, nk):
            x = draw(self.batch, rows, self.heads * self.head_dim + extra)[..., extra:]
            tensors.append(x.unflatten(-1, (self.heads, self.head_dim)).detach().requires_grad_())
        for axis in self.axes:
            tensors.append(draw(self.batch, nq - first, self.heads, seen[axis]))
        return [*tensors, torch.randn_like(tensors[0]).detach()]

    def exact(self, tensors: Sequence[Tensor], dtype: torch.dtype = torch.float64) -> list[Tensor]:
        """The result and all gradients by the plain formula, in this dtype."""
        *inputs, grad = (x.detach().to(dtype) for x in tensors)
        inputs = [x.requires_grad_() for x in inputs]
        out = self.formula(*inputs)
        return [out.detach(), *torch.autograd.grad(out, inputs, grad)]

    def formula(self, q: Tensor, k: Tensor, v: Tensor, *terms: Tensor) -> Tensor:
        """One window after another: softmax(q k^T / sqrt(head_dim) + terms) v."""
        first = int(self.cls_token)
        q_window, k_window = self.windows or (self.q_thw, self.k_thw)
        counts = [-(-n // w) for n, w in zip(self.q_thw, q_window, strict=True)]
        zero = v.new_zeros(v.shape[0], 1, *v.shape[2:])
        out = torch.zeros_like(q)
        for place in itertools.product(*map(range, counts)):
            rows = [i for i in _rows(self.q_thw, q_window, place) if i is not None]
            queries = torch.tensor(rows) + first
            cells = _rows(self.k_thw, k_window, place)
            keys = torch.tensor([k.shape[1] if i is None else i + first for i in cells])
            if first:
                queries, keys = (torch.cat([x.new_zeros(1), x]) for x in (queries, keys))
            queries, keys = queries.to(q.device), keys.to(q.device)
            k_, v_ = (torch.cat([x, zero], dim=1)[:, keys] for x in (k, v))
            q_ = q[:, queries]
            logits = torch.einsum("bnhd,bmhd->bhnm", q_ * self.head_dim**-0.5, k_)
            for axis, term in zip(self.axes, terms, strict=True):
                cell = plain.cells(k_window)[axis].to(q.device)
                added = torch.zeros_like(logits)
                part = term[:, queries[first:] - first].movedim(2, 1)[..., cell]
                added[:, :, first:, first:] = part
                logits = logits + added
            result = torch.einsum("bhnm,bmhd->bnhd", logits.softmax(dim=-1), v_)
            out = out.index_copy(1, queries, result)
        if self.add_q:
            out = torch.cat([out[:, :first], out[:, first:] + q[:, first:]], dim=1)
        return out


def _rows(grid: Grid, window: Grid, place: Sequence[int]) -> list[int | None]:
    """The tokens of a window, None beyond the grid."""
    rows: list[int | None] = []
    for cell in itertools.product(*map(range, window)):
        at = [p * w + c for p, w, c in zip(place, window, cell, strict=True)]
        row = 0
        for n, i in zip(grid, at, strict=True):
            row = row * n + i
        rows.append(row if all(i < n for n, i in zip(grid, at, strict=True)) else None)
    return rows


def attend(problem: Problem, *tensors: Tensor) -> Tensor:
    q, k, v, *terms = tensors
    return triton_attention.attention(
        *(q, k, v, terms, problem.axes, problem.q_thw, problem.k_thw),
        *(problem.cls_token, problem.add_q, problem.windows),
    )


# Of detection T at 1024x1088: windows of stages one and three, and the last blocks of stages two
# and four; of video S: first and last stage; of image T at 224: first stage and last.
REAL = {
    "detection windows, stage 1": Problem(
        (256, 272), (64, 68), (0, 1), 96, 1, 1, add_q=True, windows=((56, 56), (14, 14))
    ),
    "detection windows, stage 3": Problem(
        (64, 68), (64, 68), (0, 1), 96, 2, 4, add_q=True, windows=((14, 14), (14, 14))
    ),
    "detection global, stage 2": Problem((128, 136), (32, 34), (0, 1), 96, 1, 2, add_q=True),
    "detection global, stage 4": Problem((32, 34), (32, 34), (0, 1), 96, 2, 8, add_q=True),
    "video, stage 1": Problem((8, 56, 56), (8, 7, 7), (0, 1, 2), 96, 1, 1, True, True),
    "video, stage 4": Problem((8, 7, 7), (8, 7, 7), (0, 1, 2), 96, 2, 8, True, True),
    "image, stage 1": Problem((56, 56), (14, 14), (0, 1), 96, 8, 1, add_q=True),
    "image, stage 4": Problem((7, 7), (7, 7), (0, 1), 96, 8, 8, add_q=True),
    "heads of 72": Problem((14, 14), (7, 7), (0, 1), 72, 4, 8, add_q=True),
    "heads of 64": Problem((14, 14), (14, 14), (0, 1), 64, 4, 8),
}
