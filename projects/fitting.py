"""The loop that trains the toys' image classifiers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def fit(
    model: nn.Module,
    batch: Callable[[], tuple[Tensor, Tensor]],
    bar: Any,
    rate: float,
    weight_decay: float,
) -> nn.Module:
    """Train with AdamW, one cycle of the learning rate, and gradients clipped to a norm of 1.

    Args:
        model: takes images, gives logits.
        batch: gives the next images and labels.
        bar: tqdm's, over the steps.
        rate: the highest learning rate.
        weight_decay: AdamW's.

    Returns:
        The same model, in evaluation mode.
    """
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=bar.total)
    for _ in bar:
        images, labels = batch()
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")
    return model.eval()
