"""Attention's Triton kernels: in the interpreter anywhere, at real sizes where there is a GPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mvitv2_core.fast import triton_attention
from tests.core.fast import interpreted
from tests.core.fast.attention_problem import REAL, Problem, attend

pytestmark = pytest.mark.skipif(not triton_attention.available(), reason="needs Triton")
on_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason="needs a CUDA GPU: python -m pytest tests/core/fast on a machine with one",
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def test_in_the_interpreter(tally: Callable[..., None]) -> None:
    tally("interpreted cases of Triton attention", interpreted.run("attention_cases.py"))


def on_device(name: str, dtype: torch.dtype) -> Problem:
    return Problem(**{**vars(REAL[name]), "dtype": dtype, "device": "cuda"})


def run(problem: Problem, tensors: list[Tensor]) -> list[Tensor]:
    out = attend(problem, *tensors[:-1])
    return [out.detach(), *torch.autograd.grad(out, tensors[:-1], tensors[-1])]


@on_gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", REAL)
def test_real_sizes(name: str, dtype: torch.dtype) -> None:
    problem = on_device(name, dtype)
    tensors = problem.tensors("product")
    names = ["out", "dq", "dk", "dv", *(f"dterm {axis}" for axis in problem.axes)]
    got, usual, exact = run(problem, tensors), problem.exact(tensors, dtype), problem.exact(tensors)
    interpreted.check(names, got, usual, exact, dtype)


@on_gpu
@pytest.mark.parametrize("name", REAL)
def test_same_result_every_time(name: str) -> None:
    problem = on_device(name, torch.bfloat16)
    tensors = problem.tensors("product")
    first = run(problem, tensors)
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(first, run(problem, tensors), strict=True))


@on_gpu
def test_replayed_in_a_cuda_graph() -> None:
    problem = on_device("video, stage 4", torch.bfloat16)
    tensors = problem.tensors()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # compiles, as a capture cannot
        run(problem, tensors)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = run(problem, tensors)
    for _ in range(3):
        with torch.no_grad():
            for x, other in zip(tensors, problem.tensors(), strict=True):
                x.copy_(other)
        graph.replay()
        again = run(problem, tensors)
        assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))


@on_gpu
def test_streams_side_by_side() -> None:
    problems = [on_device(name, torch.bfloat16) for name in ("image, stage 1", "video, stage 4")]
    tensors = [problem.tensors() for problem in problems]
    expected = [run(problem, x) for problem, x in zip(problems, tensors, strict=True)]
    streams = [torch.cuda.Stream() for _ in problems]
    torch.cuda.synchronize()
    for _ in range(5):
        got = []
        for problem, x, stream in zip(problems, tensors, streams, strict=True):
            with torch.cuda.stream(stream):
                got.append(run(problem, x))
        torch.cuda.synchronize()
        for a, b in zip(expected, got, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@on_gpu
def test_compiled_by_inductor() -> None:
    problem = on_device("detection windows, stage 3", torch.bfloat16)
    *inputs, grad = problem.tensors()
    compiled = torch.compile(lambda *tensors: attend(problem, *tensors), fullgraph=True)
    got = compiled(*inputs)
    assert torch.equal(got, attend(problem, *inputs))
    for a, b in zip(
        torch.autograd.grad(got, inputs, grad), run(problem, [*inputs, grad])[1:], strict=True
    ):
        assert torch.equal(a, b)
