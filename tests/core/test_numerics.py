"""Half precision stays finite where float32 does, and gradients are derivatives."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck

from mvitv2_core import BlockSpec, MViTConfig, ops
from mvitv2_core.block import Mlp, MultiScaleBlock
from mvitv2_core.model import LAYER_NORM
from mvitv2_core.ops import HeadPool
from tests.compare import error, loss_of, randomize
from tests.forms import attend_plain, forced
from tests.small import KINDS, small_input, small_model

FINITE = "autocast: finite where float32 is, in outputs and gradients"
LONG = "autocast: attention over 20,480 keys about as exact as the plain arithmetic"
GRADIENTS = "gradients checked in float64 against differences"
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(
            not torch.cuda.is_available(),
            reason="needs a CUDA GPU: run the suite on a machine with one",
        ),
    ),
]
HALF = [torch.float16, torch.bfloat16]

INPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "0 to 255": lambda x: (x.clamp(-3, 3) + 3) / 6 * 255,
    "all equal": lambda x: torch.full_like(x, 114.0),
    "all 1e4": lambda x: torch.full_like(x, 1e4),
    "zeros": torch.zeros_like,
    "thousands": lambda x: 2e3 * x,
    "1e-30": lambda x: 1e-30 * x,
    "one huge pixel": lambda x: x.index_put((torch.tensor(0),) * x.ndim, torch.tensor(6e4)),
    "one column of 6e3": lambda x: torch.cat([x[..., :1] * 0 + 6e3, x[..., 1:]], dim=-1),
}
# Beyond float16, whose largest number is 65,504: patch embedding is a product like any other.
BFLOAT16_INPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "1e8": lambda x: 1e8 * x,
    "one column of 6e4": lambda x: torch.cat([x[..., :1] * 0 + 6e4, x[..., 1:]], dim=-1),
    "one pixel of 1e15": lambda x: x.index_put((torch.tensor(0),) * x.ndim, torch.tensor(1e15)),
}


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", [*INPUTS, *BFLOAT16_INPUTS])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("device", DEVICES)
def test_large_inputs(
    device: str, kind: str, name: str, dtype: torch.dtype, tally: Callable[..., None]
) -> None:
    if name in BFLOAT16_INPUTS and dtype == torch.float16:
        return
    x = {**INPUTS, **BFLOAT16_INPUTS}[name](small_input(kind)).to(device)
    for half in (None, dtype):
        model = small_model(kind).to(device)
        with torch.autocast(device, half or dtype, enabled=half is not None):
            output = model(x)
        # A loss of ordinary size, as a scaler keeps it.
        output.float().log_softmax(dim=-1)[:, 0].mean().backward()
        assert output.isfinite().all()
        for parameter_name, p in model.named_parameters():
            assert p.grad.isfinite().all(), parameter_name
    tally(FINITE)


def long_rows(scale: float) -> tuple[list[Tensor], tuple[int, int], tuple[int, int]]:
    """q, k, v and tables of 48 queries and 20,480 keys; logits grow with ``scale`` squared."""
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randn, generator=generator)
    q_thw, k_thw = (8, 6), (160, 128)
    q, k, v = scale * draw(1, 48, 1, 32), scale * draw(1, 20480, 1, 32), draw(1, 20480, 1, 32)
    tables = [scale * draw(2 * max(a, b) - 1, 32) for a, b in zip(q_thw, k_thw, strict=True)]
    return [q, k, v, *tables], q_thw, k_thw


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("scale", [0.1, 0.3, 1.0, 3.0, 10.0])
@pytest.mark.parametrize("path", ["chunked", "folded"])
@pytest.mark.parametrize("device", DEVICES)
def test_long_rows(
    device: str,
    path: str,
    scale: float,
    dtype: torch.dtype,
    tally: Callable[..., None],
) -> None:
    """No less exact than the plain arithmetic under the same autocast, up to a factor of
    four (measured: 3.3 for one gradient of one case, below 3 for the rest);
    single weights of 1/20,480 are subnormal numbers in float16."""
    leaves, q_thw, k_thw = long_rows(scale)

    def run(function: Callable[..., Tensor], to: torch.dtype, half: bool) -> list[Tensor]:
        parts = [leaf.to(device, to).requires_grad_() for leaf in leaves]
        with torch.autocast(device, dtype, enabled=half):
            out = function(*parts[:3], parts[3:], q_thw, k_thw)
        grads = torch.autograd.grad(loss_of(out.to(to).cpu()), parts)
        return [t.double() for t in (out.detach(), *grads)]

    exact = run(attend_plain, torch.float64, False)
    plain = run(attend_plain, torch.float32, True)
    with forced(attention=path):
        ours = run(ops.attention, torch.float32, True)
    for a, b, reference in zip(ours, plain, exact, strict=True):
        assert a.isfinite().all()
        if scale <= 3:  # at 10 logits reach thousands: rounding picks the one key that counts
            assert error(a, reference) < 4 * error(b, reference)
    tally(LONG)


GRIDS: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[bool, ...]]] = {
    "one axis": ((3,), (2,), (True,)),
    "two axes": ((2, 3), (2, 1), (True, True)),
    "two axes, more keys": ((1, 2), (2, 3), (True, True)),
    "three axes": ((2, 2, 1), (1, 2, 2), (True, True, True)),
    "three axes, space only": ((2, 1, 2), (2, 2, 1), (False, True, True)),
    "no positions": ((2, 2), (1, 3), (False, False)),
}


@pytest.mark.parametrize(
    ("path", "limit"), [("plain", 0), ("folded", 0), ("chunked", 2**21), ("chunked", 5)]
)
@pytest.mark.parametrize("cls_token", [False, True])
@pytest.mark.parametrize("grid", GRIDS)
def test_gradients_of_attention(
    grid: str,
    cls_token: bool,
    path: str,
    limit: int,
    tally: Callable[..., None],
) -> None:
    q_thw, k_thw, used = GRIDS[grid]
    draw = partial(torch.randn, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    queries, keys = math.prod(q_thw) + cls_token, math.prod(k_thw) + cls_token
    parts = [draw(2, n, 2, 3) for n in (queries, keys, keys)]
    # One row too many: tables are resampled.
    tables = [
        draw(2 * max(a, b), 3) if use else None
        for a, b, use in zip(q_thw, k_thw, used, strict=True)
    ]
    leaves = [t.requires_grad_() for t in (*parts, *tables) if t is not None]

    def call(*leaves: Tensor) -> Tensor:
        rest = iter(leaves[3:])
        filled = [next(rest) if use else None for use in used]
        return ops.attention(*leaves[:3], filled, q_thw, k_thw, cls_token)

    with forced(limit, attention=path if any(used) or path == "plain" else "fused"):
        assert gradcheck(call, leaves)
    tally(GRADIENTS)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [(3,), (3, 3), (3, 1), (3, 3, 3), (1, 3, 3), (5, 3, 1)])
def test_gradients_of_pools(kernel: Sequence[int], stride: int, tally: Callable[..., None]) -> None:
    for strides in {(stride,) * len(kernel), (1,) * (len(kernel) - 1) + (stride,)}:
        pool = HeadPool(2, kernel, strides).double()
        x = torch.randn(2, *(4, 3, 3)[: len(kernel)], 4, dtype=torch.float64, requires_grad=True)

        def call(x: Tensor, weight: Tensor, pool: nn.Module = pool) -> Tensor:
            return torch.func.functional_call(pool, {"weight": weight}, (x,))

        assert gradcheck(call, (x, pool.weight))
        tally(GRADIENTS)


def check_module(module: nn.Module, *args: object, fast: bool = False) -> None:
    """``gradcheck`` of a module in its first argument and in every parameter."""
    names = [name for name, _ in module.named_parameters()]

    def call(x: Tensor, *values: Tensor) -> Tensor:
        named = dict(zip(names, values, strict=True))
        out = torch.func.functional_call(module, named, (x, *args[1:]))
        return out[0] if isinstance(out, tuple) else out

    assert gradcheck(call, (args[0], *module.parameters()), fast_mode=fast)


@pytest.mark.parametrize("act", [nn.GELU, nn.SiLU])
@pytest.mark.parametrize("chunk", [2, 4096])
def test_gradients_of_the_mlp(
    act: type[nn.Module], chunk: int, monkeypatch: pytest.MonkeyPatch, tally: Callable[..., None]
) -> None:
    monkeypatch.setattr("mvitv2_core.fast.mlp_recompute.CHUNK_TOKENS", chunk)
    mlp = randomize(Mlp(3, 5, 4, act, 0.0).double())
    check_module(mlp, torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True))
    tally(GRADIENTS)


@pytest.mark.parametrize(
    ("rank", "cls_token", "widen"),
    list(itertools.product([1, 2, 3], [False, True], ["attention", "mlp", "no"])),
)
def test_gradients_of_a_block(
    rank: int, cls_token: bool, widen: str, tally: Callable[..., None]
) -> None:
    """Strided q where the width grows, as between stages."""
    thw, dims = (2, 3, 4)[-rank:], {"attention": (4, 8, 8), "mlp": (4, 4, 8), "no": (4, 4, 4)}
    strides = (1, 1, 2)[-rank:] if widen == "attention" else (1,) * rank
    kernel = (3,) * rank
    spec = BlockSpec(*dims[widen], 2, thw, strides, (2,) * rank, kernel, kernel)
    config = MViTConfig(
        blocks=(spec,),
        input_size=thw,
        patch_kernel=(1,) * rank,
        patch_stride=(1,) * rank,
        patch_padding=(0,) * rank,
        rel_pos=(True,) * rank,
        cls_token=cls_token,
    )
    block = randomize(MultiScaleBlock(spec, config, LAYER_NORM, nn.GELU).double())
    x = torch.randn(2, math.prod(thw) + cls_token, 4, dtype=torch.float64, requires_grad=True)
    check_module(block, x, thw, fast=True)
    tally(GRADIENTS)
