"""Products and norms where PyTorch's default kernel is not the fastest exact one."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .context import eager, untouched

# Tokens that a CPU takes at a time: what lies between two products stays in the cache, and small
# buffers are reused where large ones are mapped and faulted in anew each time.
CHUNK_TOKENS = 4096

# oneDNN wants the transposed weight copied, which pays from about this many tokens.
TRANSPOSE_TOKENS = 1024


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool = False) -> Tensor:
    """(..., dim) -> (..., dim_out), through exact GELU where asked.

    In float32 on a CPU oneDNN does it: measured 1.0x to 1.4x as fast as the default BLAS on an AMD
    EPYC, and GELU costs no pass over memory of its own. Processes that meet many sizes of input
    leave the later ones to the default: the same product, rounded in another order.
    """
    if not _onednn_takes(x, weight):
        out = F.linear(x, weight, bias)
        return F.gelu(out) if gelu else out
    if needs_grad(x, weight, bias):
        out = _Linear.apply(x, weight, bias)
        return F.gelu(out) if gelu else out
    # The operator that PyTorch's own compiler emits on CPUs; it has no backward pass.
    name, algorithm = ("gelu", "none") if gelu else ("none", "")
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, name, [], algorithm)


def call_linear(module: nn.Module, x: Tensor) -> Tensor:
    """``module(x)``, by ``linear`` where nothing but its weights decides what that is."""
    if isinstance(module, nn.Linear) and untouched(module, nn.Linear):
        return linear(x, module.weight, module.bias)
    return module(x)


def product(x: Tensor, weight: Tensor) -> Tensor:
    """(..., dim_out) @ (dim_out, dim): what ``linear`` does to gradients."""
    if x.shape[:-1].numel() >= TRANSPOSE_TOKENS and _onednn_takes(x, weight):
        return linear(x, weight.t().contiguous(), None)
    return x @ weight


def _onednn_takes(x: Tensor, weight: Tensor) -> bool:
    return bool(
        eager()
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and not torch.is_autocast_enabled("cpu")
        and x.numel()
        and _admitted(x.shape[:-1].numel())
    )


# Numbers of tokens that oneDNN may meet in the life of a process. It makes a kernel for each and
# holds up to 1,024 of them, between buffers that malloc cannot join again: 959 sizes of input
# around 8,500 tokens grew a process by 6 GB. A model at one size of input has about ten.
ONEDNN_SIZES = 32
_met: set[int] = set()


def _admitted(tokens: int) -> bool:
    if tokens not in _met and len(_met) < ONEDNN_SIZES:
        _met.add(tokens)
    return tokens in _met


def needs_grad(*tensors: Tensor | None) -> bool:
    """Whether autograd records what is done with ``tensors``."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def chunks(tokens: Tensor) -> list[slice]:
    """Slices of the (N, dim) tokens that are worked on at a time: at least one."""
    count = max(tokens.shape[0], 1)
    step = CHUNK_TOKENS if tokens.device.type == "cpu" else count
    return [slice(i, i + step) for i in range(0, count, step)]


