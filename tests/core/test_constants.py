"""Constant tensors on GPUs: graphs, streams, evictions; by stand-ins where there is no GPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mvitv2_core.fast import memory
from tests.compare import error
from tests.small import small_input, small_model

needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA GPU: run the suite on a machine with one"
)


def test_nothing_is_held_or_handed_out_while_a_graph_is_captured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is made then has no values before a replay, and what is held may leave before one."""
    cache = memory.TensorCache()
    before = cache.get(("a",), lambda: torch.zeros(2))
    assert cache.get(("a",), lambda: torch.ones(2)) is before
    with monkeypatch.context() as capture:
        capture.setattr(torch.cuda, "is_available", lambda: True)
        capture.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        inside = cache.get(("a",), lambda: torch.ones(2))
        cache.get(("b",), lambda: torch.ones(2))
    assert inside is not before and inside.sum() == 2
    assert len(cache) == 1 and cache.get(("a",), lambda: torch.ones(2)) is before


class Stream:
    """Counts what a CUDA stream is asked to wait for."""

    def __init__(self) -> None:
        self.waited: list[Any] = []

    def wait_event(self, event: object) -> None:
        self.waited.append(event)

    def record_event(self) -> object:
        return ("ready", id(self))


def test_another_stream_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the values, and the memory for it; the stream that made them does not wait."""
    first, second = Stream(), Stream()
    current = SimpleNamespace(stream=first)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: current.stream)
    cache, recorded = memory.TensorCache(), []
    tensor = torch.zeros(2)
    cache._entries["a",] = memory._Held(tensor, first.record_event(), first)
    monkeypatch.setattr(Tensor, "record_stream", lambda self, stream: recorded.append(stream))
    assert cache.get(("a",), lambda: torch.ones(2)) is tensor
    assert not first.waited and not recorded
    current.stream = second
    assert cache.get(("a",), lambda: torch.ones(2)) is tensor
    assert second.waited == [first.record_event()] and recorded == [second]


def test_a_traced_model_remembers_nothing() -> None:
    """A second trace, as ``torch.jit.trace`` checks itself with, records what the first did."""
    model, x = small_model("image").eval(), small_input("image")
    with torch.no_grad():
        expected = model(x)
        held = len(memory.CACHE)
        traced = torch.jit.trace(model, (x,), check_trace=True)
        assert len(memory.CACHE) == held
        assert error(traced(x), expected) < 1e-6


@needs_gpu
def test_a_graph_replays_right_values_for_new_sizes() -> None:
    """Captured at a size that the process never met, with the cache emptied before the replay."""
    model = small_model("image").eval().cuda()
    x, other = (small_input("image", seed=seed).cuda() for seed in (0, 1))
    with torch.no_grad():
        expected = model(other)
        memory.CACHE._entries.clear()
        memory.CACHE.size = 0
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = model(x)
        filler = [torch.full((4096,), float("nan"), device="cuda") for _ in range(100)]
        x.copy_(other)
        graph.replay()
        assert error(out.cpu(), expected.cpu()) < 1e-5
        del filler


@needs_gpu
def test_two_streams() -> None:
    model, x = (
        small_model("clip with class token").eval().cuda(),
        small_input("clip with class token"),
    )
    with torch.no_grad():
        expected = model(x.cuda())
        for _ in range(20):
            memory.CACHE._entries.clear()
            memory.CACHE.size = 0
            streams = [torch.cuda.Stream() for _ in range(2)]
            outputs = []
            for stream in streams:
                with torch.cuda.stream(stream):
                    outputs.append(model(x.cuda()))
            torch.cuda.synchronize()
            for output in outputs:
                assert error(output.cpu(), expected.cpu()) < 1e-5
