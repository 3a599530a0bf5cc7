"""What PyTorch's convolutions need on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .context import untouched
from .linear import autocast_dtype, no_autocast

KINDS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def fails_in_bfloat16(x: Tensor) -> bool:
    """Whether the gradient of a convolution of ``x`` could hold uninitialised memory.

    PyTorch 2.14.1's (oneDNN's) bfloat16 weight gradients on CPUs do for channels-last tokens and
    images, and for one cell, which is both channels-last and not: where a stride exceeds the kernel
    or the kernel leaves the grid. Computing in float32 is the sure way round, and no less exact.
    """
    narrow = x.device.type == "cpu" and (autocast_dtype(x) or x.dtype) == torch.bfloat16
    return narrow and torch.is_grad_enabled()


def call_convolution(conv: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor:
    """``conv(x)``, by way of float32 where bfloat16 fails.

    A module that is more than a convolution (hooks, adapters) gets its tensor as it is, only in
    memory that is surely not channels-last.
    """
    if not fails_in_bfloat16(x):
        return conv(x)
    if not any(untouched(conv, kind) for kind in KINDS):
        return conv(x.clone(memory_format=torch.contiguous_format))
    bias = None if conv.bias is None else conv.bias.float()
    with no_autocast("cpu"):
        return conv._conv_forward(x.float(), conv.weight.float(), bias).to(torch.bfloat16)
