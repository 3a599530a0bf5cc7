"""Blocks compiled one by one, where a trainer asks for it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

# Programs that PyTorch may make of the one forward method that all blocks share: for each kind of
# block (a model has up to nine), with and without gradients, for one size and, with and without
# windows to fill, for any. PyTorch's own limit of 8 would leave later kinds in eager mode, with one
# line in the log.
PROGRAMS = 128


def compile_blocks(blocks: Iterable[nn.Module]) -> None:
    """``torch.compile`` of each block, in place: names in the state dict stay as they are.

    Equal blocks share a program. The first size of input gets programs of its own; where sizes
    change, the second makes PyTorch compile once more, for any size. Copies (``deepcopy``,
    pickles) are not compiled. While ``torch.jit.trace`` records, blocks run as they are.
    """
    options: dict[str, Any] = {}
    if "recompile_limit" in inspect.signature(torch.compile).parameters:
        options["recompile_limit"] = PROGRAMS
    else:  # before PyTorch 2.10 the limit is one for all that a process compiles
        config = torch._dynamo.config
        name = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
        setattr(config, name, max(getattr(config, name), PROGRAMS))
    for block in blocks:
        block.compile(**options)
        compiled = getattr(block, "_compiled_call_impl", None)
        if compiled is not None:
            # Where PyTorch itself leaves it out of copies. Without this private name blocks are
            # compiled all the same, and traces of them raise.
            block._compiled_call_impl = _unless_traced(block, compiled)


def _unless_traced(block: nn.Module, compiled: Callable[..., Any]) -> Callable[..., Any]:
    """PyTorch refuses to trace what it has compiled; PySlowFast traces every model, for FLOPs."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return (block._call_impl if torch.jit.is_tracing() else compiled)(*args, **kwargs)

    return call


def drop_path(x: Tensor, keep: float) -> Tensor:
    """``plain.drop_path`` with ``keep`` as a number that may differ between blocks of one program.

    ``bernoulli_`` would tie a program to its probability: one for each block.
    """
    mask = torch.rand((x.shape[0],) + (1,) * (x.ndim - 1), device=x.device) < keep
    return x * mask.to(x.dtype).div_(keep)
