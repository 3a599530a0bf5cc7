"""The MLP, whose wide hidden layer is what fills memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .context import eager, untouched
from .linear import (
    NormParts,
    add_product,
    add_rows,
    autocast,
    chunks,
    layer_norm,
    layer_norm_backward,
    linear,
    needs_grad,
    no_autocast,
    product,
)


class Mlp(nn.Module):
    """Two linears with an activation between, and dropout after each.

    With plain linears, exact GELU and no dropout, both linears run as one operation that keeps
    only its input and the hidden layer before GELU for the backward pass.

    Args:
        dim, hidden, dim_out: widths.
        act_layer: makes the activation.
        dropout: probability of dropping.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        dim_out: int,
        act_layer: Callable[[], nn.Module],
        dropout: float,
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = act_layer()
        self.fc2 = nn.Linear(hidden, dim_out)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, dim) -> (B, N, dim_out)."""
        if not self.is_plain():
            return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))
        fc1, fc2 = self.fc1, self.fc2
        parts = autocast(x, fc1.weight, fc1.bias, fc2.weight, fc2.bias)
        with no_autocast(x.device.type):
            return _run(*parts)

    def add_to(self, x: Tensor, norm: NormParts, scale: Tensor | None) -> Tensor:
        """``x + scale * self(norm(x))`` in one operation; only where ``is_plain``.

        Args:
            x: (B, N, dim).
            norm: of ``norm_parts``.
            scale: (B, 1, 1) factors of stochastic depth, None for ones.
        """
        if scale is not None:
            scale = scale.expand(-1, x.shape[1], -1).reshape(-1, 1)
        fc1, fc2 = self.fc1, self.fc2
        return _run(x, fc1.weight, fc1.bias, fc2.weight, fc2.bias, True, scale, *norm)

    def is_plain(self) -> bool:
        """Whether nothing but the two weights decides the result: no wrapper, hook or dropout."""
        return (
            eager()
            and all(untouched(m, nn.Linear) and m.bias is not None for m in (self.fc1, self.fc2))
            and untouched(self.act, nn.GELU)
            and self.act.approximate == "none"
            and untouched(self.drop, nn.Dropout)
            and not (self.drop.training and self.drop.p)  # some switch it on in evaluation
        )


def _run(x: Tensor, *rest: Any) -> Tensor:
    if needs_grad(x, *(part for part in rest if isinstance(part, Tensor))):
        return _LinearGeluLinear.apply(x, *rest)
    return _forward(x, None, *rest)


def _forward(
    x: Tensor,
    keep: list[Tensor] | None,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    residual: bool = False,
    scale: Tensor | None = None,
    *norm: Any,
) -> Tensor:
    """``fc2(gelu(fc1(x)))`` by chunks of tokens, or ``x + scale * fc2(gelu(fc1(norm(x))))``.

    Args:
        keep: gets the hidden layer before GELU of each chunk; None computes without.
    """
    tokens = x.flatten(0, -2)
    slices = chunks(tokens)
    out = tokens.new_empty(tokens.shape[0], w2.shape[0]) if len(slices) > 1 else None
    for rows in slices:
        place = None if out is None else out[rows]
        part = layer_norm(tokens[rows], norm)[0] if norm else tokens[rows]
        if keep is None:
            part = linear(part, w1, b1, gelu=True)
        else:
            keep.append(linear(part, w1, b1))
            part = F.gelu(keep[-1])
        part = linear(part, w2, b2)
        if scale is not None:
            part = torch.addcmul(tokens[rows], part, scale[rows], out=place)
        elif residual:
            part = torch.add(tokens[rows], part, out=place)
        elif place is not None:
            place.copy_(part)
    return (part if out is None else out).view(*x.shape[:-1], w2.shape[0])


class _LinearGeluLinear(torch.autograd.Function):
    """``_forward``, which keeps its input and the hidden layer; norm and GELU are redone."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w1: Tensor,
        b1: Tensor,
        w2: Tensor,
        b2: Tensor,
        residual: bool = False,
        scale: Tensor | None = None,
        *norm: Any,
    ) -> Tensor:
        hidden: list[Tensor] = []
        out = _forward(x, hidden, w1, b1, w2, b2, residual, scale, *norm)
        ctx.save_for_backward(x, w1, w2, scale, *norm[:2], *hidden)
        ctx.residual, ctx.eps = residual, norm[2:]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, w1, w2, scale, *hidden = ctx.saved_tensors
        norm = tuple(hidden.pop(0) for _ in range(2 * len(ctx.eps))) + ctx.eps
        tokens, grads = x.flatten(0, -2), grad.flatten(0, -2)
        slices = chunks(tokens)
        dx = torch.empty_like(tokens) if len(slices) > 1 else None
        dw1 = dw2 = db1 = db2 = None
        dnorm = [torch.zeros_like(part) for part in norm[:2]]
        for rows, part in zip(slices, hidden, strict=True):
            place = None if dx is None else dx[rows]
            g = grads[rows] if scale is None else grads[rows] * scale[rows]
            dw2, db2 = add_product(dw2, g.t(), F.gelu(part)), add_rows(db2, g)
            dpart = torch.ops.aten.gelu_backward(product(g, w2), part)
            normed, *statistics = layer_norm(tokens[rows], norm) if norm else (tokens[rows],)
            dw1, db1 = add_product(dw1, dpart.t(), normed), add_rows(db1, dpart)
            dtokens = product(dpart, w1)
            if norm:
                dtokens, *parts = layer_norm_backward(dtokens, tokens[rows], norm, *statistics)
                for total, add in zip(dnorm, parts, strict=True):
                    total += add
            if ctx.residual:
                dtokens = torch.add(dtokens, grads[rows], out=place)
            elif place is not None:
                place.copy_(dtokens)
        dx = dtokens if dx is None else dx
        nothing = (None,) * len(ctx.needs_input_grad[5:7])
        return dx.view_as(x), dw1, db1, dw2, db2, *nothing, *dnorm, *(None for _ in ctx.eps)
