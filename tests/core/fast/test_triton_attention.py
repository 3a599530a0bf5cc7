"""Attention's Triton kernels: in the interpreter anywhere, at real sizes where there is a GPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mvitv2_core.fast import triton_attention
from tests.core.fast import interpreted
from tests.core.fast.attention_problem import Problem

pytestmark = pytest.mark.skipif(not triton_attention.available(), reason="needs Triton")
on_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason="needs a CUDA GPU: python -m pytest tests/core/fast on a machine with one",
)
# Of detection T at 1024x1088: windows of stages one and three, and the last blocks of stages two
# and four; of video S: first and last stage; of image T at 224: first stage and last.
REAL = {
    "detection windows, stage 1": Problem(
        (256, 272), (64, 68), (0, 1), 96, 1, 1, add_q=True, windows=((56, 56), (14, 14))
    ),
    "detection windows, stage 3": Problem(
        (64, 68), (64, 68), (0, 1), 96, 2, 4, add_q=True, windows=((14, 14), (14, 14))
    ),
    "detection global, stage 2": Problem((128, 136), (32, 34), (0, 1), 96, 1, 2, add_q=True),
    "detection global, stage 4": Problem((32, 34), (32, 34), (0, 1), 96, 2, 8, add_q=True),
    "video, stage 1": Problem((8, 56, 56), (8, 7, 7), (0, 1, 2), 96, 1, 1, True, True),
    "video, stage 4": Problem((8, 7, 7), (8, 7, 7), (0, 1, 2), 96, 2, 8, True, True),
    "image, stage 1": Problem((56, 56), (14, 14), (0, 1), 96, 8, 1, add_q=True),
    "image, stage 4": Problem((7, 7), (7, 7), (0, 1), 96, 8, 8, add_q=True),
    "heads of 72": Problem((14, 14), (7, 7), (0, 1), 72, 4, 8, add_q=True),
    "heads of 64": Problem((14, 14), (14, 14), (0, 1), 64, 4, 8),
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def test_in_the_interpreter(tally: Callable[..., None]) -> None:
    tally("interpreted cases of Triton attention", interpreted.run("attention_cases.py"))


def on_device(name: str, dtype: torch.dtype) -> Problem:
    return Problem(**{**vars(REAL[name]), "dtype": dtype, "device": "cuda"})


def attend(problem: Problem, *tensors: Tensor) -> Tensor:
    q, k, v, *terms = tensors
    return triton_attention.attention(
        *(q, k, v, terms, problem.axes, problem.q_thw, problem.k_thw),
        *(problem.cls_token, problem.add_q, problem.windows),
    )


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