def add_product(total: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """``total + a @ b``, in place; None counts as zeros, which are then never written."""
    return a @ b if total is None else total.addmm_(a, b)


def add_rows(total: Tensor | None, x: Tensor) -> Tensor:
    """``total`` and the sum of the (N, dim) rows, in place; None counts as zeros."""
    rows = x.sum(dim=0)
    return rows if total is None else total.add_(rows)


class _Linear(torch.autograd.Function):
    """``linear`` with a backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        grads = grad.flatten(0, -2)
        dx = product(grad, weight) if needs_x else None
        dweight = grads.t() @ x.flatten(0, -2) if needs_weight else None
        return dx, dweight, grads.sum(dim=0) if needs_bias else None


# Weight, bias and eps of a LayerNorm.
NormParts = tuple[Tensor, Tensor, float]


def norm_parts(norm: nn.Module, x: Tensor) -> NormParts | None:
    """What a fused operation needs to apply ``norm`` to ``x`` itself; None where it must not.

    On CPUs without autocast: there a norm inside the operation that follows works on tokens in
    the cache, and its output need not be kept. On GPUs this is not measured.
    """
    if (
        eager()
        and x.device.type == "cpu"
        and isinstance(norm, nn.LayerNorm)
        and untouched(norm, nn.LayerNorm)
        and norm.weight is not None
        and norm.bias is not None
        and norm.weight.dtype == x.dtype
        and not torch.is_autocast_enabled("cpu")
    ):
        return norm.weight, norm.bias, norm.eps
    return None


def layer_norm(x: Tensor, norm: NormParts) -> tuple[Tensor, Tensor, Tensor]:
    """Normed tokens, and the means and reciprocal deviations that the backward pass wants."""
    return torch.native_layer_norm(x, x.shape[-1:], *norm)


def layer_norm_backward(
    grad: Tensor, x: Tensor, norm: NormParts, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of tokens, weight and bias."""
    return torch.ops.aten.native_layer_norm_backward(
        grad, x, x.shape[-1:], mean, rstd, norm[0], norm[1], [True, True, True]
    )


def norm_linears(
    x: Tensor, norm: NormParts, weights: Sequence[Tensor], biases: Sequence[Tensor | None]
) -> list[Tensor]:
    """Linears of the same normed tokens: one (..., dim_out) for each weight.

    The backward pass makes the normed tokens anew instead of keeping them.
    """
    if needs_grad(x, *norm[:2], *weights, *biases):
        return list(_NormLinears.apply(x, *norm, len(weights), *weights, *biases))
    normed = layer_norm(x, norm)[0]
    return [linear(normed, w, b) for w, b in zip(weights, biases, strict=True)]


class _NormLinears(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        eps: float,
        count: int,
        *linears: Any,
    ) -> tuple[Tensor, ...]:
        weights, biases = linears[:count], linears[count:]
        ctx.save_for_backward(x, norm_weight, norm_bias, *weights)
        ctx.eps = eps
        normed = layer_norm(x, (norm_weight, norm_bias, eps))[0]
        return tuple(linear(normed, w, b) for w, b in zip(weights, biases, strict=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, norm_weight, norm_bias, *weights = ctx.saved_tensors
        norm = (norm_weight, norm_bias, ctx.eps)
        tokens, flat = x.flatten(0, -2), [g.flatten(0, -2) for g in grads]
        dx = torch.empty_like(tokens)
        dnorm = [torch.zeros_like(norm_weight), torch.zeros_like(norm_bias)]
        dweights: list[Tensor | None] = [None] * len(weights)
        for rows in chunks(tokens):
            normed, mean, rstd = layer_norm(tokens[rows], norm)
            dweights = [
                add_product(dweight, g[rows].t(), normed)
                for dweight, g in zip(dweights, flat, strict=True)
            ]
            dnormed, *others = (product(g[rows], w) for g, w in zip(flat, weights, strict=True))
            for other in others:
                dnormed += other
            dx[rows], *parts = layer_norm_backward(dnormed, tokens[rows], norm, mean, rstd)
            for total, part in zip(dnorm, parts, strict=True):
                total += part
        dbiases = [
            g.sum(dim=0) if need else None
            for g, need in zip(flat, ctx.needs_input_grad[-len(flat) :], strict=True)
        ]
        return dx.view_as(x), *dnorm, None, None, *dweights, *dbiases


def half_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """``norm(x)`` for a consumer that autocast runs in half precision.

    CUDA's autocast computes LayerNorm of half-precision tokens by way of float32 tensors, which
    the next product rounds back: on an H100 a third of the model's time. The kernel for half
    tensors computes in float32 inside and rounds once at the end, as those two steps do.
    """
    if (
        x.is_cuda
        and isinstance(norm, nn.LayerNorm)
        and untouched(norm, nn.LayerNorm)
        and norm.weight is not None
        and norm.bias is not None
        and torch.is_autocast_enabled("cuda")
        and x.dtype == torch.get_autocast_dtype("cuda")
    ):
        weight, bias = norm.weight.to(x.dtype), norm.bias.to(x.dtype)
        with torch.autocast("cuda", enabled=False):
            return F.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)
    return norm(x)


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """What autocast turns ``x`` to for a product; None where it is off or leaves ``x`` alone.

    It leaves float64 alone. PyTorch has no autocast for the meta device, and raises when asked.
    """
    device = x.device.type
    if x.dtype == torch.float64 or device == "meta" or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def autocast(x: Tensor, *others: Tensor | None) -> list[Any]:
    """``x`` and what goes with it as autocast would hand them to a product."""
    dtype = autocast_dtype(x)
    if dtype is None:
        return [x, *others]
    return [t if t is None else t.to(dtype) for t in (x, *others)]


def no_autocast(device: str) -> AbstractContextManager:
    """A context in which autocast for ``device`` is off."""
    return nullcontext() if device == "meta" else torch.autocast(device, enabled=False)
