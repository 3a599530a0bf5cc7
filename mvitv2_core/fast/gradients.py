"""Second derivatives of operations whose backward pass is written by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def by_definition(
    definition: Callable[..., Tensor],
    tensors: Sequence[Tensor | None],
    grad: Tensor,
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of ``definition(*tensors)`` that can be differentiated again.

    A backward pass calls this where gradients are recorded (``create_graph=True``): the plain
    definition runs once more, and autograd knows every step of it.
    """
    with torch.enable_grad():
        # Views of their own, since one tensor may stand in two places.
        views = [t if t is None else t.view_as(t) for t in tensors]
        wanted = [view for view, need in zip(views, needed, strict=True) if need]
        found = iter(
            torch.autograd.grad(
                definition(*views),
                wanted,  # type: ignore[arg-type]
                grad,
                create_graph=True,
                allow_unused=True,
            )
        )
    return [next(found) if need else None for need in needed]
