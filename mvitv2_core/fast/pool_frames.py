"""Pools of clips as sums of pools of frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import plain
from .gradients import by_definition
from .precision import cast_for_product, without_autocast


def pool(x: Tensor, weight: Tensor, stride: Sequence[int]) -> Tensor:
    """``plain.pool`` of a (B, T, H, W, heads * head_dim) clip.

    PyTorch's three-axis depthwise kernels over channels-last clips are slow where they are not
    forward passes on a CPU (measured: backward 3x to 5x on two cores of a CPU and 30x on an H100
    against a sum of two-axis ones).
    """
    heads = x.shape[-1] // weight.shape[0]
    x, weight = cast_for_product(x, weight)
    with without_autocast(x.device.type):
        # (head_dim, 1, *kernel) -> (frames of the kernel, heads * head_dim, 1, kh, kw), in one copy
        frames = weight.movedim(2, 0)[:, None]
        taps = frames.expand(-1, heads, *frames.shape[2:]).flatten(1, 2).contiguous()
        # Contiguous once, where q, k and v or a class token were parted, and not for each frame.
        return _Frames.apply(x.contiguous(), taps, tuple(stride))


def _of_clips(x: Tensor, taps: Tensor, stride: Sequence[int]) -> Tensor:
    """(B, T, H, W, C) -> (B, *strided grid, C) by PyTorch's own kernel for three axes."""
    return _of_frames(x, taps.movedim(0, 2), stride)


def _of_frames(x: Tensor, weight: Tensor, stride: Sequence[int]) -> Tensor:
    """(B, *grid, C) * (C, 1, *kernel) -> (B, *strided grid, C)."""
    padding = [k // 2 for k in weight.shape[2:]]
    x = x.movedim(-1, 1)
    return plain.convolution(x, weight, None, stride, padding, 1, x.shape[1]).movedim(1, -1)


def tied_frames(size: int, kernel: int, stride: int) -> Iterator[tuple[int, slice, slice]]:
    """For each frame of the kernel, centre first: its index, the input frames and outputs it ties.

    Frames that would lie outside the clip are zeros and tie nothing.
    """
    centre = kernel // 2
    for tap in sorted(range(kernel), key=lambda tap: abs(tap - centre)):
        shift = tap - centre
        first = max(-(shift // stride), 0)
        last = min((size - 1 - shift) // stride, (size - 1) // stride)
        if last >= first:
            start, stop = first * stride + shift, last * stride + shift + 1
            yield tap, slice(start, stop, stride), slice(first, last + 1)


class _Frames(torch.autograd.Function):
    """A (B, T, H, W, C) depthwise convolution as a sum of convolutions of frames."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: Tensor, stride: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(x, taps)
        ctx.stride = stride
        if not x.is_cuda:
            return _of_clips(x, taps, stride).contiguous()
        out: Tensor | None = None
        # Frames that a tap does not need are convolved too: to leave some out would copy the rest.
        whole = stride[0] == 1
        for tap, frames, outputs in tied_frames(x.shape[1], len(taps), stride[0]):
            part = _of_frames((x if whole else x[:, frames]).flatten(0, 1), taps[tap], stride[1:])
            part = part.unflatten(0, (x.shape[0], -1))
            if out is None:  # the centre of the kernel reaches every output
                out = part
            else:
                out[:, outputs].add_(part[:, frames] if whole else part)
        assert out is not None
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, taps = ctx.saved_tensors
        stride, (needs_x, needs_taps, _) = ctx.stride, ctx.needs_input_grad
        if torch.is_grad_enabled():
            needed = (needs_x, needs_taps)
            dx, dtaps = by_definition(
                lambda x, taps: _of_clips(x, taps, stride), (x, taps), grad, needed
            )
            return dx, dtaps, None
        padding = [k // 2 for k in taps.shape[3:]]
        dtaps = torch.zeros_like(taps)
        # With stride 1 the pairs of a tap lie the same way apart in all frames of all samples, so
        # that no frame is copied, and the centre's gradient takes in every frame of x.
        flat = stride[0] == 1
        dx = None if flat else torch.zeros_like(x)
        for tap, frames, outputs in tied_frames(x.shape[1], len(taps), stride[0]):
            if flat:
                x_, g_, rows = _shifted(x, grad, outputs, tap - len(taps) // 2)
            else:
                x_, g_ = x[:, frames].flatten(0, 1), grad[:, outputs].flatten(0, 1)
            # (frames, H, W, C) -> (frames, C, H, W), channels last
            dx_, dtap, _ = torch.ops.aten.convolution_backward(
                *(g_.movedim(-1, 1), x_.movedim(-1, 1), taps[tap], None),
                *(stride[1:], padding, [1, 1], False, [0, 0], taps.shape[1]),
                [needs_x, needs_taps, False],
            )
            if needs_taps:
                dtaps[tap] = dtap
            if not needs_x:
                continue
            dx_ = dx_.movedim(1, -1)
            if dx is None:
                dx = dx_.contiguous().view_as(x)
            else:
                part = dx.flatten(0, 1)[rows] if flat else dx[:, frames]
                part.add_(dx_.unflatten(0, part.shape[:-3]))
        return dx, dtaps if needs_taps else None, None


def _shifted(x: Tensor, grad: Tensor, outputs: slice, shift: int) -> tuple[Tensor, Tensor, slice]:
    """Frames of x and of the gradient that a tap ties, (frames, H, W, C), and which of x they are.

    Frames count through all samples. What would tie a sample to the next is zero in the gradient.
    """
    count = x.shape[0] * x.shape[1]
    if shift and x.shape[0] > 1:
        grad = grad.clone(memory_format=torch.contiguous_format)
        grad[:, : outputs.start] = 0
        grad[:, outputs.stop :] = 0
    rows = slice(max(shift, 0), count + min(shift, 0))
    return x.flatten(0, 1)[rows], grad.flatten(0, 1)[max(-shift, 0) : count - max(shift, 0)], rows
