"""What users hang on the parts of a model counts, whichever path would be the fastest."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrize

from tests.compare import error, loss_of
from tests.small import KINDS, small_input, small_model

CLAIM = "hooks, replaced modules, parametrizations: honoured"
# A head on the class token alone does not see what the last block makes of the others.
EVERY_TOKEN = {"mean_pooling": True}


def parts(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module that a forward pass runs."""
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList):
            yield name, module


def spread(module: nn.Module, output: Any) -> Any:
    """A module's output, changed by other factors on other channels: no norm takes that away.

    Attention and blocks give a grid as well.
    """
    if isinstance(output, tuple):
        return (spread(module, output[0]), *output[1:])
    return output * torch.linspace(0.5, 1.5, output.shape[-1], dtype=output.dtype)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_forward_hooks_fire_and_count(kind: str, train: bool, tally: Callable[..., None]) -> None:
    """Of every module, each on its own: an output that a hook changes changes the model's."""
    model, x = small_model(kind, **EVERY_TOKEN).train(train), small_input(kind)
    with torch.set_grad_enabled(train):
        before = model(x)
        for name, module in parts(model):
            handle = module.register_forward_hook(lambda m, args, output: spread(m, output))
            assert error(model(x), before) > 1e-3, name
            handle.remove()
            seen: list[int] = []
            handle = module.register_forward_pre_hook(lambda *_, seen=seen: seen.append(1))
            model(x)
            assert seen, name
            handle.remove()
            tally(CLAIM, 2)
        assert torch.equal(model(x), before)


