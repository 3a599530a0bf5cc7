"""Interpreted cases of ``fast.triton_pool``; ``test_triton_pool`` runs them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mvitv2_core.fast import triton_pool, triton_pool_op
from tests.core.fast import interpreted
from tests.core.fast.pool_problem import Problem, held_against_formula

interpreted.mend_rounding()
torch.set_num_threads(1)
Grid = tuple[int, ...]


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    rank = draw(st.integers(1, 3))

    def sizes(least: int, most: int) -> Grid:
        return draw(st.tuples(*[st.integers(least, most)] * rank))

    dtype = draw(st.sampled_from((torch.float32, torch.bfloat16, torch.float16)))
    return Problem(
        thw=sizes(1, (30, 6, 3)[rank - 1]),
        kernel=sizes(1, (5, 4, 3)[rank - 1]),
        stride=sizes(1, 3),
        head_dim=draw(st.sampled_from((96, 72, 64, 40, 8))),
        count=draw(st.integers(1, 2)),
        heads=draw(st.integers(1, 2)),
        cls_token=draw(st.booleans()),
        normed=draw(st.booleans()),
        dtype=dtype,
        # Autocast leaves parameters in float32, and a model in half precision does not.
        weight_dtype=draw(st.sampled_from((torch.float32, dtype))),
    )


@settings(
    max_examples=6,
    derandomize=True,
    database=None,
    deadline=None,
    phases=(Phase.generate,),  # interpreted kernels take minutes to shrink
    suppress_health_check=list(HealthCheck),
)
@given(problem=problems(), rows=st.sampled_from((8, 16)), seed=st.integers(0, 2**31))
def test_equals_the_formula(problem: Problem, rows: int, seed: int) -> None:
    torch.manual_seed(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_pool_op, "ROWS", rows)
        held_against_formula(problem)


def test_sums_over_many_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that take several blocks of tokens each, in the last of which tokens are missing."""
    monkeypatch.setattr(triton_pool_op, "ROWS", 8)
    monkeypatch.setattr(triton_pool_op, "PROGRAMS", 6)
    held_against_formula(Problem((5, 7), (3, 3), (1, 1), 8, count=2, cls_token=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shipped_blocks(dtype: torch.dtype) -> None:
    held_against_formula(
        Problem((2, 5, 5), (3, 3, 3), (1, 2, 2), 96, 2, cls_token=True, dtype=dtype)
    )


@pytest.mark.parametrize("wanted", [(0,), (1, 2), (3, 6), (4,)])
def test_gradients_of_some(wanted: tuple[int, ...]) -> None:
    problem = Problem((4, 5), (3, 3), (2, 1), 8, count=2)
    tensors = [x.detach().requires_grad_(i in wanted) for i, x in enumerate(problem.tensors())]
    outs = problem.pool(tensors)
    # Of k alone: what is not used of v counts as zeros.
    got = torch.autograd.grad(outs[0].square().sum(), [tensors[i] for i in wanted])
    grads = [2 * outs[0].detach(), torch.zeros_like(outs[1])]
    exact = problem.exact(tensors, grads, wide=True)[2:]
    for i, x in zip(wanted, got, strict=True):
        assert float((x - exact[i]).abs().max()) <= 1e-5 * float(exact[i].abs().max())


def test_gradients_of_gradients() -> None:
    problem = Problem((3, 4), (3, 2), (1, 2), 8, count=2, cls_token=True)
    tensors = problem.tensors()

    def second(outs: tuple[Tensor, ...], inputs: list[Tensor]) -> tuple[Tensor, ...]:
        loss = sum(out.square().sum() for out in outs)
        grads = torch.autograd.grad(loss, inputs, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in grads), inputs)

    doubles = [x.detach().double().requires_grad_() for x in tensors]
    exact = second(problem.formula(doubles), doubles)
    for x, e in zip(second(problem.pool(tensors), tensors), exact, strict=True):
        assert float((x - e).abs().max()) <= 1e-5 * float(e.abs().max())


def test_compiles_in_one_graph_of_any_size() -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, example: list[Tensor]) -> object:
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, example)

    def run(thw: Grid, qkv: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        return Problem(thw, (3, 3), (2, 1), 8).pool([qkv * 2, *rest])

    compiled = torch.compile(run, backend=backend, fullgraph=True, dynamic=True)
    for thw in ((4, 5), (6, 3), (5, 5)):
        tensors = Problem(thw, (3, 3), (2, 1), 8).tensors()
        expected, got = run(thw, *tensors), compiled(thw, *tensors)
        sums = [sum(out.square().sum() for out in outs) for outs in (expected, got)]
        grads = [torch.autograd.grad(total, tensors) for total in sums]
        for a, b in zip((*expected, *grads[0]), (*got, *grads[1]), strict=True):
            assert torch.equal(a, b)
    assert len(graphs) == 1


def test_operators_are_registered_right() -> None:
    problem = Problem((3, 4), (3, 3), (2, 1), 8, count=2)
    xs, weights, norms = problem.parts([x.detach() for x in problem.tensors()])
    gains, biases, eps = (list(part) for part in zip(*norms, strict=True))
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    sizes = ([3, 4], [2, 1], False)
    needing = [x.requires_grad_() for x in weights]
    arguments = (xs, needing, gains, biases, eps, *sizes)
    torch.library.opcheck(triton_pool_op.pool_op, arguments, test_utils=tests)
    weights = [x.detach() for x in weights]
    outs = triton_pool_op.pool_op(xs, weights, gains, biases, eps, *sizes)
    arguments = (outs, xs, weights, gains, eps, *sizes, True, True)
    # Its sums' rows of gradients not wanted hold nothing: all are wanted here.
    torch.library.opcheck(triton_pool_op.pool_backward_op, arguments, test_utils=tests)


def test_what_does_not_fit_is_refused() -> None:
    xs, weights, norms = (problem := Problem((4, 5), (3, 3), (1, 1), 8)).parts(problem.tensors())
    pool = triton_pool.pool_heads
    with pytest.raises(ValueError, match="one or two tensors"):
        pool(xs * 3, weights * 3, None, (4, 5), (1, 1))
    with pytest.raises(ValueError, match="all be of one of"):
        pool([xs[0].double()], weights, None, (4, 5), (1, 1))
    with pytest.raises(ValueError, match="fit"):
        pool(xs, weights, None, (4, 6), (1, 1))
    with pytest.raises(ValueError, match="share shape and strides"):
        pool([xs[0], xs[0].contiguous()], weights * 2, None, (4, 5), (1, 1))
    with pytest.raises(ValueError, match="weights must"):
        pool(xs, [weights[0][:4]], None, (4, 5), (1, 1))
    with pytest.raises(ValueError, match="norms must be"):
        pool(xs, weights, [(norms[0][0][:4], norms[0][1], 1e-5)], (4, 5), (1, 1))
