"""Depthwise pools by frames, and the MLP by chunks, against PyTorch's own modules."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mvitv2_core import plain
from mvitv2_core.block import Mlp
from mvitv2_core.fast import max_pool_frames, mlp_recompute
from mvitv2_core.fast.pool_frames import tied_frames
from mvitv2_core.ops import HeadPool
from tests.compare import error, gradient_error


@pytest.mark.parametrize(("frames", "kernel"), itertools.product([1, 2, 3, 8], [1, 3, 5]))
@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 1, 1), (3, 2, 2), (4, 8, 8)])
def test_pool_is_a_convolution(frames: int, kernel: int, stride: tuple[int, ...]) -> None:
    pool = HeadPool(4, (kernel, 3, 3), stride).double()
    x = torch.randn(2, frames, 7, 6, 8, dtype=torch.float64, requires_grad=True)
    weight = pool.weight.repeat(2, 1, 1, 1, 1)
    padding = (kernel // 2, 1, 1)
    expected = F.conv3d(x.movedim(-1, 1), weight, None, stride, padding, groups=8).movedim(1, -1)
    got = pool(x)
    assert error(got, expected) < 1e-12
    leaves, grad = (x, pool.weight), torch.randn(expected.shape, dtype=torch.float64)
    for ours, reference in zip(
        torch.autograd.grad(got, leaves, grad),
        torch.autograd.grad(expected, leaves, grad),
        strict=True,
    ):
        assert error(ours, reference) < 1e-12


@pytest.mark.parametrize(
    ("kernel", "stride"),
    [
        *itertools.product([(3, 3), (1, 3, 3), (3, 3, 3), (2, 3, 3)], [(4, 4), (8, 8)]),
        ((1, 4), (1, 2)),
        ((1, 1), (1, 2)),
        ((2, 2), (1, 1)),
    ],
)
@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_weight_gradient(
    kernel: tuple[int, ...], stride: tuple[int, int], autocast: bool
) -> None:
    """PyTorch alone gives uninitialised memory: channels-last, strides over kernels, one cell."""
    torch.manual_seed(0)
    for size in range(1, 16, 2):
        pool = HeadPool(8, kernel, (*[1] * (len(kernel) - 2), *stride))
        x = torch.randn(3, *[2] * (len(kernel) - 2), size, max(size - 2, 1), 16)
        grad = torch.randn_like(pool(x))
        (exact,) = torch.autograd.grad(pool(x), pool.weight, grad)
        if autocast:
            with torch.autocast("cpu", torch.bfloat16):
                out = pool(x)
        else:
            out = pool.bfloat16()(x.bfloat16())
        (got,) = torch.autograd.grad(out, pool.weight, grad.bfloat16())
        assert out.dtype == torch.bfloat16
        assert error(got.float(), exact) < 0.03


@pytest.mark.parametrize(
    ("size", "kernel", "stride"), itertools.product(range(1, 10), [1, 3, 5], range(1, 5))
)
def test_frames_sum_to_the_convolution(size: int, kernel: int, stride: int) -> None:
    """The sum over frames that the GPU forms, on a line of numbers."""
    line = torch.arange(1.0, size + 1)
    weights = torch.arange(1.0, kernel + 1) ** 2
    expected = F.conv1d(line[None, None], weights[None, None], None, stride, kernel // 2)[0, 0]
    out = torch.full_like(expected, float("nan"))
    for order, (tap, inputs, outputs) in enumerate(tied_frames(size, kernel, stride)):
        part = weights[tap] * line[inputs]
        if order == 0:
            out[outputs] = part
        else:
            out[outputs] += part
    assert torch.equal(out, expected)


@pytest.mark.parametrize("stride", [(1, 1, 1), (1, 2, 2), (2, 1, 1), (2, 2, 4)])
@pytest.mark.parametrize("cls_token", [False, True])
def test_max_pool_of_frames_then_over_time(stride: tuple[int, ...], cls_token: bool) -> None:
    thw = (5, 6, 7)
    x = torch.randn(2, 5 * 6 * 7 + cls_token, 3, requires_grad=True)
    got, expected = (
        module.max_pool_skip(x, thw, stride, cls_token) for module in (max_pool_frames, plain)
    )
    assert torch.equal(got, expected)
    (ours,), (reference,) = (torch.autograd.grad(y.square().sum(), x) for y in (got, expected))
    assert error(ours, reference) < 1e-6


@pytest.mark.parametrize("chunk", [1, 5, 4096])
def test_mlp_in_chunks(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlp_recompute, "CHUNK_TOKENS", chunk)
    ours = Mlp(6, 24, 9, nn.GELU, 0.0).double()
    reference = nn.Sequential()
    reference.add_module("fc1", nn.Linear(6, 24))
    reference.add_module("act", nn.GELU())
    reference.add_module("fc2", nn.Linear(24, 9))
    reference.double().load_state_dict(ours.state_dict())
    x = torch.randn(2, 7, 6, dtype=torch.float64, requires_grad=True)
    same = x.detach().clone().requires_grad_()
    expected, got = reference(x), ours(same)
    assert error(got, expected) < 1e-12
    (expected**2).sum().backward()
    (got**2).sum().backward()
    assert gradient_error(ours, reference) < 1e-12
    assert error(same.grad, x.grad) < 1e-12
    with torch.no_grad():
        assert error(ours(same), expected) < 1e-12
        single = ours.float()(same.float()).double()
    assert error(single, expected) < 1e-5


def test_mlp_honours_what_users_hang_on_it() -> None:
    """Hooks, wrapped linears, frozen parts, dropout and other activations take the plain route."""
    x = torch.randn(3, 4, 6, dtype=torch.float64)
    model = Mlp(6, 12, 6, nn.GELU, 0.0).double()
    seen = []
    handle = model.fc1.register_forward_hook(lambda *args: seen.append(args))
    model(x)
    assert len(seen) == 1
    handle.remove()

    class Doubled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    before = model(x)
    doubled = Doubled(12, 6).double()
    doubled.load_state_dict(model.fc2.state_dict())
    model.fc2 = doubled
    assert torch.allclose(model(x), 2 * before)
    model.fc2.requires_grad_(False)
    model(x).sum().backward()
    assert model.fc1.weight.grad is not None and model.fc2.weight.grad is None
    assert not torch.equal(Mlp(6, 12, 6, nn.GELU, 0.5).double().train()(x), before)
    relu = Mlp(6, 12, 6, nn.ReLU, 0.0).double()
    assert torch.equal(relu(x), relu.fc2(F.relu(relu.fc1(x))))


def test_mlp_frozen_linear_under_the_fast_path() -> None:
    model = Mlp(6, 12, 6, nn.GELU, 0.0)
    model.fc1.requires_grad_(False)
    x = torch.randn(2, 4, 6, requires_grad=True)
    model(x).sum().backward()
    assert model.fc1.weight.grad is None
    assert model.fc2.weight.grad is not None and x.grad is not None


def test_clip_pools_run_on_the_meta_device() -> None:
    """Shapes and FLOPs of clip models are counted there, where PyTorch has no autocast."""
    pool = HeadPool(4, (3, 3, 3), (1, 2, 2)).to("meta")
    assert pool(torch.empty(2, 4, 6, 6, 8, device="meta")).shape == (2, 4, 3, 3, 8)