@pytest.mark.parametrize("kind", KINDS)
def test_backward_hooks_fire(kind: str, tally: Callable[..., None]) -> None:
    model, x = small_model(kind), small_input(kind).requires_grad_()
    for name, module in parts(model):
        seen: list[Any] = []
        handles = [
            module.register_full_backward_hook(lambda m, into, out, seen=seen: seen.append(into)),
            module.register_full_backward_pre_hook(lambda m, out, seen=seen: seen.append(out)),
        ]
        model(x).sum().backward()
        assert len(seen) >= 2 and all(g[0] is not None for g in seen), name
        for handle in handles:
            handle.remove()
        tally(CLAIM, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_hooks_on_all_modules_fire(kind: str, tally: Callable[..., None]) -> None:
    """PyTorch's global hooks, which profilers use."""
    model, x, seen = small_model(kind).eval(), small_input(kind), set()
    handle = register_module_forward_hook(lambda module, *_: seen.add(module))
    with torch.no_grad():
        model(x)
    handle.remove()
    missed = [name for name, module in parts(model) if module not in seen]
    assert not missed
    tally(CLAIM)


@pytest.mark.parametrize("kind", KINDS)
def test_forward_set_on_the_instance(kind: str, tally: Callable[..., None]) -> None:
    """Offloading libraries replace ``module.forward`` instead of registering hooks."""
    model, x = small_model(kind, **EVERY_TOKEN).eval(), small_input(kind)
    before = model(x)
    for name, module in parts(model):
        original = module.forward
        module.forward = lambda *args, original=original, module=module: spread(  # type: ignore
            module, original(*args)
        )
        assert error(model(x), before) > 1e-3, name
        del module.forward
        tally(CLAIM)
    assert torch.equal(model(x), before)


class LoRA(nn.Module):
    """A linear with a low-rank update beside it, as adapter libraries wrap them."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Linear(base.in_features, 2, bias=False, dtype=base.weight.dtype)
        self.b = nn.Linear(2, base.out_features, bias=False, dtype=base.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.b(self.a(x))


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_on_every_linear(kind: str, tally: Callable[..., None]) -> None:
    """With batch 3, which a tensor in place of (q, k, v) would be unpacked along."""
    model, x = small_model(kind).double(), small_input(kind, batch=3, dtype=torch.float64)
    merged = copy.deepcopy(model)
    linears = [name for name, module in model.named_modules() if type(module) is nn.Linear]
    assert {name.rpartition(".")[2] for name in linears} == {
        *("qkv", "proj", "fc1", "fc2", "projection")
    }
    for name in linears:
        adapter = LoRA(model.get_submodule(name))  # type: ignore[arg-type]
        parent = model.get_submodule(name.rpartition(".")[0])
        setattr(parent, name.rpartition(".")[2], adapter)
        with torch.no_grad():
            merged.get_submodule(name).weight += adapter.b.weight @ adapter.a.weight
    expected, got = merged(x), model(x)
    assert error(got, expected) < 1e-12
    loss_of(got).backward()
    loss_of(expected).backward()
    for name in linears:
        adapter = model.get_submodule(name)
        wanted = merged.get_submodule(name).weight.grad @ adapter.a.weight.T
        assert error(adapter.b.weight.grad, wanted) < 1e-9, name
        tally(CLAIM)


@pytest.mark.parametrize("kind", KINDS)
def test_dynamic_quantisation(kind: str, tally: Callable[..., None]) -> None:
    if "x86" not in torch.backends.quantized.supported_engines:
        pytest.skip("needs PyTorch's x86 engine for quantised linears: run on an x86 CPU")
    model, x = small_model(kind).eval(), small_input(kind)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        small = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
        assert not any(type(module) is nn.Linear for module in small.modules())
        assert 0 < error(small(x), model(x)) < 0.1
    tally(CLAIM)


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


@pytest.mark.parametrize(("kind", "train"), [*((kind, True) for kind in KINDS), ("image", False)])
def test_parametrizations(kind: str, train: bool, tally: Callable[..., None]) -> None:
    """Of every parameter, each on its own: as if the stored values were the parametrised ones."""
    x = small_input(kind, dtype=torch.float64)
    names = [name for name, _ in small_model(kind).named_parameters() if "blocks.2" not in name]
    reference = small_model(kind).double()
    for full in names:
        owner, _, name = full.rpartition(".")
        model = small_model(kind).double()
        parametrize.register_parametrization(model.get_submodule(owner), name, Doubled())
        values = reference.get_parameter(full)
        with torch.no_grad():
            values *= 2
        with torch.set_grad_enabled(train):
            expected, got = reference(x), model(x)
        assert error(got, expected) < 1e-12, full
        if train:
            stored = model.get_submodule(owner).parametrizations[name].original
            (grad,) = torch.autograd.grad(loss_of(got), stored)
            (wanted,) = torch.autograd.grad(loss_of(expected), values)
            assert error(grad, 2 * wanted) < 1e-8 or wanted.abs().max() < 1e-12, full
        with torch.no_grad():
            values /= 2
        tally(CLAIM)


class Watched(Tensor):
    """A tensor with arithmetic of its own, as quantised and sharded weights are."""

    seen = 0

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func is nn.functional.linear:
            cls.seen += 1
            args = [a.as_subclass(Tensor) if isinstance(a, cls) else a for a in args]
            return func(*args, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.parametrize("name", ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"])
@pytest.mark.parametrize("train", [True, False])
def test_weights_with_their_own_arithmetic(
    name: str, train: bool, tally: Callable[..., None]
) -> None:
    model, x = small_model("image").eval(), small_input("image")
    with torch.set_grad_enabled(train):
        before = model(x)
        linear = model.blocks[0].get_submodule(name)  # type: ignore[union-attr, index]
        linear.weight = nn.Parameter(linear.weight.detach().as_subclass(Watched))
        Watched.seen = 0
        assert error(model(x), before) < 1e-5
    assert Watched.seen == 1
    tally(CLAIM)


def test_dropout_switched_on_in_evaluation() -> None:
    """Monte Carlo dropout: only the dropout layers train."""
    model, x = small_model("image", dropout=0.5).eval(), small_input("image")
    before = model(x)
    for block in model.blocks:  # type: ignore[union-attr]
        block.mlp.drop.train()
    torch.manual_seed(0)
    first = model(x)
    assert not torch.equal(first, before) and not torch.equal(model(x), first)


def test_dropout_replaced() -> None:
    model, x = small_model("image").train(), small_input("image")
    before = model(x)
    for block in model.blocks:  # type: ignore[union-attr]
        block.mlp.drop = nn.Identity()
    assert error(model(x), before) < 1e-5
