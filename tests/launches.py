"""Operations of one eager inference, counted on fake CUDA tensors: no GPU is needed."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from mvitv2_core import forms, ops
from mvitv2_core.fast import memory, triton_attention, triton_pool

# Of these none does work: they make names for memory, or ranges that index tables start from.
FREE = {"arange", "detach", "empty", "empty_like", "empty_strided", "new_empty"}
FREE |= {"_unsafe_view", "device", "sym_size"}


class Operations(TorchDispatchMode):
    """Counts operations but views, index tables (those of ours are remembered) and allocations."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.paused = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = func.overloadpacket.__name__
        if not self.paused and not func.is_view and name not in FREE:
            self.calls[name] += 1
        return func(*args, **(kwargs or {}))

    def apart(self, make: Any) -> Any:
        """What ``make`` gives, uncounted."""
        held, self.paused = self.paused, True
        try:
            return make()
        finally:
            self.paused = held


class OneKernel(TorchFunctionMode):
    """Counts PyTorch's fused attention once, as a GPU runs it; fake tensors take it apart."""

    def __init__(self, operations: Operations) -> None:
        super().__init__()
        self.operations = operations

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func is F.scaled_dot_product_attention:
            self.operations.calls["scaled_dot_product_attention"] += 1
            return self.operations.apart(lambda: torch.empty_like(args[0]))
        return func(*args, **(kwargs or {}))


def operations(
    model: nn.Module, size: tuple[int, ...], monkeypatch: pytest.MonkeyPatch, triton: bool = False
) -> Counter[str]:
    """Operations of ``model`` on a (B, C, *spatial) input; its weights are no more afterwards.

    Args:
        triton: whether Triton's kernels run, as on a GPU that they were written for.
    """
    counted = Operations()

    class Remembered(memory.TensorCache):
        def get(self, key: tuple, make: Any) -> Tensor:
            return counted.apart(make)

    monkeypatch.setattr(memory, "CACHE", Remembered())
    monkeypatch.setattr(ops, "REFERENCE", False)
    monkeypatch.setattr(forms, "TRITON", triton)
    for kernels in (triton_attention, triton_pool):
        monkeypatch.setattr(kernels, "runs_on", lambda device: device.type == "cuda")
    # Fake tensors are a class of their own, which otherwise counts as arithmetic of their own.
    monkeypatch.setattr(forms, "untouched", lambda module, kind: type(module) is kind)
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in model.modules():
            for name, p in module._parameters.items():
                if p is not None:
                    module._parameters[name] = nn.Parameter(torch.empty_like(p, device="cuda"))
            for name, b in module._buffers.items():
                if b is not None:
                    module._buffers[name] = torch.empty_like(b, device="cuda")
        x = torch.empty(size, device="cuda")
        with torch.no_grad(), counted, OneKernel(counted):
            model.eval()(x)
    return counted.calls
