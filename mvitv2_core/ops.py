"""The door to ``fast``: which form of an operation runs, in one table.

``MVITV2_REFERENCE=1`` runs the plain definitions alone. ``MVITV2_ATTENTION=folded`` and the like
(an operation of ``FORMS``, a form of it) take that form wherever it can run, for debugging.
``MVITV2_TRITON=1`` lets Triton's kernels run where they can.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import plain, rel_pos
from .fast import (
    attention_chunked,
    attention_folded,
    attention_fused,
    mlp_recompute,
    norm_half,
    pool_channels_last,
    pool_frames,
    product_by_sample,
    rows_opaque,
    rows_remembered,
    triton_attention,
    triton_pool,
    workarounds,
)
from .fast.compiled import compile_blocks
from .fast.context import eager, exporting, observed, untouched
from .fast.precision import cast_for_product, without_autocast
from .plain import Windows, max_pool_skip, split_cls_token

__all__ = ["CONVOLUTIONS", "HeadPool", "attention", "compile_blocks", "make_norm"]
__all__ += ["max_pool_skip", "mlp", "pool_heads"]
logger = logging.getLogger(__name__)


class Form(NamedTuple):
    """One way to run an operation; all take the arguments of the plain definition.

    Args:
        name: of the form.
        can: whether it can run a call, from the call's arguments.
        run: runs it.
        should: whether it should, too, where nobody asked for it by name.
    """

    name: str
    can: Callable[..., bool]
    run: Callable[..., Any]
    should: Callable[..., bool] = lambda *_: True


def always(*_: Any) -> bool:
    return True


def no_positions(q: Tensor, k: Tensor, v: Tensor, terms: Sequence[Tensor], *_: Any) -> bool:
    return not terms


def positions(q: Tensor, k: Tensor, v: Tensor, terms: Sequence[Tensor], *_: Any) -> bool:
    return bool(terms)


def fused_heads_fit(q: Tensor, k: Tensor, v: Tensor, terms: Sequence[Tensor], *_: Any) -> bool:
    """Positions fit beside a head's channels into fused kernels; CPUs in eager mode have better."""
    channels = q.shape[-1] + sum(term.shape[-1] for term in terms)
    on_cpu = q.device.type == "cpu" and eager()
    return channels <= attention_folded.MAX_HEAD_DIM and not on_cpu


def asked_for_triton(*_: Any) -> bool:
    """``MVITV2_TRITON=1``: the kernels are right in Triton's interpreter, and not yet timed."""
    return TRITON


def triton_attends(q: Tensor, k: Tensor, v: Tensor, terms: Any, axes: Any, *rest: Any) -> bool:
    if not terms or exporting():
        return False
    q, k, v, *terms = cast_for_product(q, k, v, *terms)
    q_thw, k_thw, _, _, windows = rest
    return triton_attention.supports(q, k, v, terms, q_thw, k_thw, windows)


def attention_by_triton(q: Tensor, k: Tensor, v: Tensor, terms: Any, *rest: Any) -> Tensor:
    q, k, v, *terms = cast_for_product(q, k, v, *terms)
    return triton_attention.attention(q, k, v, terms, *rest)


def triton_pools(xs: Any, thw: Any, pools: Any, norms: Any, cls_token: bool) -> bool:
    """Pools and norms that nothing hangs on."""
    return (
        not exporting()
        and all(untouched(pool, HeadPool) for pool in pools)
        and all(untouched(norm, LayerNorm) and norm.bias is not None for norm in norms)
        and triton_pool.supports(cast_for_product(*xs), [pool.weight for pool in pools])
    )


