"""Faults of PyTorch that results must not depend on, each with its thread and its versions.

A fault is taken to be there on the versions that it was seen on. On later ones it is looked for,
once, when it first could matter, and what keeps away from it stays off where it is gone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .precision import autocast_dtype, without_autocast

VERSION = tuple(int(part) for part in torch.__version__.split(".")[:2])


# bfloat16 convolutions on CPUs, by oneDNN. Seen with PyTorch 2.14.1: gradients of weights hold
# uninitialised memory for channels-last tokens and images, and for one cell, which is both
# channels-last and not, where a stride exceeds the kernel or the kernel leaves the grid. Known
# upstream for wrong outputs: https://github.com/pytorch/pytorch/issues/169688 (open; one output
# cell along a strided axis, on CPUs with AMX) and https://github.com/pytorch/pytorch/issues/163347.
BFLOAT16_SEEN = (2, 14)


def bfloat16_fails(x: Tensor, *_: Any) -> bool:
    """Whether a convolution of ``x`` in training could meet the fault.

    Computing in float32 is the sure way round, and no less exact.
    """
    narrow = x.device.type == "cpu" and (autocast_dtype(x) or x.dtype) == torch.bfloat16
    return narrow and torch.is_grad_enabled() and bfloat16_fault()


@functools.cache
def bfloat16_fault() -> bool:
    """Whether this PyTorch has the fault."""
    return VERSION <= BFLOAT16_SEEN or bfloat16_fault_shows()


def bfloat16_fault_shows() -> bool:
    """Whether gradients of weights differ from float32's, on tensors that made the fault show."""
    generator = torch.Generator().manual_seed(0)
    with torch.enable_grad(), without_autocast("cpu"):
        for size in range(1, 16, 2):
            x = torch.randn(3, 16, size, max(size - 2, 1), generator=generator)
            x = x.to(memory_format=torch.channels_last)
            weight = torch.randn(16, 1, 3, 3, generator=generator)
            grads = []
            for dtype in (torch.float32, torch.bfloat16):
                leaf = weight.to(dtype).requires_grad_()
                out = F.conv2d(x.to(dtype), leaf, None, 8, 1, groups=16)
                garbage = [torch.full((16 * 9 * n,), torch.nan, dtype=dtype) for n in (1, 2, 4, 8)]
                del garbage  # what is allocated next, uninitialised, is likely to be this
                grads.append(torch.autograd.grad(out.float().sum(), leaf)[0].float())
            if not torch.allclose(grads[0], grads[1], rtol=0.1, atol=0.1):
                return True
    return False


def in_float32(definition: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``definition`` of the float32 values of bfloat16 tensors, rounded at the end."""

    def run(*args: Any) -> Tensor:
        with without_autocast("cpu"):
            wide = (a.float() if isinstance(a, Tensor) else a for a in args)
            return definition(*wide).to(torch.bfloat16)

    return run
