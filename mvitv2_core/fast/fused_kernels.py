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
    out = F.scaled_dot_product_attention(q, k, v, scale=scale)
    return _Twice.apply(out, q, k, v, scale) if eager() and needs_grad(q, k, v) else out


class _Twice(torch.autograd.Function):
    """Hands a gradient on to the kernel, or past it to q, k and v where it may be differentiated.

    The kernel keeps what its own backward pass needs, and this keeps q, k and v, which are the same
    memory: activation checkpointing and ``backward`` free all of it as usual.
    """

    @staticmethod
    def forward(ctx: Any, out: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.scale = scale
        return out.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if not torch.is_grad_enabled():
            return grad, None, None, None, None
        _, *needed, _ = ctx.needs_input_grad
        scale = ctx.scale

        def definition(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return (q @ k.transpose(-1, -2) * scale).softmax(dim=-1) @ v

        return None, *by_definition(definition, ctx.saved_tensors, grad, needed), None
