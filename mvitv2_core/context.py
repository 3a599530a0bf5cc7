"""What a fast path must step aside for: things hung on a module, and transforms of the program."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as nn_module


def untouched(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether the parameters of ``module`` alone decide what calling it does.

    False for other classes (parametrisations, adapters, quantised layers), for hooks of any sort
    on it or on all modules, for a ``forward`` set on the instance (offloading libraries do that)
    and for parameters that are tensor subclasses with arithmetic of their own.
    """
    return (
        type(module) is kind
        and "forward" not in module.__dict__
        and not (
            module._forward_hooks
            or module._forward_pre_hooks
            or module._backward_hooks
            or module._backward_pre_hooks
        )
        and not nn_module._has_any_global_hook()
        and all(p is None or type(p) in (nn.Parameter, Tensor) for p in module._parameters.values())
    )


def transformed() -> bool:
    """Whether ``torch.func`` (vmap, jvp, functionalize, ...) or forward-mode gradients look on.

    Custom functions with a backward pass alone, and oneDNN's operators, are opaque to them: some
    raise, and a tangent through oneDNN's linear is silently lost.
    """
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def observed() -> bool:
    """Whether a tracer (fvcore's counters, exporters) or a transform needs plain operations.

    Compilers do not count: they take our operations apart themselves.
    """
    return torch.jit.is_tracing() or (not torch.compiler.is_compiling() and transformed())


def eager() -> bool:
    """Whether operations run as they are called, with nothing looking on but autograd.

    Compilers fuse better than hand-made operations; tracers and transforms do not know them.
    """
    return not torch.compiler.is_compiling() and not observed()
