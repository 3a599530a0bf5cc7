"""PyTorch's fused attention, with second derivatives."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .context import eager, needs_grad
from .gradients import by_definition


def fused_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """softmax(q k^T * scale) v of (B, heads, N, channels) tensors, of any strides.

    PyTorch's flash kernels have no derivative of their backward pass, and raise when asked: here
    the definition steps in then.
    """
    if eager() and needs_grad(q, k, v):
        return _Fused.apply(q, k, v, scale)
    return F.scaled_dot_product_attention(q, k, v, scale=scale)


class _Fused(torch.autograd.Function):
    """Keeps the graph of the fused kernel inside, for its backward pass."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.scale = scale
        with torch.enable_grad():
            q, k, v = ctx.inside = [
                x.detach().requires_grad_(need)
                for x, need in zip((q, k, v), ctx.needs_input_grad, strict=False)
            ]
            ctx.out = F.scaled_dot_product_attention(q, k, v, scale=scale)
        return ctx.out.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *needed, _ = ctx.needs_input_grad
        if not torch.is_grad_enabled():
            wanted = [x for x in ctx.inside if x.requires_grad]
            found = iter(torch.autograd.grad(ctx.out, wanted, grad, retain_graph=True))
            return *(next(found) if need else None for need in needed), None
        scale = ctx.scale

        def definition(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return (q @ k.transpose(-1, -2) * scale).softmax(dim=-1) @ v

        return *by_definition(definition, ctx.saved_tensors, grad, needed), None
