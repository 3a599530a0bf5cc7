"""Frozen parts: the rest learns as if nothing were frozen, with checkpointing and without."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.compare import error, loss_of
from tests.small import KINDS, small_input, small_model

CLAIM = "lifecycle: frozen parts leave the others' gradients unchanged, checkpointing or not"
# What is frozen, by a part of the parameter's name.
FROZEN = {
    "patch embedding": ("patch_embed",),
    "first stage": ("patch_embed", "cls_token", "pos_embed", "blocks.0."),
    "trunk": ("patch_embed", "cls_token", "pos_embed", "blocks.", "norm."),
    "a block in the middle": ("blocks.1.",),
    "last block": ("blocks.2.",),
    "norms": ("norm",),
    "linears of attention": ("qkv", "attn.proj"),
    "first linear of the MLP": ("fc1",),
    "second linear of the MLP": ("fc2",),
    "pools": ("pool_",),
    "keys' pool and norm": ("pool_k", "norm_k"),
    "position tables": ("rel_pos", "pos_embed"),
    "biases": ("bias",),
    "weights": ("weight",),
    "all but norms": ("proj", "qkv", "fc", "pool", "rel_pos", "cls_token", "pos_embed"),
}


def gradients(model: nn.Module, x: Tensor, act_checkpoint: bool) -> dict[str, Tensor]:
    """Of the parameters and of the input, drop path drawn alike."""
    model.act_checkpoint = act_checkpoint  # type: ignore[assignment]
    model.zero_grad()
    x.grad = None
    torch.manual_seed(0)
    loss_of(model(x)).backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return found if x.grad is None else {**found, "input": x.grad}


@pytest.mark.parametrize(
    ("kind", "input_grad"), [*((kind, False) for kind in KINDS), ("image", True)]
)
@pytest.mark.parametrize("frozen", FROZEN)
def test_frozen_parts(kind: str, frozen: str, input_grad: bool, tally: Callable[..., None]) -> None:
    model = small_model(kind, drop_path_rate=0.3).double()
    x = small_input(kind, dtype=torch.float64).requires_grad_(input_grad)
    expected = gradients(model, x, act_checkpoint=False)
    for name, p in model.named_parameters():
        p.requires_grad_(not any(part in name for part in FROZEN[frozen]))
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    learning |= {"input"} if input_grad else set()
    assert learning < set(expected)
    kept, recomputed = (gradients(model, x, act_checkpoint=a) for a in (False, True))
    assert set(kept) == set(recomputed) == learning
    scale = max(g.abs().max() for g in expected.values())
    for name in learning:
        assert (kept[name] - expected[name]).abs().max() < 1e-10 * scale, name
        assert torch.equal(kept[name], recomputed[name]), name
    tally(CLAIM)


@pytest.mark.parametrize("act_checkpoint", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_everything_frozen(kind: str, act_checkpoint: bool, tally: Callable[..., None]) -> None:
    """The input alone learns; and with nothing to learn no graph is kept."""
    model, x = small_model(kind).double(), small_input(kind, dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss_of(model(leaf)), leaf)
    model.requires_grad_(False).act_checkpoint = act_checkpoint  # type: ignore[assignment]
    assert not model(x).requires_grad
    (got,) = torch.autograd.grad(loss_of(model(leaf)), leaf)
    assert error(got, expected) < 1e-10
    tally(CLAIM)
