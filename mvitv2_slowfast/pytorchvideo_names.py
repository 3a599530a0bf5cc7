"""Names that PySlowFast imports from pytorchvideo, and that its release 0.1.5 lacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class _LocalGroup:
    """The process group of this machine's ranks, once training is distributed."""

    group: Any = None


def init_distributed_training(num_gpus: int, shard_id: int) -> None:
    """Make the process group of each machine's ``num_gpus`` ranks; ``shard_id`` is this one."""
    if num_gpus <= 1:
        return
    for shard in range(torch.distributed.get_world_size() // num_gpus):
        ranks = list(range(shard * num_gpus, (shard + 1) * num_gpus))
        group = torch.distributed.new_group(ranks)  # every rank must take part in making each
        if shard == shard_id:
            _LocalGroup.group = group


def get_local_process_group() -> Any:
    """The process group of this machine, None where training is not distributed."""
    return _LocalGroup.group


def get_local_size() -> int:
    """Number of ranks on this machine."""
    return torch.distributed.get_world_size(_LocalGroup.group) if _distributed() else 1


def get_local_rank() -> int:
    """Rank on this machine."""
    return torch.distributed.get_rank(_LocalGroup.group) if _distributed() else 0


def cat_all_gather(tensor: Tensor, local: bool = False) -> Tensor:
    """(N, ...) of every rank, or of this machine's, joined along the first axis. No gradient."""
    size = get_local_size() if local else torch.distributed.get_world_size()
    parts = [torch.empty_like(tensor) for _ in range(size)]
    torch.distributed.all_gather(parts, tensor, group=_LocalGroup.group if local else None)
    return torch.cat(parts)


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


DISTRIBUTED: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        cat_all_gather,
        get_local_process_group,
        get_local_rank,
        get_local_size,
        init_distributed_training,
    )
}


class SoftTargetCrossEntropyLoss(nn.Module):
    """Cross entropy against a distribution over the classes.

    Args:
        ignore_index: class index of samples that do not count.
        reduction: "mean" over the samples that count, or "none".
        normalize_targets: divide each target by its sum.

    Raises:
        ValueError: another ``reduction``.
    """

    def __init__(
        self, ignore_index: int = -100, reduction: str = "mean", normalize_targets: bool = True
    ) -> None:
        super().__init__()
        if reduction not in ("mean", "none"):
            raise ValueError(f"reduction must be mean or none, got {reduction!r}")
        self.ignore_index, self.reduction = ignore_index, reduction
        self.normalize_targets = normalize_targets

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """(B, classes) logits; (B, classes) distributions or (B,) class indices -> loss."""
        counts = torch.ones(input.shape[0], dtype=input.dtype, device=input.device)
        if target.ndim == 1:
            counts = (target != self.ignore_index).to(input.dtype)
            indices = target.where(target != self.ignore_index, torch.zeros_like(target))
            target = nn.functional.one_hot(indices, input.shape[1])
        target = target.to(input.dtype)
        if self.normalize_targets:
            target = target / target.sum(dim=-1, keepdim=True).clamp_min(1e-5)
        loss = -(target * input.log_softmax(dim=-1)).sum(dim=-1) * counts
        return loss if self.reduction == "none" else loss.sum() / counts.sum().clamp_min(1.0)
