"""What property tests draw: sizes, memory layouts, dtypes, and who needs gradients."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.forms import forced

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# Half of the draws are exact: there every path must agree to rounding of float64.
dtypes = st.sampled_from((torch.float64,) * 3 + DTYPES[1:])
batches = st.integers(0, 4)
seeds = st.integers(0, 2**31)
layouts = st.sampled_from(
    ("contiguous", "channels last", "transposed", "slice", "expanded", "offset")
)
# What needs gradients; without any, whether autograd merely is off or inference mode is on.
modes = st.sampled_from(("all", "input", "weights", "no_grad", "inference_mode"))


def examples(fast: int, slow: int, soak: int) -> pytest.MarkDecorator:
    """Parametrizes ``count``: the draws of a default run, of ``-m slow`` and of ``-m soak``."""
    marks = {slow: pytest.mark.slow, soak: pytest.mark.soak}
    longer = [pytest.param(count, marks=mark) for count, mark in marks.items()]
    return pytest.mark.parametrize("count", [fast, *longer])


def drawn(count: int, *strategies: st.SearchStrategy) -> Callable[[Callable], Callable[[], None]]:
    """Makes a property run on ``count`` draws, the same ones in every run, in one thread.

    The tensors are so small that a second thread only waits.
    """
    chosen = settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )

    def decorate(check: Callable) -> Callable[[], None]:
        def run() -> None:
            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            try:
                chosen(given(*strategies)(check))()
            finally:
                torch.set_num_threads(threads)

        return run

    return decorate


@st.composite
def image_sizes(draw: st.DrawFn, area: int = 2400, longest: int = 100) -> tuple[int, int]:
    """(H, W) from 1x1 up, with aspect ratios to 1:20 either way and at most ``area`` pixels."""
    long = draw(st.integers(1, longest))
    least = -(-long // 20)
    short = draw(st.integers(least, max(least, min(long, area // long))))
    return (short, long) if draw(st.booleans()) else (long, short)


@st.composite
def clip_sizes(draw: st.DrawFn) -> tuple[int, int, int]:
    """(T, H, W) of 1 to 40 frames."""
    frames = draw(st.integers(1, 40))
    return (frames, *draw(image_sizes(max(8192 // frames, 1), 60)))


def input_sizes(rank: int) -> st.SearchStrategy[tuple[int, ...]]:
    """Pixels of lines, images or clips."""
    if rank == 1:
        return st.tuples(st.integers(1, 200))
    return image_sizes() if rank == 2 else clip_sizes()


def normal(shape: Sequence[int], seed: int) -> Tensor:
    """float64 normal draws."""
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed)).double()


def lay(x: Tensor, layout: str, channels: int = 1) -> Tensor:
    """The values of ``x`` in another memory layout; "expanded" repeats the first sample.

    Args:
        x: (B, ...) contiguous values.
        layout: one of ``layouts``.
        channels: the dimension that "channels last" stores innermost.
    """
    if layout == "channels last":
        return x.movedim(channels, -1).contiguous().movedim(-1, channels)
    if layout == "transposed":
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "slice":  # every second value of a larger tensor along the last two dimensions
        return x.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)[..., 1::2, 1::2]
    if layout == "expanded":
        return x[:1].expand_as(x) if len(x) else x
    if layout == "offset":  # starts at an odd address inside its storage
        return torch.cat([x.new_zeros(1), x.flatten()])[1:].view_as(x)
    return x


@dataclass(frozen=True)
class Path:
    """Which of the exact ways to compute is forced.

    Args:
        attention: "folded" or "chunked" where there are positions; None leaves the choice.
        logits, tokens: what a chunk of attention and of the MLP holds; None leaves the default.
    """

    attention: str | None
    logits: int | None
    tokens: int | None

    def forced(self) -> contextlib.AbstractContextManager:
        return forced(self.logits, self.tokens, attention=self.attention)


@dataclass(frozen=True)
class Case:
    """How an example computes: dtype, layout of its inputs, who needs gradients, path, seed."""

    dtype: torch.dtype
    layout: str
    mode: str
    path: Path
    seed: int


paths = st.builds(
    Path,
    st.sampled_from((None, "folded", "chunked")),
    st.sampled_from((None, None, 5000, 1000)),
    st.sampled_from((None, None, 50, 20)),
)
cases = st.builds(Case, dtypes, layouts, modes, paths, seeds)


Function = Callable[..., Sequence[Tensor]]
Result = tuple[list[Tensor], list[Tensor]]


def evaluate(run: Callable[[], Sequence[Tensor]], leaves: Sequence[Tensor], case: Case) -> Result:
    """Outputs of ``run``, and gradients of those leaves that need them."""
    if case.mode in ("no_grad", "inference_mode"):
        with torch.inference_mode() if case.mode == "inference_mode" else torch.no_grad():
            return list(run()), []
    outputs = list(run())
    needing = [leaf for leaf in leaves if leaf.requires_grad]
    if not needing:
        return outputs, []
    weights = [normal(out.shape, case.seed + i).to(out) for i, out in enumerate(outputs)]
    return outputs, list(torch.autograd.grad(outputs, needing, weights))


def hold(
    case: Case,
    model: nn.Module,
    inputs: Sequence[Tensor],
    fast: Function,
    plain: Function,
    roundings: int = 8,
    smooth: bool = True,
) -> list[Tensor]:
    """Assert that ``fast`` equals ``plain``: outputs, and gradients of inputs and parameters.

    Args:
        case: how to compute.
        model: whose parameters take part.
        inputs: float64 values; they get the dtype and the layout of ``case``.
        fast, plain: take the model and the inputs.
        roundings: see ``close``.
        smooth: whether a last bit of an input can only change the last bits of gradients. Max
            pooling hands a gradient to the largest value: which one that is, is decided by the
            last bit at times, so then gradients are compared in float64 alone.

    Returns:
        The outputs.
    """
    model = model.to(case.dtype)
    laid = [lay(x.to(case.dtype), case.layout, min(1, x.ndim - 1)) for x in inputs]
    for tensors, flag in ((laid, "input"), (model.parameters(), "weights")):
        for tensor in tensors:
            tensor.requires_grad_(case.mode in ("all", flag))

    def run(function: Function, model: nn.Module, inputs: Sequence[Tensor]) -> Result:
        return evaluate(lambda: function(model, *inputs), [*inputs, *model.parameters()], case)

    def copies(dtype: torch.dtype) -> list[Tensor]:
        return [
            x.detach()
            .to(dtype)
            .clone(memory_format=torch.contiguous_format)
            .requires_grad_(x.requires_grad)
            for x in laid
        ]

    with case.path.forced():
        got = run(fast, model, laid)
    rough = run(plain, model, copies(case.dtype))
    if case.dtype == torch.float64:
        exact = rough
    else:
        exact = run(plain, copy.deepcopy(model).double(), copies(torch.float64))
    assert all(out.dtype == case.dtype for out in got[0])
    close(got[0], rough[0], exact[0], case.dtype, roundings)
    if smooth or case.dtype == torch.float64:
        close(got[1], rough[1], exact[1], case.dtype, roundings)
    assert all(torch.isfinite(gradient).all() for gradient in got[1])
    return got[0]


def distance(got: Sequence[Tensor], expected: Sequence[Tensor], least: float) -> float:
    """Largest difference over the largest expected value of all tensors, or over ``least``."""
    scale, worst = least, 0.0
    for ours, reference in zip(got, expected, strict=True):
        assert ours.shape == reference.shape, (ours.shape, reference.shape)
        assert torch.isfinite(ours).all()
        if reference.numel():
            scale = max(scale, reference.abs().max().item())
            worst = max(worst, (ours.double() - reference.double()).abs().max().item())
    return worst / scale


def close(
    got: Sequence[Tensor],
    plain: Sequence[Tensor],
    exact: Sequence[Tensor],
    dtype: torch.dtype,
    roundings: int = 8,
) -> None:
    """Assert that ``got`` equals the plain arithmetic as well as its dtype can say.

    float64 to 1e-9 of the largest value, or to 1e-12 where that is smaller. Otherwise at most
    twice as far from the float64 result on the same rounded numbers as the plain arithmetic in
    this dtype is, plus ``roundings`` units in the last place of the largest value: with few
    values the plain result may be exact by luck.
    Never relative to less than one: the drawn values are of order one, and where sums of them
    cancel (gradients through a saturated softmax) their rounding stays.
    """
    if dtype == torch.float64:
        assert distance(got, exact, 1e-3) < 1e-9
        return
    error, allowed = distance(got, exact, 1.0), distance(plain, exact, 1.0)
    assert error <= 2 * allowed + roundings * torch.finfo(dtype).eps, (error, allowed)
