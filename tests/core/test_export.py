"""torch.export, traces, and programs compiled for sizes that are not known yet."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mvitv2_core import rel_pos
from mvitv2_core.fast import rows_exported
from tests.compare import error
from tests.small import KINDS, small_input, small_model


@pytest.mark.parametrize(
    ("kind", "strict"),
    [
        ("image", True),
        ("clip with class token", False),
        pytest.param("image", False, marks=pytest.mark.slow),
        pytest.param("clip with class token", True, marks=pytest.mark.slow),
    ],
)
def test_export(kind: str, strict: bool) -> None:
    """One program for any batch; nothing of ours is in it but PyTorch's own operations."""
    model, x = small_model(kind).eval(), small_input(kind)
    program = torch.export.export(
        model, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=strict
    )
    assert not any("mvitv2" in str(node.target) for node in program.graph.nodes)
    for batch in (2, 3, 5):
        x = small_input(kind, batch=batch, seed=batch)
        assert error(program.module()(x), model(x)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(KINDS))
def test_export_of_any_size(kind: str, tally: Callable[..., None]) -> None:
    """One program for batches, frames and sizes that were not the example's."""
    model, x = small_model(kind).eval(), small_input(kind)
    dims = {axis: torch.export.Dim.DYNAMIC for axis in range(x.ndim) if axis != 1}
    program = torch.export.export(model, (x,), dynamic_shapes=(dims,), strict=False).module()
    for number, (height, width) in enumerate([(32, 40), (64, 64), (51, 37), (96, 33), (156, 100)]):
        frames = (4 + 2 * number,) if x.ndim == 5 else ()
        x = torch.randn(1 + number % 3, 3, *frames, height, width)
        with torch.no_grad():
            assert error(program(x), model(x)) < 1e-5
        tally("exported programs at other sizes")


def test_rows_of_exported_programs(tally: Callable[..., None]) -> None:
    """Rows that open sizes get are the definition's, for every pair of sizes; so is training."""
    for length, q_size, k_size in itertools.product((15, 27, 111), range(1, 40), range(1, 40, 3)):
        table = torch.randn(length, 4, dtype=torch.float64, requires_grad=True)
        expected = rel_pos.pair_rows(table, q_size, k_size)
        got = rows_exported.pair_rows(table, q_size, k_size)
        assert error(got, expected) < 1e-12, (length, q_size, k_size)
        weight = torch.randn_like(got)
        grads = [torch.autograd.grad(rows, table, weight)[0] for rows in (got, expected)]
        assert error(*grads) < 1e-12, (length, q_size, k_size)
        tally("position rows of exported programs")


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("size", [(32, 40), (156, 100)])
def test_traces_round_as_the_model_does(size: tuple[int, int]) -> None:
    """A tracer's sizes are tensors, whose quotients and powers are float32 unless care is taken.

    A grid of 39 cells with 10 keys then takes other rows of its tables for 38 pairs.
    """
    model, x = small_model("image").double().eval(), torch.randn(1, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        program = torch.jit.trace(model, x)
        assert error(program(x), model(x)) < 1e-12


def gradients(model: nn.Module, output: Tensor) -> list[Tensor]:
    weight = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    return list(torch.autograd.grad((output * weight).sum(), list(model.parameters())))


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(KINDS))
def test_compiled_for_any_size(kind: str) -> None:
    """Traces without graph breaks serve other batches and sizes, forward and backward."""
    model = small_model(kind).double()
    torch._dynamo.reset()
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counter)
    programs = []
    for batch, crop in ((2, 0), (3, 0), (3, 8), (2, 12)):
        x = small_input(kind, batch=batch, dtype=torch.float64)
        x = x[..., : x.shape[-1] - crop].contiguous()
        expected, got = model(x), compiled(x)
        assert error(got, expected) < 1e-9
        for a, b in zip(gradients(model, got), gradients(model, expected), strict=True):
            assert error(a, b) < 1e-8 or b.abs().max() < 1e-12
        programs.append(counter.frame_count)
    # Forward and backward count as one each. Grids that come down to one cell may ask for a second
    # program, which serves the sizes after it.
    assert programs[1] == programs[0] and programs[3] == programs[2] <= 2 * programs[0]
