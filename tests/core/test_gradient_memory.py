"""No two parameters share the memory of their gradients, which are changed in place."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from tests.compare import loss_of
from tests.core.rank_jobs import KINDS, LIMIT, batch, classifier, expected, loss
from tests.ranks import gradients, worst


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", [1, 8, 40])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_gradients_have_memory_of_their_own(kind: str, side: int, batch_size: int) -> None:
    model = classifier(kind)
    frames = (1 + side // 8,) * bool(KINDS[kind][0])
    shape = (batch_size, 3, *frames, side, side)
    loss_of(model(torch.ones(shape, dtype=torch.float64))).backward()
    spans = []
    for name, parameter in model.named_parameters():
        grad = parameter.grad
        assert grad is not None
        reach = sum((n - 1) * s for n, s in zip(grad.shape, grad.stride(), strict=True)) + 1
        spans.append((grad.data_ptr(), grad.data_ptr() + reach * grad.element_size(), name))
    spans.sort()
    for (_, end, name), (start, _, other) in pairwise(spans):
        assert end <= start, (name, other)


@pytest.mark.parametrize("kind", KINDS)
def test_accumulation_by_single_samples(kind: str) -> None:
    """Three batches of one sample give the gradients of one batch of three, before and after
    clipping."""
    model, samples = classifier(kind), (3, 4, 5)
    for index in samples:
        loss(model(batch(kind, [index])), [index]).backward()
    whole = expected(kind, samples)
    assert worst(gradients(model), whole) < LIMIT
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    assert norm > 1
    clipped = {name: grad * (0.5 / (norm + 1e-6)) for name, grad in whole.items()}
    difference = {n: (grad - clipped[n]).abs().max() for n, grad in gradients(model).items()}
    assert max(difference.values()) < LIMIT * max(grad.abs().max() for grad in whole.values())
