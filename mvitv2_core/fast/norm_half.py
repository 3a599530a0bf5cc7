"""LayerNorm of half-precision tokens under CUDA's autocast, in one kernel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def layer_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor, bias: Tensor | None, eps: float
) -> Tensor:
    """PyTorch's ``layer_norm``, for a consumer that autocast runs in half precision.

    CUDA's autocast computes LayerNorm of half-precision tokens by way of float32 tensors, which
    the next product rounds back: on an H100 a third of the model's time. The kernel for half
    tensors computes in float32 inside and rounds once at the end, as those two steps do. But it
    wants gain and bias in half precision: they are rounded, as autocast rounds linears' weights,
    where the official code under autocast has them in float32.
    """
    bias = None if bias is None else bias.to(x.dtype)
    with torch.autocast("cuda", enabled=False):
        return F.layer_norm(x, shape, weight.to(x.dtype), bias, eps)
