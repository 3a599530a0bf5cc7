"""What autocast does to the tensors of a product, for operations that autocast does not know."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """What autocast turns ``x`` to for a product; None where it is off or leaves ``x`` alone.

    It leaves float64 alone. PyTorch has no autocast for the meta device, and raises when asked.
    """
    device = x.device.type
    if x.dtype == torch.float64 or device == "meta" or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def cast_for_product(x: Tensor, *others: Tensor | None) -> list[Any]:
    """``x`` and what goes with it as autocast would hand them to a product."""
    dtype = autocast_dtype(x)
    if dtype is None:
        return [x, *others]
    return [t if t is None else t.to(dtype) for t in (x, *others)]


def without_autocast(device: str) -> AbstractContextManager:
    """A context in which autocast for ``device`` is off."""
    return nullcontext() if device == "meta" else torch.autocast(device, enabled=False)
