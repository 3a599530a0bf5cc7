"""Interpreted cases of ``fast.triton_attention``; ``test_triton_attention`` runs them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mvitv2_core.fast import triton_attention, triton_attention_op
from tests import plain
from tests.core.fast import interpreted
from tests.core.fast.attention_problem import Problem

interpreted.mend_rounding()
torch.set_num_threads(1)
OPS = (triton_attention_op.attention_op, triton_attention_op.attention_backward_op)


def attend(problem: Problem, *tensors: Tensor) -> Tensor:
    q, k, v, *terms = tensors
    return triton_attention.attention(
        *(q, k, v, terms, problem.axes, problem.q_thw, problem.k_thw),
        *(problem.cls_token, problem.add_q, problem.windows),
    )


def held_against_formula(problem: Problem, tensors: list[Tensor], got: Sequence[Tensor]) -> None:
    names = ["out", "dq", "dk", "dv", *(f"dterm {axis}" for axis in problem.axes)]
    usual, exact = problem.exact(tensors, problem.dtype), problem.exact(tensors)
    interpreted.check(names, got, usual, exact, problem.dtype)


def small_blocks(patch: pytest.MonkeyPatch, queries: int, keys: int, steps: int) -> None:
    for table in (triton_attention_op.HALF, triton_attention_op.SINGLE):
        for name in table:
            patch.setitem(table, name, (queries, keys, 4, 1))
    patch.setattr(triton_attention_op, "STEPS", steps)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    rank = draw(st.integers(1, 3))
    sizes = st.tuples(*[st.integers(1, (24, 5, 3)[rank - 1])] * rank)
    cls_token = draw(st.booleans())
    windows = None
    q_thw, k_thw = draw(sizes), draw(sizes)
    if not cls_token and draw(st.booleans()):
        # As many windows of queries as of keys, the last ones cut off by the grid.
        counts = draw(st.tuples(*[st.integers(1, 2)] * rank))
        windows = tuple(draw(st.tuples(*[st.integers(1, 4)] * rank)) for _ in range(2))
        q_thw, k_thw = (
            tuple(c * w - draw(st.integers(0, w - 1)) for c, w in zip(counts, window, strict=True))
            for window in windows
        )
    return Problem(
        q_thw=q_thw,
        k_thw=k_thw,
        axes=tuple(sorted(draw(st.sets(st.integers(0, rank - 1))))),
        head_dim=draw(st.sampled_from((96, 72, 64, 40, 8))),
        batch=draw(st.integers(1, 2)),
        heads=draw(st.integers(1, 2)),
        cls_token=cls_token,
        add_q=draw(st.booleans()),
        windows=windows,
        dtype=draw(st.sampled_from((torch.float32, torch.bfloat16, torch.float16))),
    )


@settings(
    max_examples=8,
    derandomize=True,
    database=None,
    deadline=None,
    phases=(Phase.generate,),  # interpreted kernels take minutes to shrink
    suppress_health_check=list(HealthCheck),
)
@given(
    problem=problems(),
    layout=st.sampled_from(("contiguous", "product", "gapped")),
    blocks=st.tuples(st.sampled_from((16, 32)), st.sampled_from((16, 32)), st.sampled_from((1, 4))),
    seed=st.integers(0, 2**31),
)
def test_equals_the_formula(
    problem: Problem, layout: str, blocks: tuple[int, int, int], seed: int
) -> None:
    torch.manual_seed(seed)
    tensors = problem.tensors(layout)
    *inputs, grad = tensors
    with pytest.MonkeyPatch.context() as patch:
        small_blocks(patch, *blocks)
        out = attend(problem, *inputs)
        got = [out, *torch.autograd.grad(out, inputs, grad)]
    assert out.is_contiguous()
    held_against_formula(problem, tensors, got)


@pytest.mark.parametrize("name", ["image", "clip", "windows"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shipped_blocks(name: str, dtype: torch.dtype) -> None:
    """Blocks as they are on a GPU, with more keys than one holds."""
    sizes = {
        "image": Problem((9, 15), (7, 10), (0, 1), 96, dtype=dtype),
        "clip": Problem((2, 5, 7), (2, 6, 6), (0, 1, 2), 96, cls_token=True, dtype=dtype),
        "windows": Problem((9, 5), (9, 9), (0, 1), 64, windows=((8, 4), (8, 8)), dtype=dtype),
    }
    problem = sizes[name]
    tensors = problem.tensors("product")
    out = attend(problem, *tensors[:-1])
    got = [out, *torch.autograd.grad(out, tensors[:-1], tensors[-1])]
    held_against_formula(problem, tensors, got)


def test_small_values_beside_large_queries() -> None:
    """Residual pooling takes no digits of the gradients: they come from the result without q."""
    problem = Problem((5, 6), (4, 4), (0, 1), 64, add_q=True, dtype=torch.bfloat16)
    tensors = problem.tensors()
    with torch.no_grad():
        tensors[2].mul_(2**-10)
    out = attend(problem, *tensors[:-1])
    got = [out, *torch.autograd.grad(out, tensors[:-1], tensors[-1])]
    held_against_formula(problem, tensors, got)


@pytest.mark.parametrize("wanted", [(0,), (1, 2), (3,), (0, 4)])
def test_gradients_of_some(wanted: Sequence[int]) -> None:
    problem = Problem((4, 5), (3, 2), (0, 1), 16, cls_token=True, add_q=True)
    *inputs, grad = tensors = problem.tensors()
    inputs = [x.detach().requires_grad_(i in wanted) for i, x in enumerate(inputs)]
    got = torch.autograd.grad(attend(problem, *inputs), [inputs[i] for i in wanted], grad)
    exact = problem.exact(tensors)
    for i, x in zip(wanted, got, strict=True):
        assert float((x - exact[1 + i]).abs().max()) < 1e-5 * float(exact[1 + i].abs().max())


def test_expanded_gradient() -> None:
    problem = Problem((4, 5), (3, 2), (1,), 16)
    *inputs, grad = problem.tensors()
    attend(problem, *inputs).sum().backward()
    exact = problem.exact([*inputs, torch.ones_like(grad)])
    for x, e in zip(inputs, exact[1:], strict=True):
        assert float((x.grad - e).abs().max()) < 1e-5 * float(e.abs().max() + 1e-3)


def test_gradients_of_gradients() -> None:
    problem = Problem((2, 5), (3, 3), (0, 1), 16, add_q=True, windows=((2, 3), (3, 2)))
    *inputs, grad = problem.tensors()

    def second(inputs: list[Tensor], out: Tensor) -> tuple[Tensor, ...]:
        grads = torch.autograd.grad(out, inputs, grad.to(out.dtype), create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in grads), inputs)

    got = second(inputs, attend(problem, *inputs))
    doubles = [x.detach().double().requires_grad_() for x in inputs]
    for x, e in zip(got, second(doubles, problem.formula(*doubles)), strict=True):
        assert float((x - e).abs().max()) < 1e-5 * float(e.abs().max())


def test_compiles_in_one_graph_of_any_size() -> None:
    problem = Problem((4, 5), (3, 2), (0, 1), 16, cls_token=True, add_q=True)
    graphs = []

    def backend(graph: torch.fx.GraphModule, example: list[Tensor]) -> object:
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, example)

    def run(thw: tuple[int, int], *tensors: Tensor) -> Tensor:
        q, k, v, *terms = tensors
        return triton_attention.attention(q * 2, k, v, terms, (0, 1), thw, (3, 2), True, True)

    compiled = torch.compile(run, backend=backend, fullgraph=True, dynamic=True)
    for thw in ((4, 5), (6, 3), (5, 5)):
        problem = Problem(thw, (3, 2), (0, 1), 16, cls_token=True, add_q=True)
        *inputs, grad = problem.tensors()
        expected, got = run(thw, *inputs), compiled(thw, *inputs)
        assert torch.equal(expected, got)
        for a, b in zip(
            torch.autograd.grad(expected, inputs, grad),
            torch.autograd.grad(got, inputs, grad),
            strict=True,
        ):
            assert torch.equal(a, b)
    assert len(graphs) == 1


def test_operators_are_registered_right() -> None:
    problem = Problem((4, 5), (3, 2), (0, 1), 16, windows=((2, 3), (2, 1)))
    q, k, v, *terms, grad = problem.tensors()
    sizes = (terms, [0, 1], [4, 5], [3, 2], False, False, [2, 3], [2, 1])
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(OPS[0], (q, k, v, *sizes, False), test_utils=tests)
    out, _, lse = (x.detach() for x in OPS[0](q, k, v, *sizes, False))
    rest = [x.detach() for x in (q, k, v)]
    arguments = (grad, out, lse, True, *rest, [x.detach() for x in terms], *sizes[1:])
    torch.library.opcheck(OPS[1], arguments, test_utils=tests)


def test_formula_is_that_of_the_suite() -> None:
    """The formula here takes terms, and windows of any rank; the suite's own takes tables."""
    for windows in (None, ((4, 2), (2, 2))):
        problem = Problem((7, 4), (4, 3), (0, 1), 8, windows=windows, dtype=torch.float64)
        q, k, v, *_ = problem.tensors()
        shapes = windows or (problem.q_thw, problem.k_thw)
        tables = [torch.randn(9, 8, dtype=torch.float64) for _ in range(2)]
        terms = []
        for axis, table in enumerate(tables):
            rows = plain.rel_pos(table, shapes[0][axis], shapes[1][axis])
            cell = plain.cells(problem.q_thw)[axis] % shapes[0][axis]
            terms.append(torch.einsum("bnhd,nkd->bnhk", q, rows[cell]))
        if windows:
            expected = plain.windows(q, k, v, tables, problem.q_thw, problem.k_thw, *windows)
        else:
            expected = plain.attention(q, k, v, tables, problem.q_thw, problem.k_thw)
        assert torch.allclose(problem.formula(q, k, v, *terms), expected, rtol=0, atol=1e-12)


def test_what_does_not_fit_is_refused() -> None:
    problem = Problem((4, 5), (3, 2), (0, 1), 16)
    q, k, v, *terms, _ = problem.tensors()
    run = triton_attention.attention
    with pytest.raises(ValueError, match="all be of one of"):
        run(q.bfloat16(), k, v, terms, (0, 1), (4, 5), (3, 2))
    with pytest.raises(ValueError, match="do not fill"):
        run(q, k, v, terms, (0, 1), (4, 5), (3, 3))
    with pytest.raises(ValueError, match="the term of axis 1"):
        run(q, k, v, terms[:1] * 2, (0, 1), (4, 5), (3, 2))
    with pytest.raises(ValueError, match="axes must ascend"):
        run(q, k, v, terms, (1, 0), (4, 5), (3, 2))
    with pytest.raises(ValueError, match="equally many windows"):
        run(q, k, v, terms, (0, 1), (4, 5), (3, 2), windows=((2, 2), (3, 2)))
