"""How tests compare two implementations: errors relative to the largest value."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def error(ours: Tensor, reference: Tensor) -> float:
    """Largest difference over the largest reference value."""
    assert ours.shape == reference.shape, (ours.shape, reference.shape)
    scale = reference.abs().max().clamp_min(torch.finfo(reference.dtype).tiny)
    return ((ours - reference).abs().max() / scale).item()


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Move every parameter away from its initial value: zero tables and biases prove nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            scale = 0.3 if "rel_pos" in name else 0.1
            base = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(base + scale * noise)
    return model


def loss_of(outputs: Tensor | Mapping[str, Tensor]) -> Tensor:
    """A scalar that weighs every output value differently."""
    tensors = outputs.values() if isinstance(outputs, Mapping) else [outputs]
    total = torch.zeros((), dtype=torch.float64)
    for index, tensor in enumerate(tensors):
        generator = torch.Generator().manual_seed(index)
        weight = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        total = total + (tensor * weight.to(tensor)).sum()
    return total


def gradient_error(
    ours: nn.Module, reference: nn.Module, rename: Mapping[str, str] | None = None
) -> float:
    """Largest difference of any parameter's gradient over the largest reference gradient.

    ``rename`` gives the reference's name of each of our parameters; None where they are equal.
    """
    references = dict(reference.named_parameters())
    scale = max(p.grad.abs().max() for p in references.values() if p.grad is not None)
    worst = 0.0
    for name, parameter in ours.named_parameters():
        target = references[name if rename is None else rename[name]].grad
        assert parameter.grad is not None and target is not None, name
        worst = max(worst, (parameter.grad - target.view_as(parameter)).abs().max().item())
    return worst / scale.item()
