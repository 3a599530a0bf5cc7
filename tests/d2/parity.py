"""Our backbone against detectron2's own class. Imports detectron2."""

from __future__ import annotations

from functools import partial

import torch
from detectron2.modeling import MViT as Official
from torch import nn

from mvitv2_d2 import MViT
from tests.compare import error, gradient_error, loss_of, randomize

SMALL = {"depth": 6, "last_block_indexes": (0, 2, 4, 5), "embed_dim": 16, "num_heads": 2}


def check(size: tuple[int, int], batch: int = 1, **kwargs: object) -> None:
    """Outputs and gradients equal: the same weights by name, both in float64."""
    kwargs = {"norm_layer": partial(nn.LayerNorm, eps=1e-6), **kwargs}
    reference = randomize(Official(**kwargs).double())
    ours = MViT(**kwargs).double()
    ours.load_state_dict(reference.state_dict(), strict=True)
    assert ours.output_shape() == reference.output_shape()
    assert ours.size_divisibility == reference.size_divisibility
    image = torch.randn(batch, 3, *size, dtype=torch.float64, requires_grad=True)
    same = image.detach().clone().requires_grad_()
    expected, got = reference(image), ours(same)
    assert list(got) == list(expected)
    for name in expected:
        assert error(got[name], expected[name]) < 1e-9, name
    loss_of(expected).backward()
    loss_of(got).backward()
    assert gradient_error(ours, reference) < 1e-8
    assert error(same.grad, image.grad) < 1e-8
