"""Products through oneDNN and norms inside the operation that follows, against plain PyTorch."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvitv2_core.linear import linear, norm_linears, norm_parts, product
from tests.compare import error

# Below and above what pays a transposed weight, and more than one chunk.
TOKENS = [1, 7, 1024, 4097]


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(len(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("bias", [True, False])
def test_linear(tokens: int, bias: bool) -> None:
    x, weight = draw(1, tokens, 12), draw(20, 12)
    leaves = [x, weight, *([draw(20)] if bias else [])]
    got = linear(x, weight, leaves[2] if bias else None)
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    expected = F.linear(*wide)
    assert error(got.double(), expected) < 1e-5
    grad = torch.randn_like(expected)
    ours = torch.autograd.grad(got, leaves, grad.float())
    for a, b in zip(ours, torch.autograd.grad(expected, wide, grad), strict=True):
        assert error(a.double(), b) < 1e-5
    with torch.no_grad():
        assert error(linear(x, weight, None, gelu=True), F.gelu(F.linear(x, weight))) < 1e-5
        assert error(product(got, weight), got @ weight) < 1e-5
        # Gradients come in any layout: expanded, transposed.
        one = got[:, :1]
        assert error(product(one.expand_as(got), weight), (one @ weight).expand_as(x)) < 1e-5
        assert error(product(got.mT.contiguous().mT, weight), got @ weight) < 1e-5


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("frozen", [(), ("x",), ("norm",), ("weights",)])
def test_norm_linears(tokens: int, dtype: torch.dtype, frozen: tuple[str, ...]) -> None:
    norm = nn.LayerNorm(12, dtype=dtype)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x, weights = draw(2, tokens, 12, dtype=dtype), [draw(n, 12, dtype=dtype) for n in (8, 20)]
    biases = [None, draw(20, dtype=dtype)]
    parts = {"x": [x], "norm": list(norm.parameters()), "weights": weights, "bias": biases[1:]}
    for name in frozen:
        for leaf in parts[name]:
            leaf.requires_grad_(False)
    leaves = [leaf for part in parts.values() for leaf in part if leaf.requires_grad]
    found = norm_parts(norm, x)
    assert found is not None
    got = norm_linears(x, found, weights, biases)
    normed = norm(x)
    expected = [F.linear(normed, w, b) for w, b in zip(weights, biases, strict=True)]
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    grads = [torch.randn_like(out) for out in expected]
    for a, b in zip(
        [*got, *torch.autograd.grad(got, leaves, grads)],
        [*expected, *torch.autograd.grad(expected, leaves, grads)],
        strict=True,
    ):
        assert error(a, b) < tolerance
    with torch.no_grad():
        for a, b in zip(norm_linears(x, found, weights, biases), expected, strict=True):
            assert error(a, b) < tolerance


def test_norms_that_stay_outside() -> None:
    """Of other kinds, without weights, with hooks, in another dtype, and under autocast."""
    x, norm = torch.randn(2, 3, 12), nn.LayerNorm(12)
    assert norm_parts(norm, x) is not None
    assert norm_parts(nn.Identity(), x) is None
    assert norm_parts(nn.LayerNorm(12, elementwise_affine=False), x) is None
    assert norm_parts(nn.LayerNorm(12, bias=False), x) is None
    assert norm_parts(norm, x.bfloat16()) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert norm_parts(norm, x) is None
    norm.register_forward_hook(lambda *_: None)
    assert norm_parts(norm, x) is None
