"""The formula of ``triton_attention`` by PyTorch's operations: its gradients have gradients."""

from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor


def counts(grid: Sequence[int], window: Sequence[int]) -> list[int]:
    """How many windows lie along each axis."""
    return [-(-n // w) for n, w in zip(grid, window, strict=True)]


def plain(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    terms: Sequence[Tensor],
    axes: Sequence[int],
    q_thw: Sequence[int],
    k_thw: Sequence[int],
    cls_token: bool,
    add_q: bool,
    q_window: Sequence[int],
    k_window: Sequence[int],
) -> Tensor:
    """The same by PyTorch's operations, differentiable any number of times; for short inputs."""
    q_window, k_window = q_window or q_thw, k_window or k_thw
    first = int(cls_token)
    queries = _by_window(q_thw, q_window, q.device) + first
    keys = _by_window(k_thw, k_window, q.device) + first
    if cls_token:
        zero = queries.new_zeros(1, 1)
        queries, keys = torch.cat([zero, queries], dim=1), torch.cat([zero, keys], dim=1)

    def gather(x: Tensor, rows: Tensor) -> Tensor:  # (B, N, ...) -> (B, windows, rows, ...)
        return F.pad(x, (0, 0, 0, 0, 0, 1))[:, rows]

    q_, k_, v_ = gather(q, queries), gather(k, keys), gather(v, keys)
    logits = torch.einsum("bwqhd,bwkhd->bwhqk", q_ * q.shape[-1] ** -0.5, k_)
    cells = torch.unravel_index(torch.arange(prod(k_window), device=q.device), tuple(k_window))
    for axis, term in zip(axes, terms, strict=True):
        part = gather(F.pad(term, (0, 0, 0, 0, first, 0)), queries)[..., cells[axis]]
        logits = logits + F.pad(part, (first, 0)).movedim(-2, -3)
    out = torch.einsum("bwhqk,bwkhd->bwqhd", logits.softmax(dim=-1), v_).flatten(1, 2)
    rows = queries.flatten()
    out = out[:, rows.argsort()[: q.shape[1]]]
    return torch.cat([out[:, :first], out[:, first:] + q[:, first:]], dim=1) if add_q else out


def _by_window(grid: Sequence[int], window: Sequence[int], device: torch.device) -> Tensor:
    """(windows, cells) indices of a grid's tokens; the number of tokens where there is none."""
    number = counts(grid, window)
    x = torch.arange(prod(grid), device=device).view(*grid)
    for axis, (n, c, w) in enumerate(zip(grid, number, window, strict=True)):
        x = F.pad(x.movedim(axis, -1), (0, c * w - n), value=prod(grid)).movedim(-1, axis)
    for axis in reversed(range(len(grid))):
        x = x.unflatten(axis, (number[axis], window[axis]))
    axes = len(grid)
    return x.permute(*range(0, 2 * axes, 2), *range(1, 2 * axes, 2)).reshape(
        prod(number), prod(window)
    )
