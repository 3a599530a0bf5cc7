"""An average and accumulation around DistributedDataParallel: what each rank does (tests.ranks)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW

from mvitv2_core.training import Accumulation, Average
from tests.compare import error
from tests.ranks import agree
from tests.small import small_input, small_model

KIND = "image"


def loss(model: nn.Module, seeds: list[int]) -> torch.Tensor:
    x = torch.cat([small_input(KIND, seed=seed, dtype=torch.float64) for seed in seeds])
    labels = torch.tensor([seed % 5 for seed in seeds]).repeat_interleave(2)
    return nn.functional.cross_entropy(model(x), labels)


def trained(rank: int, ranks: int, folder: Path) -> float:
    """Two steps of two batches on every rank, as one process takes them on all together.

    Returns:
        The largest difference of the average's outputs, through the wrapper in evaluation.
    """
    ours, plain = (small_model(KIND).double() for _ in range(2))
    optimizer, other = (AdamW(model.parameters(), lr=1e-2) for model in (ours, plain))
    Average(ours, optimizer, 0.6)
    Accumulation(optimizer, 2)
    average = Average(plain, other, 0.6)
    wrapped = DistributedDataParallel(ours)
    wrapped.train()
    for batch in range(4):
        optimizer.zero_grad()
        loss(wrapped, [batch * ranks + rank]).backward()
        optimizer.step()
    plain.train()
    for step in range(2):
        other.zero_grad()
        loss(plain, [step * 2 * ranks + i for i in range(2 * ranks)]).backward()
        other.step()
    assert agree(ours.state_dict()) and average.started
    for name, value in ours.state_dict().items():
        assert error(value, plain.state_dict()[name]) < 1e-9, name
    wrapped.eval()
    plain.eval()
    x = small_input(KIND, dtype=torch.float64)
    assert error(ours.train()(x), ours.eval()(x)) > 1e-4
    return error(wrapped.eval()(x), plain(x))
