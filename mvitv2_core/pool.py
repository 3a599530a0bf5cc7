"""Depthwise pooling of tokens that are channels-last already."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .context import observed
from .conv import fails_in_bfloat16
from .linear import autocast, no_autocast


class HeadPool(nn.Module):
    """Depthwise convolution over the grid with one set of weights shared by all heads.

    Args:
        head_dim: channels of a head; ``weight`` is (head_dim, 1, *kernel), as on disk.
        kernel, stride: one size per axis; padding is kernel // 2.
    """

    def __init__(self, head_dim: int, kernel: Sequence[int], stride: Sequence[int]) -> None:
        super().__init__()
        self.kernel, self.stride = tuple(kernel), tuple(stride)
        self.weight = nn.Parameter(torch.empty(head_dim, 1, *kernel))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))  # as nn.Conv starts

    def forward(self, x: Tensor) -> Tensor:
        """(B, *grid, heads * head_dim) -> (B, *pooled grid, heads * head_dim).

        The channels of every head lie side by side in the last dimension, so the tokens are a
        channels-last image already: repeating the weight replaces moving the heads.
        """
        kernel, stride = self.kernel, self.stride
        weight: Tensor = self.weight
        lead: tuple[int, ...] = tuple(x.shape[:1])
        while len(kernel) > 1 and kernel[0] == stride[0] == 1:
            # An axis that is not pooled is a batch axis: (B, T, H, W, C) -> (B * T, H, W, C)
            lead, kernel, stride = (*lead, x.shape[1]), kernel[1:], stride[1:]
            x, weight = x.flatten(0, 1), weight.squeeze(2)
        heads = x.shape[-1] // weight.shape[0]
        if heads > 1:  # one copy, where repeat takes five operations
            weight = weight.expand(heads, *weight.shape).flatten(0, 1)
        x = depthwise_conv(x, weight, stride)
        return x.unflatten(0, lead) if len(lead) > 1 else x

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, kernel={self.kernel}, stride={self.stride}"


def depthwise_conv(x: Tensor, weight: Tensor, stride: Sequence[int]) -> Tensor:
    """(B, *grid, C) * (C, 1, *kernel) -> (B, *strided grid, C), padded by kernel // 2.

    Three-axis kernels over channels-last clips are slow where they are not forward passes on a
    CPU (measured: backward 3x to 5x on the CPU and 30x on an H100 against a sum of two-axis
    ones), so there they run as one convolution of frames for each frame of the kernel.
    """
    if fails_in_bfloat16(x):
        with no_autocast("cpu"):
            return depthwise_conv(x.float(), weight.float(), stride).to(torch.bfloat16)
    by_frames = weight.ndim == 5 and weight.shape[2] % 2 == 1 and not observed()
    if by_frames and (x.is_cuda or torch.is_grad_enabled()):
        x, weight = autocast(x, weight)
        with no_autocast(x.device.type):
            # Contiguous once, where a class token was parted from it, and not for each frame.
            return _ByFrames.apply(x.contiguous(), weight, tuple(stride))
    return _whole(x, weight, stride)


def _whole(x: Tensor, weight: Tensor, stride: Sequence[int]) -> Tensor:
    kernel = weight.shape[2:]
    conv = (F.conv1d, F.conv2d, F.conv3d)[len(kernel) - 1]
    padding = tuple(k // 2 for k in kernel)
    x = x.movedim(-1, 1)
    return conv(x, weight, None, tuple(stride), padding, groups=x.shape[1]).movedim(1, -1)


def _frames(size: int, kernel: int, stride: int) -> Iterator[tuple[int, slice, slice]]:
    """For each frame of the kernel, centre first: its index, the input frames and outputs it ties.

    Frames that would lie outside the clip are zeros and tie nothing.
    """
    centre = kernel // 2
    for tap in sorted(range(kernel), key=lambda tap: abs(tap - centre)):
        shift = tap - centre
        first = max(-(shift // stride), 0)
        last = (size - 1 - shift) // stride
        last = min(last, (size - 1) // stride)
        if last >= first:
            start, stop = first * stride + shift, last * stride + shift + 1
            yield tap, slice(start, stop, stride), slice(first, last + 1)


class _ByFrames(torch.autograd.Function):
    """A (B, T, H, W, C) depthwise convolution as a sum of convolutions of frames."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        if not x.is_cuda:
            return _whole(x, weight, stride).contiguous()
        out: Tensor | None = None
        taps = weight.movedim(2, 0).contiguous()
        # Frames that a tap does not need are convolved too: to leave some out would copy the rest.
        whole = stride[0] == 1
        for tap, frames, outputs in _frames(x.shape[1], weight.shape[2], stride[0]):
            part = _whole((x if whole else x[:, frames]).flatten(0, 1), taps[tap], stride[1:])
            part = part.unflatten(0, (x.shape[0], -1))
            if out is None:  # the centre of the kernel reaches every output
                out = part
            else:
                out[:, outputs].add_(part[:, frames] if whole else part)
        assert out is not None
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        stride, (needs_x, needs_weight, _) = ctx.stride, ctx.needs_input_grad
        kernel, channels = weight.shape[2:], weight.shape[0]
        padding = [k // 2 for k in kernel[1:]]
        taps = weight.movedim(2, 0).contiguous()
        dtaps = torch.zeros_like(taps)
        # With stride 1 the pairs of a tap lie the same way apart in all frames of all samples, so
        # that no frame is copied, and the centre's gradient takes in every frame of x.
        flat = stride[0] == 1
        dx = None if flat else torch.zeros_like(x)
        for tap, frames, outputs in _frames(x.shape[1], kernel[0], stride[0]):
            if flat:
                x_, g_, rows = _shifted(x, grad, outputs, tap - kernel[0] // 2)
            else:
                x_, g_ = x[:, frames].flatten(0, 1), grad[:, outputs].flatten(0, 1)
            # (frames, H, W, C) -> (frames, C, H, W), channels last
            dx_, dtap, _ = torch.ops.aten.convolution_backward(
                *(g_.movedim(-1, 1), x_.movedim(-1, 1), taps[tap], None),
                *(stride[1:], padding, [1, 1], False, [0, 0], channels),
                [needs_x, needs_weight, False],
            )
            if needs_weight:
                dtaps[tap] = dtap
            if not needs_x:
                continue
            dx_ = dx_.movedim(1, -1)
            if dx is None:
                dx = dx_.contiguous().view_as(x)
            else:
                part = dx.flatten(0, 1)[rows] if flat else dx[:, frames]
                part.add_(dx_.unflatten(0, part.shape[:-3]))
        return dx, dtaps.movedim(0, 2) if needs_weight else None, None


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
