"""Models at work in several threads and processes at once."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from mvitv2_core.fast import memory
from tests.compare import error, loss_of
from tests.small import KINDS, small_input, small_model

CLAIM = "lifecycle: threads and processes at work at once"
START = [m for m in ("fork", "spawn") if m in multiprocessing.get_all_start_methods()]


def outputs_and_gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Without touching ``.grad``, which threads would share."""
    output = model(x)
    return [output.detach(), *torch.autograd.grad(loss_of(output), list(model.parameters()))]


@pytest.mark.parametrize("limit", [memory.LIMIT, 4096, 0])
@pytest.mark.parametrize("kind", KINDS)
def test_threads(kind: str, limit: int, tally: Callable[..., None]) -> None:
    """Four threads, each with sizes of its own, on one model; also while the cache overflows."""
    model = small_model(kind).double()
    big = small_input(kind, dtype=torch.float64)
    inputs = [big[..., : 40 - 3 * i].contiguous() for i in range(4)]
    expected = [outputs_and_gradients(model, x) for x in inputs]
    start = threading.Barrier(4)

    def work(index: int) -> list[list[Tensor]]:
        torch.set_num_threads(1)  # as each of many threads should
        start.wait(60)
        order = [(index + i) % 4 for i in range(8)]
        return [outputs_and_gradients(model, inputs[i]) for i in order]

    with patch.object(memory, "CACHE", memory.TensorCache(limit)), ThreadPoolExecutor(4) as pool:
        for index, results in enumerate(pool.map(work, range(4))):
            for i, got in enumerate(results):
                wanted = expected[(index + i) % 4]
                for a, b in zip(got, wanted, strict=True):
                    assert error(a, b) < 1e-9 or b.abs().max() < 1e-12
                tally(CLAIM)


@pytest.mark.parametrize("kind", KINDS)
def test_threads_under_other_modes(kind: str, tally: Callable[..., None]) -> None:
    """Inference mode, autocast and training side by side: none leaks into the others' caches."""
    model, x = small_model(kind).eval(), small_input(kind)
    modes: list[Callable[[], Any]] = [
        torch.inference_mode,
        torch.no_grad,
        torch.enable_grad,
        lambda: torch.autocast("cpu", torch.bfloat16),
    ]

    def run(mode: Callable[[], Any]) -> Tensor:
        with mode():
            output = model(x)
        if output.requires_grad:
            torch.autograd.grad(output.float().sum(), list(model.parameters()))
        return output.detach().clone()

    expected = [run(mode) for mode in modes]

    def work(mode: Callable[[], Any]) -> list[Tensor]:
        torch.set_num_threads(1)
        return [run(mode) for _ in range(8)]

    with patch.object(memory, "CACHE", memory.TensorCache()), ThreadPoolExecutor(4) as pool:
        for results, wanted in zip(pool.map(work, modes), expected, strict=True):
            for got in results:
                assert error(got.float(), wanted.float()) < 1e-5
                tally(CLAIM)


class Features(Dataset):
    """What a model makes of inputs, worked out in the loader's workers."""

    def __init__(self, model: nn.Module, kind: str) -> None:
        self.model, self.kind = model, kind

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> list[Tensor]:
        # A loader's worker has one thread: OpenMP's do not survive a fork.
        assert torch.get_num_threads() == 1
        found = outputs_and_gradients(self.model, small_input(self.kind, seed=index))
        return [found[0], *found[-2:]]


@pytest.mark.parametrize("start", START)
@pytest.mark.parametrize("kind", ["clip with class token"])
def test_loader_workers(kind: str, start: str, tally: Callable[..., None]) -> None:
    """Forward and backward passes in workers, after the parent ran both."""
    if start == "fork" and torch.cuda.is_initialized():
        pytest.skip("CUDA cannot be forked: run this file on its own")
    model = small_model(kind)
    expected = [outputs_and_gradients(model, small_input(kind, seed=index)) for index in range(4)]
    loader = DataLoader(
        Features(model, kind),
        batch_size=None,
        num_workers=2,
        multiprocessing_context=start,
        timeout=120,
    )
    for got, wanted in zip(loader, expected, strict=True):
        for a, b in zip(got, [wanted[0], *wanted[-2:]], strict=True):
            assert error(a, b) < 1e-4
        tally(CLAIM)


@pytest.mark.skipif("fork" not in START, reason="needs fork: run on Linux or macOS")
def test_fork_while_another_thread_holds_the_cache(tally: Callable[..., None]) -> None:
    """The child has no such thread, and nobody would ever let go of the lock there."""
    model, x = small_model("image"), small_input("image")
    wanted = model(x).detach()
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()

    def child() -> None:
        torch.set_num_threads(1)
        with torch.no_grad():
            queue.put(model(x).tolist())

    process = context.Process(target=child, daemon=True)
    with memory.CACHE._lock:
        process.start()
        process.join(60)
    if process.is_alive():
        process.kill()
        pytest.fail("the child waits for the cache's lock")
    assert error(torch.tensor(queue.get()), wanted) < 1e-5
    assert error(model(x), wanted) < 1e-5  # the parent's lock is as it was
    tally(CLAIM)
