"""The table of ``ops``: for each operation its forms, and when each of them runs a call."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import plain, rel_pos, sizes
from .fast import (
    attention_chunked,
    attention_folded,
    attention_fused,
    compiled,
    max_pool_frames,
    mlp_recompute,
    norm_half,
    pool_channels_last,
    pool_frames,
    qkv_apart,
    rows_exported,
    rows_opaque,
    rows_remembered,
    terms_in_place,
    triton_attention,
    triton_pool,
    workarounds,
)
from .fast.context import eager, exporting, untouched
from .fast.precision import cast_for_product, without_autocast

TRITON = os.environ.get("MVITV2_TRITON") == "1"


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
    return len(terms) == 0  # `not terms` breaks graphs of PyTorch 2.6


def positions(q: Tensor, k: Tensor, v: Tensor, terms: Sequence[Tensor], *_: Any) -> bool:
    """Chunks would tie a program exported for any size to its example's."""
    return len(terms) > 0 and not sizes.open_sizes(q.shape[1], k.shape[1])


def fused_heads_fit(q: Tensor, k: Tensor, v: Tensor, terms: Sequence[Tensor], *_: Any) -> bool:
    """Positions fit beside a head's channels into fused kernels; CPUs in eager mode have better."""
    if sizes.open_sizes(q.shape[1], k.shape[1]):
        return False
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


def ours(module: Any) -> bool:
    """Whether it is a layer of ``ops``, no subclass of one, that nothing hangs on."""
    return "of_tensors" in vars(type(module)) and untouched(module, type(module))


def triton_pools(xs: Any, thw: Any, pools: Any, norms: Any, cls_token: bool) -> bool:
    """Pools and norms that nothing hangs on."""
    return (
        not exporting()
        and all(ours(pool) for pool in pools)
        and all(ours(norm) and norm.bias is not None for norm in norms)
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


def must_repeat_on_a_gpu(x: Tensor, *_: Any) -> bool:
    """Where PyTorch was asked for deterministic algorithms: some operations have none on a GPU."""
    return x.is_cuda and torch.are_deterministic_algorithms_enabled()


def of_clips(x: Tensor, thw: Sequence[int], *_: Any) -> bool:
    return len(thw) == 3


def open_sizes(table: Tensor, q_size: int, k_size: int) -> bool:
    return sizes.open_sizes(q_size, k_size)


def odd_frames(x: Tensor, weight: Tensor, stride: Sequence[int]) -> bool:
    return weight.ndim == 5 and weight.shape[2] % 2 == 1 and max(weight.shape[2], stride[0]) > 1


def cuda_or_training(x: Tensor, *_: Any) -> bool:
    return x.is_cuda or torch.is_grad_enabled()


def half_tokens(x: Tensor, *_: Any) -> bool:
    """Under CUDA's autocast."""
    half = x.is_cuda and torch.is_autocast_enabled("cuda")
    return half and x.dtype == torch.get_autocast_dtype("cuda")


def compiling(*_: Any) -> bool:
    return torch.compiler.is_compiling()


def bare_mlp(x: Tensor, fc1: Any, act: Any, fc2: Any, drop: Any) -> bool:
    """Two linears with biases and exact GELU are all there is: nothing hangs on the modules.

    Only operations that swallow modules ask, this one and ``triton_pools``: every other form gets
    its tensors from a module's own call.
    """
    return (
        eager()
        and all(untouched(m, nn.Linear) and m.bias is not None for m in (fc1, fc2))
        and (untouched(act, nn.GELU) and act.approximate == "none")
        and (untouched(drop, nn.Dropout) and not (drop.training and drop.p))
    )


def bare_linear_on_cpu(x: Tensor, linear: Any) -> bool:
    return x.device.type == "cpu" and eager() and untouched(linear, nn.Linear)


def of_tensors(x: Tensor, fc1: Any, act: Any, fc2: Any, drop: Any) -> Tensor:
    return mlp_recompute.mlp(x, fc1.weight, fc1.bias, fc2.weight, fc2.bias)


bfloat16_fails = workarounds.bfloat16_fails
# Of each operation the first form that can and should run a call does; the last is the definition.
FORMS: dict[str, tuple[Form, ...]] = {
    "attention": (
        Form("triton", triton_attends, attention_by_triton, asked_for_triton),
        Form("fused", no_positions, attention_fused.attention),
        Form("folded", positions, attention_folded.attention, fused_heads_fit),
        Form("chunked", positions, attention_chunked.attention),
        Form("plain", always, plain.attention),
    ),
    "rows": (
        Form("repeatable", must_repeat_on_a_gpu, rows_exported.pair_rows),
        Form("opaque", unknown_sizes, rows_opaque.pair_rows),
        Form("exported", open_sizes, rows_exported.pair_rows),
        Form("remembered", always, rows_remembered.pair_rows),
        Form("plain", always, rel_pos.pair_rows),
    ),
    "terms": (
        Form("in_place", always, terms_in_place.rel_pos_terms),
        Form("plain", always, rel_pos.rel_pos_terms),
    ),
    "split_qkv": (
        Form(
            "apart",
            bare_linear_on_cpu,
            lambda x, linear: qkv_apart.split_qkv(x, linear.weight, linear.bias),
        ),
        Form("plain", always, plain.split_qkv),
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
    "max_pool_skip": (
        Form("frames", of_clips, max_pool_frames.max_pool_skip, must_repeat_on_a_gpu),
        Form("plain", always, plain.max_pool_skip),
    ),
    "mlp": (
        Form("recompute", bare_mlp, of_tensors),
        Form("plain", always, plain.mlp),
    ),
    "drop_path": (
        Form("any_rate", compiling, compiled.drop_path),
        Form("plain", always, plain.drop_path),
    ),
}
