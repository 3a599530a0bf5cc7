"""What a fast form must step aside for: things hung on a module, and transforms of the program."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as nn_module

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def untouched(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether the parameters of ``module`` alone decide what calling it does.

    False for other classes (parametrisations, adapters, quantised layers), for hooks of any sort
    on it or on all modules, for a ``forward`` set on the instance (offloading libraries do that)
    and for parameters that are tensor subclasses with arithmetic of their own. Also where a release
    of PyTorch no longer has the private names that tell.
    """
    if type(module) is not kind or "forward" in module.__dict__:
        return False
    try:
        hooked = nn_module._has_any_global_hook() or any(getattr(module, name) for name in HOOKS)
    except AttributeError:
        return False
    return not hooked and all(type(p) in (nn.Parameter, Tensor) for p in module.parameters(False))


def transformed() -> bool:
    """Whether ``torch.func`` (vmap, jvp, functionalize, ...) or forward-mode gradients look on.

    Custom functions with a backward pass alone are opaque to them. True where a release of PyTorch
    no longer has the private names that tell: plain operations are always right.
    """
    try:
        return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()
    except AttributeError:
        return True


def observed() -> bool:
    """Whether a tracer (fvcore's counters, exporters) or a transform needs plain operations.

    Compilers do not count: they take our operations apart themselves.
    """
    return torch.jit.is_tracing() or (not torch.compiler.is_compiling() and transformed())


def exporting() -> bool:
    """Whether ``torch.export`` looks on, which gets no operators of our own."""
    asked = getattr(torch.compiler, "is_exporting", None)  # older releases cannot be asked
    return torch.compiler.is_compiling() and (asked is None or asked())


def eager() -> bool:
    """Whether operations run as they are called, with nothing looking on but autograd."""
    return not torch.compiler.is_compiling() and not observed()


def needs_grad(*tensors: Tensor | None) -> bool:
    """Whether autograd records what is done with ``tensors``."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
