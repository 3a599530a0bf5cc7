"""Constant tensors that are made once: which rows and which cells belong to which grids."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .context import transformed

LIMIT = 64 * 2**20  # bytes


@dataclass
class _Held:
    tensor: Tensor
    ready: Any = None  # a CUDA event after which the tensor holds its values
    stream: Any = None  # the CUDA stream that made it


class TensorCache:
    """Constant tensors by key, on the device that asked, at most ``limit`` bytes in all.

    Made anew at each call, an index of positions is about ten launches an axis on a GPU, in each
    block.

    Never part of a module's state, so that copies, pickles and moves to another device need not
    know of it. Least recently used entries go first. Safe to use from several threads and several
    CUDA streams. While a CUDA graph is captured nothing is held or handed out: what is made then
    has no values before a replay, and a graph would go on reading what has left the cache.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit, self.size = limit, 0
        self._entries: OrderedDict[tuple, _Held] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple, make: Callable[[], Tensor]) -> Tensor:
        """The tensor of ``key``, made by ``make`` where it is not held."""
        # Compilers and tracers fold constants or record how they are made; tensors made inside a
        # transform belong to it.
        if torch.compiler.is_compiling() or torch.jit.is_tracing() or transformed():
            return make()
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            return make()
        with self._lock:
            held = self._entries.get(key)
            if held is not None:
                self._entries.move_to_end(key)
        if held is None:
            with torch.inference_mode(False):  # or training could not use it after inference
                held = _Held(make())
            self._hold(key, held)
        elif held.stream is not None:
            stream = torch.cuda.current_stream(held.tensor.device)
            if stream != held.stream:
                stream.wait_event(held.ready)
                held.tensor.record_stream(stream)  # its memory waits for this stream as well
        return held.tensor

    def _hold(self, key: tuple, held: _Held) -> None:
        tensor = held.tensor
        size = tensor.numel() * tensor.element_size()
        # Tensor subclasses (fake tensors of a tracer) must not outlive their mode.
        if type(tensor) is not Tensor or tensor.device.type == "meta" or size > self.limit:
            return
        if tensor.is_cuda:
            held.stream = torch.cuda.current_stream(tensor.device)
            held.ready = held.stream.record_event()
        with self._lock:
            if key not in self._entries:
                self._entries[key] = held
                self.size += size
            while self.size > self.limit:
                _, dropped = self._entries.popitem(last=False)
                self.size -= dropped.tensor.numel() * dropped.tensor.element_size()

    def after_fork(self) -> None:
        """In a forked child: the thread that held the lock, if any, does not exist there."""
        if self._lock.locked():  # and may have left the entries half changed
            self._entries, self.size = OrderedDict(), 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)


CACHE = TensorCache()
if hasattr(os, "register_at_fork"):  # not on Windows, which cannot fork
    os.register_at_fork(after_in_child=lambda: CACHE.after_fork())