def pools_by_triton(xs: Any, thw: Any, pools: Any, norms: Any, cls_token: bool) -> Any:
    weights = [pool.weight for pool in pools]
    parts = [(norm.weight, norm.bias, norm.eps) for norm in norms]
    stride, kernel = pools[0].stride, pools[0].kernel
    axes = zip(thw, kernel, stride, strict=True)
    pooled_thw = tuple((n + 2 * (k // 2) - k) // s + 1 for n, k, s in axes)
    xs = cast_for_product(*xs)
    with without_autocast(xs[0].device.type):
        return triton_pool.pool_heads(xs, weights, parts, thw, stride, cls_token), pooled_thw


def unknown_sizes(table: Tensor, q_size: int, k_size: int) -> bool:
    return rows_opaque.sizes_unknown(q_size, k_size)


def few_samples(q: Tensor, rows: Tensor) -> bool:
    return eager() and 1 < q.shape[0] <= product_by_sample.MOST


def odd_frames(x: Tensor, weight: Tensor, stride: Sequence[int]) -> bool:
    return weight.ndim == 5 and weight.shape[2] % 2 == 1 and max(weight.shape[2], stride[0]) > 1


def cuda_or_training(x: Tensor, *_: Any) -> bool:
    return x.is_cuda or torch.is_grad_enabled()


def half_tokens(x: Tensor, *_: Any) -> bool:
    """Under CUDA's autocast."""
    half = x.is_cuda and torch.is_autocast_enabled("cuda")
    return half and x.dtype == torch.get_autocast_dtype("cuda")


def bare_mlp(x: Tensor, fc1: Any, act: Any, fc2: Any, drop: Any) -> bool:
    """Two linears with biases and exact GELU are all there is: nothing hangs on the modules.

    The one place that asks, since every other form gets its tensors from a module's own call.
    """
    return (
        eager()
        and all(untouched(m, nn.Linear) and m.bias is not None for m in (fc1, fc2))
        and (untouched(act, nn.GELU) and act.approximate == "none")
        and (untouched(drop, nn.Dropout) and not (drop.training and drop.p))
    )


def of_tensors(x: Tensor, fc1: Any, act: Any, fc2: Any, drop: Any) -> Tensor:
    return mlp_recompute.mlp(x, fc1.weight, fc1.bias, fc2.weight, fc2.bias)


bfloat16_fails = workarounds.bfloat16_fails
# Of each operation the first form that can and should run a call does.
FORMS: dict[str, tuple[Form, ...]] = {
    "attention": (
        Form("triton", triton_attends, attention_by_triton, asked_for_triton),
        Form("fused", no_positions, attention_fused.attention),
        Form("folded", positions, attention_folded.attention, fused_heads_fit),
        Form("chunked", positions, attention_chunked.attention),
        Form("plain", always, plain.attention),
    ),
    "rows": (
        Form("opaque", unknown_sizes, rows_opaque.pair_rows),
        Form("remembered", always, rows_remembered.pair_rows),
        Form("plain", always, rel_pos.pair_rows),
    ),
    "product": (
        Form("by_sample", few_samples, product_by_sample.product),
        Form("plain", always, torch.matmul),
    ),
    "pool_heads": (
        Form("triton", triton_pools, pools_by_triton, asked_for_triton),
        Form("plain", always, plain.pool_heads),
    ),
    "pool": (
        Form("float32", bfloat16_fails, workarounds.in_float32(plain.pool)),
        Form("frames", odd_frames, pool_frames.pool, cuda_or_training),
        Form("channels_last", always, pool_channels_last.pool),
        Form("plain", always, plain.pool),
    ),
    "convolution": (
        Form("float32", bfloat16_fails, workarounds.in_float32(plain.convolution)),
        Form("plain", always, plain.convolution),
    ),
    "layer_norm": (
        Form("half", half_tokens, norm_half.layer_norm),
        Form("plain", always, F.layer_norm),
    ),
    "mlp": (
        Form("recompute", bare_mlp, of_tensors),
        Form("plain", always, plain.mlp),
    ),
}
REFERENCE = os.environ.get("MVITV2_REFERENCE") == "1"
TRITON = os.environ.get("MVITV2_TRITON") == "1"


def _forced() -> dict[str, str]:
    """{operation: form} from the environment; ValueError on an unknown form."""
    forced = {}
    for operation, forms in FORMS.items():
        variable, names = f"MVITV2_{operation.upper()}", [form.name for form in forms]
        name = os.environ.get(variable)
        if name is not None and name not in names:
            raise ValueError(f"{variable} must be one of {', '.join(names)}, got {name!r}")
        if name is not None:
            forced[operation] = name
    return forced


FORCED = _forced()
_said: set[tuple[str, str, str]] = set()


def choose(operation: str, *call: Any) -> Form:
    """The form that runs a call. Tracers and transforms get the definition."""
    *fast, definition = FORMS[operation]
    if REFERENCE or observed():
        return definition
    forced = FORCED.get(operation)
    for form in FORMS[operation]:
        if form.name == forced and form.can(*call):
            return form
    for form in fast:
        if form.can(*call) and form.should(*call):
            return form
    return definition


def run(operation: str, *call: Any) -> Any:
    form = choose(operation, *call)
    if not torch.compiler.is_compiling():
        first = call[0] if isinstance(call[0], Tensor) else call[0][0]
        said = (operation, form.name, first.device.type)
        if said not in _said:
            _said.add(said)
            logger.info("%s on %s runs as %s", operation, said[2], form.name)
    return form.run(*call)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tables: Sequence[Tensor | None],
    q_thw: Sequence[int],
    k_thw: Sequence[int],
    cls_token: bool = False,
    add_q: bool = False,
    windows: Windows | None = None,
) -> Tensor:
    """``plain.attention`` with positions from one stored (L, head_dim) table per axis, or None.

    Raises:
        ValueError: windows with a class token, or not equally many of queries and keys.
    """
    if windows:
        grids = ((q_thw, windows[0]), (k_thw, windows[1]))
        counts = [[-(-n // w) for n, w in zip(*sizes, strict=True)] for sizes in grids]
        if cls_token:
            raise ValueError("windows must be None with cls_token=True: it has no window")
        if counts[0] != counts[1]:
            raise ValueError(f"windows must be equally many of queries and keys, got {counts}")
    axes = [axis for axis, table in enumerate(tables) if table is not None]
    _, queries = split_cls_token(q, cls_token)
    window, seen_thw = windows or (None, k_thw)
    if axes:  # contiguous once, or each axis would copy what the class token's row parts from it
        queries = queries.contiguous()
    forms = (partial(run, "rows"), partial(run, "product"))
    terms = rel_pos.rel_pos_terms(queries, tables, q_thw, seen_thw, window, *forms)
    return run("attention", q, k, v, terms, axes, q_thw, k_thw, cls_token, add_q, windows)


def pool_heads(
    xs: Sequence[Tensor],
    thw: Sequence[int],
    pools: Sequence[Any],
    norms: Sequence[Any],
    cls_token: bool,
) -> tuple[Sequence[Tensor], tuple[int, ...]]:
    return run("pool_heads", xs, thw, pools, norms, cls_token)


def mlp(x: Tensor, fc1: nn.Module, act: nn.Module, fc2: nn.Module, drop: nn.Module) -> Tensor:
    return run("mlp", x, fc1, act, fc2, drop)


class HeadPool(nn.Module):
    """Depthwise convolution over the grid with one set of weights shared by all heads.

    Args:
        head_dim: channels of a head; ``weight`` is (head_dim, 1, *kernel), as on disk.
        kernel, stride: one size per axis; padding is kernel // 2.
    """

    def __init__(self, head_dim: int, kernel: Sequence[int], stride: Sequence[int]) -> None:
        super().__init__()
        self.kernel, self.stride = tuple(kernel), tuple(stride)
        self.weight = nn.Parameter(torch.empty(head_dim, 1, *kernel))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))  # as nn.Conv starts

    def forward(self, x: Tensor) -> Tensor:
        """(B, *grid, heads * head_dim) -> (B, *pooled grid, heads * head_dim)."""
        return run("pool", x, self.weight, self.stride)


class LayerNorm(nn.LayerNorm):
    """PyTorch's, through the door."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return run("layer_norm", x, self.normalized_shape, self.weight, self.bias, self.eps)


def make_norm(norm_layer: Callable[[int], nn.Module], channels: int) -> nn.Module:
    """A norm of ``channels``; where it is PyTorch's LayerNorm with weights, ours."""
    norm = norm_layer(channels)
    if type(norm) is nn.LayerNorm and norm.weight is not None:
        norm.__class__ = LayerNorm
    return norm


class _Convolution(nn.Module):
    """PyTorch's module of as many axes, through the door."""

    def forward(self: Any, x: Tensor) -> Tensor:
        """(B, C, *grid) -> (B, C', *grid')."""
        return run("convolution", x, self.weight, self.bias, self.stride, self.padding)


class Conv1d(_Convolution, nn.Conv1d):
    pass


class Conv2d(_Convolution, nn.Conv2d):
    pass


class Conv3d(_Convolution, nn.Conv3d):
    pass


CONVOLUTIONS: tuple[Any, ...] = (Conv1d, Conv2d, Conv3d)
