"""torch.func and forward-mode gradients: kernels of our own step aside, and caches stay clean."""

from __future__ import annotations

import copy
from collections.abc import Callable
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import (
    functional_call,
    functionalize,
    grad,
    jacrev,
    jvp,
    stack_module_state,
    vmap,
)

from mvitv2_core import ops
from mvitv2_core.fast import memory
from tests.compare import error, loss_of
from tests.forms import forced
from tests.small import KINDS, small_input, small_model

CLAIM = "torch.func and forward-mode gradients: equal to plain autograd"


def double(kind: str) -> tuple[nn.Module, dict[str, Tensor], Tensor]:
    """A model in float64, its parameters, and three inputs."""
    model = small_model(kind).double().eval()
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    return model, parameters, small_input(kind, batch=3, dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_functional_call(kind: str, tally: Callable[..., None]) -> None:
    model, parameters, x = double(kind)
    others = {name: 1.01 * p for name, p in parameters.items()}
    got = functional_call(model, others, (x,))
    model.load_state_dict(others)
    assert torch.equal(got, model(x))
    tally(CLAIM)


@pytest.mark.parametrize("kind", KINDS)
def test_grad_and_gradients_by_sample(kind: str, tally: Callable[..., None]) -> None:
    model, parameters, x = double(kind)
    weight = torch.randn(1, 5, dtype=torch.float64)

    def loss(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        return (functional_call(model, parameters, (sample[None],)) * weight).sum()

    got = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    for index, sample in enumerate(x):
        one = grad(loss)(parameters, sample)
        model.zero_grad()
        (model(sample[None]) * weight).sum().backward()
        scale = max(p.grad.abs().max() for p in model.parameters())
        for name, p in model.named_parameters():
            assert (one[name] - p.grad).abs().max() < 1e-9 * scale, name
            assert (got[name][index] - p.grad).abs().max() < 1e-9 * scale, name
    tally(CLAIM, 2)


@pytest.mark.parametrize("with_grad", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_vmap(kind: str, with_grad: bool, tally: Callable[..., None]) -> None:
    """Over samples, and over an ensemble of models; in float32, where oneDNN would step in."""
    model, other = small_model(kind).eval(), small_model(kind).eval()
    with torch.no_grad():
        for p in other.parameters():
            p *= 0.9
    x = small_input(kind, batch=3)
    with torch.set_grad_enabled(with_grad):
        expected = model(x)
        assert error(vmap(lambda sample: model(sample[None])[0])(x), expected) < 1e-5
        state = stack_module_state([model, other])  # type: ignore[arg-type]
        base = copy.deepcopy(model)
        got = vmap(lambda p, b: functional_call(base, (p, b), (x,)))(*state)
        assert error(got, torch.stack([expected, other(x)])) < 1e-5
    tally(CLAIM, 2)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_forward_mode(kind: str, frozen: bool, tally: Callable[..., None]) -> None:
    """Tangents through frozen models, too: oneDNN's linear would lose them without a word."""
    model, _, x = double(kind)
    model.requires_grad_(not frozen)
    x.requires_grad_()
    direction = small_input(kind, batch=3, seed=1, dtype=torch.float64)
    weight = torch.randn(3, 5, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((model(x) * weight).sum(), x)
    expected = (gradient * direction).sum()
    x = x.detach()
    _, tangent = jvp(model, (x,), (direction,))
    assert error((tangent * weight).sum(), expected) < 1e-9
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-3)):
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x.to(dtype), direction.to(dtype))
            tangent = forward_ad.unpack_dual(model.to(dtype)(dual)).tangent
        assert error((tangent * weight).sum().double(), expected) < tolerance
    tally(CLAIM, 3)


@pytest.mark.parametrize("kind", ["image", "clip with class token"])
def test_jacobian_and_hessian_vector_product(kind: str, tally: Callable[..., None]) -> None:
    model, _, x = double(kind)
    x = x[:1]
    jacobian = jacrev(model)(x)
    leaf = x.clone().requires_grad_()
    for index, value in enumerate(model(leaf)[0]):
        (row,) = torch.autograd.grad(value, leaf, retain_graph=True)
        assert error(jacobian[0, index], row) < 1e-9
    slope = grad(lambda x: loss_of(model(x)))
    direction = torch.randn_like(x)
    _, curvature = jvp(slope, (x,), (direction,))
    step = 1e-5
    expected = (slope(x + step * direction) - slope(x - step * direction)) / (2 * step)
    assert error(curvature, expected) < 1e-6
    tally(CLAIM, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_functionalize_leaves_no_trace(kind: str, tally: Callable[..., None]) -> None:
    """A cached tensor made inside a transform belongs to it, and broke every later call."""
    model, x = small_model(kind), small_input(kind)
    with patch.object(memory, "CACHE", memory.TensorCache()):
        got = functionalize(model)(x)
        after = model(x)
    assert error(got, after) < 1e-5
    after.sum().backward()
    tally(CLAIM)


@pytest.mark.parametrize("form", ["folded", "chunked"])
@pytest.mark.parametrize("kind", KINDS)
def test_second_derivatives(kind: str, form: str, tally: Callable[..., None]) -> None:
    """Of memory-saving forms too: a penalty on gradients equals that of the definitions."""
    model, found = small_model(kind).double(), []
    for reference in (True, False):
        x = small_input(kind, dtype=torch.float64).requires_grad_()
        with forced(attention=form), patch.object(ops, "REFERENCE", reference):
            (gradient,) = torch.autograd.grad(loss_of(model(x)), x, create_graph=True)
            leaves = [x, *model.parameters()]
            penalty = gradient.square().sum()
            found.append(torch.autograd.grad(penalty, leaves, allow_unused=True))
    scale = max(g.abs().max() for g in found[0] if g is not None)
    for expected, got in zip(*found, strict=True):
        assert (expected is None) == (got is None)
        assert expected is None or (got - expected).abs().max() < 1e-8 * scale
    tally(CLAIM)
