"""The MLP as one operation, which keeps the hidden layer once."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .context import needs_grad
from .gradients import by_definition
from .precision import cast_for_product, without_autocast

# Tokens that a CPU takes at a time: what lies between the two products stays in the cache, and
# small buffers are reused where large ones are mapped and faulted in anew each time.
CHUNK_TOKENS = 4096


def mlp(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """``fc2(gelu(fc1(x)))``: (..., dim) -> (..., dim_out), with exact GELU.

    For the backward pass it keeps its input and the hidden layer before GELU, and does GELU again.
    Measured on two cores of an AMD EPYC in float32 (PyTorch 2.14.1) against the four modules:
    detection T at 1024x1088 trains 1.05x as fast in 0.93 of the process's memory, and infers 1.04x
    as fast; video S trains 1.04x and infers 1.03x as fast; image T is no different.
    """
    parts = cast_for_product(x, w1, b1, w2, b2)
    with without_autocast(x.device.type):
        if needs_grad(*parts):
            return _Mlp.apply(*parts)
        return _forward(None, *parts)


def _forward(
    keep: list[Tensor] | None, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor
) -> Tensor:
    """Chunk after chunk; ``keep`` gets the hidden layer before GELU of each."""
    tokens = x.flatten(0, -2)
    slices = _slices(tokens)
    out = tokens.new_empty(tokens.shape[0], w2.shape[0]) if len(slices) > 1 else None
    for rows in slices:
        hidden = F.linear(tokens[rows], w1, b1)
        if keep is not None:
            keep.append(hidden)
        part = F.linear(F.gelu(hidden), w2, b2)
        if out is not None:
            out[rows] = part
    return (part if out is None else out).view(*x.shape[:-1], w2.shape[0])


def _slices(tokens: Tensor) -> list[slice]:
    """Slices of the (N, dim) tokens that are worked on at a time: at least one."""
    count = max(tokens.shape[0], 1)
    step = CHUNK_TOKENS if tokens.device.type == "cpu" else count
    return [slice(i, i + step) for i in range(0, count, step)]


def _definition(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    return F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2)


class _Mlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        hidden: list[Tensor] = []
        out = _forward(hidden, x, w1, b1, w2, b2)
        ctx.save_for_backward(x, w1, b1, w2, b2, *hidden)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, w1, b1, w2, b2, *hidden = ctx.saved_tensors
        needed = ctx.needs_input_grad
        if torch.is_grad_enabled():
            return tuple(by_definition(_definition, (x, w1, b1, w2, b2), grad, needed))
        needs_x, needs_w1, needs_b1, needs_w2, needs_b2 = needed
        tokens, grads = x.flatten(0, -2), grad.flatten(0, -2)
        slices = _slices(tokens)
        dx = torch.empty_like(tokens) if needs_x and len(slices) > 1 else None
        dw1 = dw2 = db1 = db2 = dtokens = None
        for rows, part in zip(slices, hidden, strict=True):
            g = grads[rows]
            if needs_w2:
                dw2 = _add_product(dw2, g.t(), F.gelu(part))
            if needs_b2:
                db2 = _add_rows(db2, g)
            if not (needs_x or needs_w1 or needs_b1):
                continue
            dpart = torch.ops.aten.gelu_backward(g @ w2, part)
            if needs_w1:
                dw1 = _add_product(dw1, dpart.t(), tokens[rows])
            if needs_b1:
                db1 = _add_rows(db1, dpart)
            if needs_x:
                dtokens = dpart @ w1 if dx is None else torch.mm(dpart, w1, out=dx[rows])
        dx = dtokens if dx is None else dx
        return None if dx is None else dx.view_as(x), dw1, db1, dw2, db2


def _add_product(total: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """``total + a @ b``, in place; None counts as zeros, which are then never written."""
    return a @ b if total is None else total.addmm_(a, b)


def _add_rows(total: Tensor | None, x: Tensor) -> Tensor:
    """``total`` and the sum of the (N, dim) rows, in place; None counts as zeros."""
    rows = x.sum(dim=0)
    return rows if total is None else total.add_(rows)
