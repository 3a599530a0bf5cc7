"""Pooling of heads by depthwise convolution, with the norm that follows, as Triton kernels.

Reads tokens where they lie in the product of qkv, whatever their strides, convolves over any axes,
norms each head's token in the same pass (what is normed is never in memory), and takes k and v in
one launch. Backward, what is normed is computed again, each input token gathers its gradient, and
the parameters' are sums in a fixed order (no atomics).

Proven right in Triton's interpreter and compiled for sm_90; not yet timed on a GPU.
"""

from collections.abc import Sequence
from math import prod

from torch import Tensor

from .triton_device import DTYPES, available, runs_on
from .triton_pool_op import pool_op

Norm = tuple[Tensor, Tensor, float]
MAX_HEAD_DIM = 256
MAX_TAPS = 64


def supports(xs: Sequence[Tensor], weights: Sequence[Tensor]) -> bool:
    """Whether ``pool_heads`` takes these: a device that it runs on, one dtype, sizes that fit."""
    x = xs[0]
    return (
        available()
        and runs_on(x.device)
        and len(xs) in (1, 2)
        and x.dtype in DTYPES
        and all(other.dtype == x.dtype and other.shape == x.shape for other in xs)
        and all(other.stride() == x.stride() and x.stride(-1) == 1 for other in xs)
        and all(x.device == other.device for other in (*xs, *weights))
        and x.shape[-1] <= MAX_HEAD_DIM
        and x.shape[1] < 2**20
        and all(prod(weight.shape[2:]) <= MAX_TAPS for weight in weights)
        and x.shape[1] * max(x.stride(1), x.shape[2] * x.shape[3]) < 2**31
        and len(xs) * x.shape[0] * x.shape[2] < 2**16
        and x.numel() > 0
    )


def pool_heads(
    xs: Sequence[Tensor],
    weights: Sequence[Tensor],
    norms: Sequence[Norm] | None,
    thw: Sequence[int],
    stride: Sequence[int],
    cls_token: bool = False,
) -> tuple[Tensor, ...]:
    """Pools and norms every head of one or two tensors; one launch beside the weights' copy.

    Args:
        xs: q, or k and v: (B, N, heads, head_dim) of the same strides, which are 1 along head_dim;
            a class token's row first. float32, bfloat16 or float16.
        weights: for each (head_dim, 1, *kernel), shared by all heads; padding is kernel // 2.
        norms: for each the weight and bias, (head_dim,), and epsilon of the LayerNorm that follows,
            or None without. The class token's row is not convolved, but normed.
        thw: grid, of one to three axes; N is its product, plus the class token.
        stride: of the convolution along each axis.

    Returns:
        For each (B, N', heads, head_dim), contiguous, a class token's row first.

    Raises:
        ValueError: shapes or dtypes that do not fit one another.
    """
    _check(xs, weights, norms, thw, stride, cls_token)
    gains, biases, eps = (list(part) for part in zip(*norms, strict=True)) if norms else ([],) * 3
    return tuple(
        pool_op(list(xs), list(weights), gains, biases, eps, list(thw), list(stride), cls_token)
    )


def _check(
    xs: Sequence[Tensor],
    weights: Sequence[Tensor],
    norms: Sequence[Norm] | None,
    thw: Sequence[int],
    stride: Sequence[int],
    cls_token: bool,
) -> None:
    if len(xs) not in (1, 2) or len(weights) != len(xs) or len(norms or xs) != len(xs):
        raise ValueError(
            f"xs must be one or two tensors with as many weights and norms, got {len(xs)}, "
            f"{len(weights)}, {len(norms or xs)}"
        )
    x, rank = xs[0], len(thw)
    if x.dtype not in DTYPES or any(other.dtype != x.dtype for other in xs):
        raise ValueError(f"xs must all be of one of {DTYPES}, got {[x.dtype for x in xs]}")
    if any(o.shape != x.shape or o.stride() != x.stride() or o.stride(-1) != 1 for o in xs):
        layouts = [(tuple(o.shape), o.stride()) for o in xs]
        raise ValueError(f"xs must share shape and strides, 1 along head_dim, got {layouts}")
    if not 1 <= rank <= 3 or len(stride) != rank or x.shape[1] != prod(thw) + cls_token:
        raise ValueError(f"thw={thw}, stride={stride} must have 1 to 3 sizes and fit {x.shape}")
    head_dim = x.shape[-1]
    for weight in weights:
        if weight.shape[:2] != (head_dim, 1) or weight.shape != weights[0].shape:
            raise ValueError(f"weights must be ({head_dim}, 1, *kernel), got {weight.shape}")
        if weight.ndim != 2 + rank:
            raise ValueError(f"weights must have {rank} kernel sizes, got {weight.shape}")
    for gain, bias, _ in norms or ():
        if gain.shape != (head_dim,) or bias.shape != (head_dim,):
            raise ValueError(f"norms must be of ({head_dim},), got {gain.shape}, {bias.shape}")
