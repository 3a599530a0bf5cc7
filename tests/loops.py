"""A detector in miniature and the loop of a trainer that knows nothing, in float64."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from tests.compare import error
from tests.small import small_input, small_model

KIND = "clip with class token"


class Detector(nn.Module):
    """A model of the project inside of another, as detectors have it."""

    def __init__(self, kind: str = KIND) -> None:
        super().__init__()
        self.backbone = small_model(kind).double()
        self.neck = nn.Linear(5, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.neck(self.backbone(x))


def batches(count: int) -> Iterator[tuple[Tensor, Tensor]]:
    for seed in range(count):
        yield small_input(KIND, seed=seed, dtype=torch.float64), torch.tensor([seed % 3, 1])


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def train(model: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> list[float]:
    """The loop of a trainer that knows nothing; returns its losses."""
    model.train()
    losses = []
    for batch in batches(count):
        optimizer.zero_grad()
        value = loss(model, batch)
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses


def same(ours: nn.Module, plain: nn.Module, bound: float = 1e-13) -> None:
    others = dict(plain.named_parameters())
    for name, parameter in ours.named_parameters():
        assert error(parameter.detach(), others[name].detach()) <= bound, name


def adamw(model: nn.Module) -> AdamW:
    return AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)


def pair() -> tuple[Detector, Detector]:
    torch.manual_seed(0)
    model = Detector()
    return model, copy.deepcopy(model)
