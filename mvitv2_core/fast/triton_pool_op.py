"""``mvitv2::pool_heads``: the kernels of ``triton_pool`` as custom operators of PyTorch.

A compiler traces over them, and gradients of gradients come from the plain formula.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Tokens of a block, and warps.
ROWS, WARPS = 32, 8
# About as many programs part the tokens to sum the gradients of parameters.
PROGRAMS = 528


def _pooled(thw: Sequence[int], kernel: Sequence[int], stride: Sequence[int]) -> list[int]:
    return [(n + k // 2 * 2 - k) // s + 1 for n, k, s in zip(thw, kernel, stride, strict=True)]


def _constants(
    x: Tensor, weight: Tensor, thw: Sequence[int], stride: Sequence[int], cls_token: bool
) -> tuple[list[int], dict[str, Any]]:
    """The heads, the grid and the pooled grid; what kernels are compiled for."""
    kernel, rank = list(weight.shape[2:]), len(thw)
    grids = [[1] * (3 - rank) + list(grid) for grid in (thw, _pooled(thw, kernel, stride))]
    head_dim = x.shape[-1]
    constants: dict[str, Any] = {"D": head_dim, "WIDTH": 1 << (head_dim - 1).bit_length()}
    constants |= {"CLS": int(cls_token), "ROWS": ROWS, "num_warps": WARPS}
    for axis in range(3):
        at = axis - 3 + rank
        constants[f"K{axis}"] = kernel[at] if at >= 0 else 1
        constants[f"S{axis}"] = stride[at] if at >= 0 else 1
    return [x.shape[2], *grids[0], *grids[1]], constants


def _strides(x: Tensor) -> tuple[list[int], int]:
    """Strides of (B, N, heads, head_dim) but the last, in units of 8 or 1, and the unit."""
    unit = 1 if any(n % 8 for n in x.stride()[:3]) else 8
    return [n // unit for n in x.stride()[:3]], unit


def _by_tap(weights: Sequence[Tensor]) -> Tensor:
    """(head_dim, 1, *kernel) weights -> (tensors, taps, head_dim), whose rows load in one go."""
    return torch.stack([weight.flatten(1).t() for weight in weights])


def _two(tensors: Sequence[Tensor], other: Tensor) -> list[Tensor]:
    """Two tensors for a kernel; those that are none are never read."""
    return [*tensors, *[other] * (2 - len(tensors))]


@torch.library.custom_op(
    "mvitv2::pool_heads",
    mutates_args=(),
    schema="(Tensor[] xs, Tensor[] weights, Tensor[] gains, Tensor[] biases, float[] eps, "
    "SymInt[] thw, SymInt[] stride, bool cls_token) -> Tensor[]",
)
def pool_op(
    xs: Sequence[Tensor],
    weights: Sequence[Tensor],
    gains: Sequence[Tensor],
    biases: Sequence[Tensor],
    eps: Sequence[float],
    thw: Sequence[int],
    stride: Sequence[int],
    cls_token: bool,
) -> list[Tensor]:
    from . import triton_pool_kernels as kernels

    x = xs[0]
    sizes, constants = _constants(x, weights[0], thw, stride, cls_token)
    ys = _empty(xs, weights, thw, stride, cls_token)
    strides, unit = _strides(x)
    programs = x.shape[0] * x.shape[2] * len(xs)
    with torch.cuda.device_of(x):
        kernels.forward[-(-ys[0].shape[1] // ROWS), programs](
            *(*_two(xs, x), _by_tap(weights), *_two(gains, x), *_two(biases, x), *_two(ys, x)),
            *(*strides, *sizes, *[*eps, 0.0, 0.0][:2]),
            **{**constants, "TWO": len(xs) - 1, "NORM": bool(gains), "UNIT": unit},
        )
    return ys


def _empty(
    xs: Sequence[Tensor],
    weights: Sequence[Tensor],
    thw: Sequence[int],
    stride: Sequence[int],
    cls_token: bool,
) -> list[Tensor]:
    rows = prod(_pooled(thw, weights[0].shape[2:], stride)) + int(cls_token)
    return [x.new_empty(x.shape[0], rows, *x.shape[2:]) for x in xs]


@pool_op.register_fake
def _(
    xs: Sequence[Tensor],
    weights: Sequence[Tensor],
    gains: Sequence[Tensor],
    biases: Sequence[Tensor],
    eps: Sequence[float],
    *sizes: Any,
) -> list[Tensor]:
    return _empty(xs, weights, *sizes)


@torch.library.custom_op(
    "mvitv2::pool_heads_backward",
    mutates_args=(),
    schema="(Tensor[] grads, Tensor[] xs, Tensor[] weights, Tensor[] gains, float[] eps, "
    "SymInt[] thw, SymInt[] stride, bool cls_token, bool d_xs, bool d_weights) "
    "-> (Tensor[], Tensor)",
)
def pool_backward_op(
    grads: Sequence[Tensor],
    xs: Sequence[Tensor],
    weights: Sequence[Tensor],
    gains: Sequence[Tensor],
    eps: Sequence[float],
    thw: Sequence[int],
    stride: Sequence[int],
    cls_token: bool,
    d_xs: bool,
    d_weights: bool,
) -> tuple[list[Tensor], Tensor]:
    """-> gradients of xs; (tensors, taps + 2, head_dim) those of weights and norms in float32.

    Each list is empty, or the rows without meaning, where a gradient is not wanted.
    """
    from . import triton_pool_kernels as kernels

    x = xs[0]
    sizes, constants = _constants(x, weights[0], thw, stride, cls_token)
    constants["TWO"] = len(xs) - 1
    dxs, sums = _empty_grads(xs, weights, d_xs)
    by_tap, blocks = _by_tap(weights), -(-grads[0].shape[1] // ROWS)
    strides, unit = _strides(x)
    programs = x.shape[0] * x.shape[2] * len(xs)
    tiles = -(-blocks // min(max(PROGRAMS // programs, 1), blocks))
    parts = -(-blocks // tiles)
    lines = sums.new_empty(len(xs), x.shape[0] * x.shape[2] * parts, *sums.shape[1:])
    grads = [grad.contiguous() for grad in grads]
    y_strides, y_unit = _strides(grads[0])
    with torch.cuda.device_of(x):
        if gains:
            normed = [grad.new_empty(grad.shape) for grad in grads]
            kernels.backward_norm[parts, programs](
                *(*_two(xs, x), by_tap, *_two(gains, x), *_two(grads, x), *_two(normed, x), lines),
                *(*strides, *y_strides, *sizes, parts, tiles, *[*eps, 0.0][:2]),
                **{**constants, "UNIT": unit, "Y_UNIT": y_unit},
            )
            grads = normed
        if d_xs:
            kernels.backward_input[-(-x.shape[1] // ROWS), programs](
                *(by_tap, *_two(grads, x), *_two(dxs, x), *y_strides, *sizes),
                **{**constants, "UNIT": y_unit},
            )
        if d_weights:
            kernels.backward_weight[parts, programs](
                *(*_two(xs, x), *_two(grads, x), lines, *strides, *y_strides, *sizes, parts, tiles),
                **{**constants, "UNIT": unit, "Y_UNIT": y_unit},
            )
        if gains or d_weights:
            size = sums.shape[1] * sums.shape[2]
            kernels.add_sums[-(-size // 32), len(xs)](
                lines, sums, lines.shape[1], SIZE=size, BLOCK=32, LINES=32
            )
    return dxs, sums


def _empty_grads(
    xs: Sequence[Tensor], weights: Sequence[Tensor], d_xs: bool
) -> tuple[list[Tensor], Tensor]:
    taps, head_dim = prod(weights[0].shape[2:]), xs[0].shape[-1]
    sums = xs[0].new_empty(len(xs), taps + 2, head_dim, dtype=torch.float32)
    return [x.new_empty(x.shape) for x in xs] if d_xs else [], sums


@pool_backward_op.register_fake
def _(
    grads: Sequence[Tensor], xs: Sequence[Tensor], weights: Sequence[Tensor], *rest: Any
) -> tuple[list[Tensor], Tensor]:
    return _empty_grads(xs, weights, rest[-2])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    xs, weights, gains, biases, ctx.eps, *ctx.rest = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*xs, *weights, *gains, *biases)
    ctx.count, ctx.normed, ctx.shapes = len(xs), bool(gains), [y.shape for y in output]


def _backward(ctx: Any, grads: Sequence[Tensor | None]) -> tuple[Any, ...]:
    n = ctx.count
    saved = ctx.saved_tensors
    xs, weights, gains, biases = (list(saved[i * n : (i + 1) * n]) for i in range(4))
    # PyTorch takes an empty list, and no None, for the gradient of an empty list.
    rest: tuple[Any, ...] = (None if ctx.eps else [], None, None, None)
    parameters: list[list[Tensor | None]] = [
        [None] * len(part) for part in (weights, gains, biases)
    ]
    if all(grad is None for grad in grads):
        return ([None] * n, *parameters, *rest)
    full = [
        saved[0].new_zeros(shape) if grad is None else grad
        for grad, shape in zip(grads, ctx.shapes, strict=True)
    ]
    if torch.is_grad_enabled():  # a gradient of this gradient is wanted
        tensors = [*xs, *weights, *gains, *biases]
        wanted = [x for x in tensors if x.requires_grad]
        with torch.autocast(saved[0].device.type, enabled=False):
            outs = plain(xs, weights, gains, biases, ctx.eps, *ctx.rest)
            found = iter(torch.autograd.grad(outs, wanted, full, create_graph=True))
        got = [next(found) if x.requires_grad else None for x in tensors]
        lists = (got[:n], got[n : 2 * n], *(got[2 * n :][:n], got[3 * n :]))
        return (*lists, *rest)
    d_xs, d_weights = (any(ctx.needs_input_grad[i]) for i in range(2))
    dxs, sums = pool_backward_op(full, xs, weights, gains, ctx.eps, *ctx.rest, d_xs, d_weights)
    if d_weights:
        # (taps, head_dim) -> (head_dim, 1, *kernel)
        parameters[0] = [
            s[:-2].t().reshape(w.shape).to(w.dtype) for s, w in zip(sums, weights, strict=True)
        ]
    if gains:
        parameters[1] = [s[-2].to(x.dtype) for s, x in zip(sums, gains, strict=True)]
        parameters[2] = [s[-1].to(x.dtype) for s, x in zip(sums, biases, strict=True)]
    return (dxs if d_xs else [None] * n, *parameters, *rest)


pool_op.register_autograd(_backward, setup_context=_setup_context)


def plain(
    xs: Sequence[Tensor],
    weights: Sequence[Tensor],
    gains: Sequence[Tensor],
    biases: Sequence[Tensor],
    eps: Sequence[float],
    thw: Sequence[int],
    stride: Sequence[int],
    cls_token: bool,
) -> list[Tensor]:
    """The same by PyTorch's operations, differentiable any number of times."""
    outs = []
    for n, (x, weight) in enumerate(zip(xs, weights, strict=True)):
        batch, heads, head_dim = x.shape[0], *x.shape[2:]
        padding = [k // 2 for k in weight.shape[2:]]
        convolve = (F.conv1d, F.conv2d, F.conv3d)[len(thw) - 1]
        # (B, N, heads, head_dim) -> (B * heads, head_dim, *grid)
        grid = x[:, int(cls_token) :].permute(0, 2, 3, 1).reshape(-1, head_dim, *thw)
        weight = weight.to(x.dtype)
        grid = convolve(grid, weight, None, tuple(stride), padding, groups=head_dim)
        y = grid.reshape(batch, heads, head_dim, -1).permute(0, 3, 1, 2)
        y = torch.cat([x[:, : int(cls_token)], y], dim=1)
        if gains:
            gain, bias = gains[n].to(y.dtype), biases[n].to(y.dtype)
            y = F.layer_norm(y, (head_dim,), gain, bias, eps[n])
        outs.append(y)
    return outs
