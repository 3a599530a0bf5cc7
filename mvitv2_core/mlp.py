"""The MLP, whose wide hidden layer is what fills memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .context import transformed, untouched
from .linear import autocast_dtype, linear, no_autocast

# Tokens that a CPU takes through both linears at a time: their hidden layer stays in the cache,
# and small buffers are reused where large ones are mapped and faulted in anew each time.
CHUNK_TOKENS = 4096


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
        if not self._is_plain():
            return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))
        parts = (x, self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)
        dtype = autocast_dtype(x.device.type)
        if dtype is not None:
            parts = tuple(part.to(dtype) for part in parts)  # type: ignore[assignment]
        with no_autocast(x.device.type):
            if torch.is_grad_enabled() and any(part.requires_grad for part in parts):
                return _LinearGeluLinear.apply(*parts)
            return _infer(*parts)

    def _is_plain(self) -> bool:
        """Whether nothing but the two weights decides the result: no wrapper, hook or dropout."""
        linears = (self.fc1, self.fc2)
        return (
            not torch.compiler.is_compiling()
            and not torch.jit.is_tracing()
            and all(untouched(m, nn.Linear) and m.bias is not None for m in linears)
            and untouched(self.act, nn.GELU)
            and self.act.approximate == "none"
            and untouched(self.drop, nn.Dropout)
            and not (self.drop.training and self.drop.p)  # some switch it on in evaluation
            and not transformed()
        )


class _LinearGeluLinear(torch.autograd.Function):
    """fc2(gelu(fc1(x))), a chunk of tokens at a time on the CPU; GELU is redone backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        tokens = x.flatten(0, -2)
        out = tokens.new_empty(tokens.shape[0], w2.shape[0])
        hidden = tokens.new_empty(tokens.shape[0], w1.shape[0])
        for rows in _chunks(tokens):
            torch.addmm(b1, tokens[rows], w1.t(), out=hidden[rows])
            torch.addmm(b2, F.gelu(hidden[rows]), w2.t(), out=out[rows])
        ctx.save_for_backward(x, hidden, w1, w2)
        return out.view(*x.shape[:-1], w2.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, w1, w2 = ctx.saved_tensors
        tokens, grads = x.flatten(0, -2), grad.flatten(0, -2)
        dx = torch.empty_like(tokens)
        dw1, dw2 = torch.zeros_like(w1), torch.zeros_like(w2)
        db1 = w1.new_zeros(w1.shape[0])
        for rows in _chunks(tokens):
            part, g = hidden[rows], grads[rows]
            dw2.addmm_(g.t(), F.gelu(part))
            dpart = torch.ops.aten.gelu_backward(g @ w2, part)
            dw1.addmm_(dpart.t(), tokens[rows])
            db1 += dpart.sum(dim=0)
            torch.mm(dpart, w1, out=dx[rows])
        return dx.view_as(x), dw1, db1, dw2, grads.sum(dim=0)


def _chunks(tokens: Tensor) -> list[slice]:
    count = max(tokens.shape[0], 1)
    step = CHUNK_TOKENS if tokens.device.type == "cpu" else count
    return [slice(i, i + step) for i in range(0, count, step)]


def _infer(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """Without gradients: the hidden layer is never held whole on a CPU."""
    tokens = x.flatten(0, -2)
    parts = [linear(linear(tokens[rows], w1, b1, gelu=True), w2, b2) for rows in _chunks(tokens)]
    out = torch.cat(parts) if len(parts) > 1 else parts[0]
    return out.view(*x.shape[:-1], w2.shape[0])
