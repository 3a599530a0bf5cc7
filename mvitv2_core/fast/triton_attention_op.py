"""``mvitv2::attention``: the kernels of ``triton_attention`` as custom operators of PyTorch.

A compiler traces over them, and gradients of gradients come from the plain formula.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from .. import plain

# Queries and keys of a block, warps and pipeline stages of each pass. Chosen from what the compiler
# says for sm_90 with heads of 96: no spills inside loops, at most 164 KB of shared memory, and the
# fewest instructions for each logit. Windows of at most SHORT queries take the short ones (of keys,
# for their gradients), and so do terms of more than WIDE key cells, for want of shared memory.
Blocks = dict[str, tuple[int, int, int, int]]
HALF: Blocks = {
    "forward": (128, 64, 8, 3),
    "forward_short": (64, 64, 4, 2),
    "backward_queries": (128, 64, 8, 2),
    "backward_queries_short": (64, 64, 4, 2),
    "backward_keys": (64, 128, 8, 2),
    "backward_keys_short": (32, 64, 4, 2),
}
# Float32 products run without tensor cores, from registers.
SINGLE: Blocks = dict.fromkeys(HALF, (32, 32, 4, 1))
SHORT, WIDE = 64, 128
# Where keys are few, their gradients are computed from parts of the queries, so that about this
# many programs run: four for each multiprocessor of an H100, and the same on every GPU.
PROGRAMS = 528
# Blocks of queries that a part has at least.
STEPS = 4

Sizes = Sequence[int]
SCHEMA = (
    "Tensor[] terms, int[] axes, SymInt[] q_thw, SymInt[] k_thw, bool cls_token, bool add_q, "
    "SymInt[] q_window, SymInt[] k_window"
)


@dataclass(frozen=True)
class _Problem:
    """What the kernels of one attention are launched with."""

    windows: int
    queries: int  # of a window
    keys: int
    sizes: list[int]
    terms: list[Tensor | None]  # of each of three axes
    constants: dict[str, Any]

    def terms_or(self, other: Tensor) -> list[Tensor]:
        """Absent terms are never read: any tensor stands for them."""
        return [other if term is None else term for term in self.terms]


def _problem(
    q: Tensor,
    k: Tensor,
    terms: Sequence[Tensor],
    axes: Sizes,
    q_thw: Sizes,
    k_thw: Sizes,
    cls_token: bool,
    add_q: bool,
    q_window: Sizes,
    k_window: Sizes,
) -> _Problem:
    windowed, rank, head_dim = bool(q_window), len(q_thw), q.shape[-1]
    q_window, k_window = q_window or q_thw, k_window or k_thw
    number = plain.window_counts(q_thw, q_window)
    grids = [[1] * (3 - rank) + list(n) for n in (q_thw, k_thw, q_window, k_window, number)]
    present: list[Tensor | None] = [None] * 3
    for axis, term in zip(axes, terms, strict=True):
        present[axis + 3 - rank] = term.contiguous()
    ends = [sum(x.shape[-1] for x in present[:n] if x is not None) for n in (1, 2, 3)]
    sizes = [q.shape[2], q.shape[1], k.shape[1], *(n for grid in grids[:4] for n in grid)]
    d0, d1 = tiles(head_dim)
    precision = "ieee" if q.dtype == torch.float32 else "tf32" if q.is_cuda else "widened"
    constants = {
        "scale": head_dim**-0.5,
        **{"D": head_dim, "D0": d0, "D1": d1, "KP": _power(ends[2])},
        "AXES": sum(1 << axis for axis, term in enumerate(present) if term is not None),
        **{"CLS": int(cls_token), "WINDOWS": windowed},
        "PRECISION": precision,
    }
    return _Problem(
        windows=prod(number),
        queries=prod(q_window) if windowed else q.shape[1],
        keys=prod(k_window) if windowed else k.shape[1],
        sizes=sizes + grids[4][1:] + ends,
        terms=present,
        constants=constants,
    )


def tiles(head_dim: int) -> tuple[int, int]:
    """Widths of the one or two tiles that hold a head: powers of two, and at least 16."""
    first = 1 << (head_dim.bit_length() - 1)
    second = _power(head_dim - first) if head_dim > first else 0
    return (first, second) if first >= 16 and second < first else (_power(head_dim), 0)


def _power(n: int) -> int:
    """The least power of two that is at least n, and at least 16, which a product takes."""
    return max(16, 1 << (n - 1).bit_length())


def _strides(*tensors: Tensor) -> tuple[list[int], int]:
    """Strides of (B, N, heads, head_dim) tensors but the last, in units of 8 or 1, and the unit."""
    strides = [n for x in tensors for n in x.stride()[:3]]
    unit = 1 if any(n % 8 for n in strides) else 8
    return [n // unit for n in strides], unit


def _blocks(
    q: Tensor, problem: _Problem, name: str, length: int
) -> tuple[int, int, dict[str, int]]:
    """Block sizes of a pass over so many queries or keys, and all that a launch needs of them."""
    name += "_short" if length <= SHORT or problem.constants["KP"] > WIDE else ""
    m, n, warps, stages = (SINGLE if q.dtype == torch.float32 else HALF)[name]
    return m, n, {"BLOCK_M": m, "BLOCK_N": n, "num_warps": warps, "num_stages": stages}


@torch.library.custom_op(
    "mvitv2::attention",
    mutates_args=(),
    schema=f"(Tensor q, Tensor k, Tensor v, {SCHEMA}, bool keep) -> (Tensor, Tensor, Tensor)",
)
def attention_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    terms: Sequence[Tensor],
    axes: Sizes,
    q_thw: Sizes,
    k_thw: Sizes,
    cls_token: bool,
    add_q: bool,
    q_window: Sizes,
    k_window: Sizes,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """-> the result, the result without q where it is to be kept, (B, heads, Nq) log2-sum-exp."""
    from . import triton_attention_kernels as kernels

    x = _problem(q, k, terms, axes, q_thw, k_thw, cls_token, add_q, q_window, k_window)
    out, attn, lse = _empty(q, keep)
    strides, unit = _strides(q, k, v)
    block_m, _, blocks = _blocks(q, x, "forward", x.queries)
    per_window = -(-x.queries // block_m)
    with torch.cuda.device_of(q):
        kernels.forward[x.windows * per_window, q.shape[0] * q.shape[2]](
            *(q, k, v, *x.terms_or(q), out, attn, lse, *strides, *x.sizes, per_window),
            **{**x.constants, "ADD_Q": add_q, "KEEP": keep, "UNIT": unit, **blocks},
        )
    return out, attn, lse


def _empty(q: Tensor, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    lse = q.new_empty((q.shape[0], q.shape[2], q.shape[1]), dtype=torch.float32)
    return q.new_empty(q.shape), q.new_empty(q.shape if keep else (0,)), lse


@attention_op.register_fake
def _(q: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _empty(q, keep=args[-1])


@torch.library.custom_op(
    "mvitv2::attention_backward",
    mutates_args=(),
    schema=f"(Tensor grad, Tensor attn, Tensor lse, bool d_terms, Tensor q, Tensor k, Tensor v, "
    f"{SCHEMA}) -> (Tensor, Tensor, Tensor, Tensor[])",
)
def attention_backward_op(
    grad: Tensor,
    attn: Tensor,
    lse: Tensor,
    d_terms: bool,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    terms: Sequence[Tensor],
    axes: Sizes,
    q_thw: Sizes,
    k_thw: Sizes,
    cls_token: bool,
    add_q: bool,
    q_window: Sizes,
    k_window: Sizes,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """-> gradients of q, k, v and, with d_terms, of the terms."""
    from . import triton_attention_backward as kernels

    x = _problem(q, k, terms, axes, q_thw, k_thw, cls_token, add_q, q_window, k_window)
    dq, dk, dv, dterms = _empty_grads(q, k, terms, d_terms)
    rank = len(q_thw)
    into = dict(zip((axis + 3 - rank for axis in axes), dterms, strict=False))
    delta = torch.empty_like(lse)
    packed = q.new_empty((*lse.shape, x.constants["KP"]) if terms else (0,))
    strides, unit = _strides(q, k, v, grad)
    programs = q.shape[0] * q.shape[2]
    with torch.cuda.device_of(q):
        block_m, _, blocks = _blocks(q, x, "backward_queries", x.queries)
        per_window = -(-x.queries // block_m)
        kernels.backward_queries[x.windows * per_window, programs](
            *(q, k, v, *x.terms_or(q), grad, attn, lse, dq, *(into.get(n, dq) for n in range(3))),
            *(delta, packed, *strides, *x.sizes, per_window),
            **{**x.constants, "ADD_Q": add_q, "D_TERMS": bool(dterms), "UNIT": unit, **blocks},
        )
        block_m, block_n, blocks = _blocks(q, x, "backward_keys", x.keys)
        per_window, steps = -(-x.keys // block_n), -(-x.queries // block_m)
        tiles = x.windows * per_window
        splits = max(min(PROGRAMS // (tiles * programs), steps // STEPS), 1)
        steps = -(-steps // splits)
        parts = [dk, dv]
        if splits > 1:
            parts = [k.new_empty((splits, *k.shape), dtype=torch.float32) for _ in parts]
        kernels.backward_keys[tiles * splits, programs](
            *(q, k, v, grad, lse, delta, packed, *parts, *strides, *x.sizes, per_window),
            **{**x.constants, "splits": splits, "rows_per_split": steps * block_m},
            **{"numel": dk.numel(), "UNIT": unit, **blocks},
        )
        if splits > 1:
            kernels.add_splits[-(-dk.numel() // 1024), 2](
                *(*parts, dk, dv, splits, dk.numel()), BLOCK=1024
            )
    return dq, dk, dv, dterms


def _empty_grads(
    q: Tensor, k: Tensor, terms: Sequence[Tensor], d_terms: bool
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    dterms = [x.new_empty(x.shape) for x in terms] if d_terms else []
    return q.new_empty(q.shape), k.new_empty(k.shape), k.new_empty(k.shape), dterms


@attention_backward_op.register_fake
def _(
    grad: Tensor,
    attn: Tensor,
    lse: Tensor,
    d_terms: bool,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    terms: Sequence[Tensor],
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    return _empty_grads(q, k, terms, d_terms)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, terms, *ctx.rest, keep = inputs
    out, attn, lse = output
    if inputs[8] and not keep:
        raise RuntimeError("keep must be True with add_q=True where gradients are wanted")
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, v, *terms, attn if keep else out, lse)


def _backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
    q, k, v, *terms, attn, lse = ctx.saved_tensors
    # PyTorch takes an empty list, and no None, for the gradient of an empty list.
    rest: list[Any] = [[] if isinstance(x, Sequence) and not x else None for x in ctx.rest]
    dterms: list[Tensor | None] = [None] * len(terms)
    if grad is None:
        return (None, None, None, dterms, *rest, None)
    if torch.is_grad_enabled():  # a gradient of this gradient is wanted
        wanted = [x for x in (q, k, v, *terms) if x.requires_grad]
        with torch.autocast(q.device.type, enabled=False):
            *sizes, cls_token, add_q, q_window, k_window = ctx.rest
            windows = (q_window, k_window) if q_window else None
            options = {"cls_token": cls_token, "add_q": add_q, "windows": windows}
            out = plain.attention(q, k, v, terms, *sizes, **options)
            found = iter(torch.autograd.grad(out, wanted, grad, create_graph=True))
        dq, dk, dv, *dterms = (next(found) if x.requires_grad else None for x in (q, k, v, *terms))
        return (dq, dk, dv, dterms, *rest, None)
    if grad.stride(-1) != 1:
        grad = grad.contiguous()
    d_terms = any(ctx.needs_input_grad[3])
    dq, dk, dv, got = attention_backward_op(
        *(grad, attn, lse, d_terms, q, k, v, list(terms), *ctx.rest)
    )
    return (dq, dk, dv, got if d_terms else dterms, *rest, None)


attention_op.register_autograd(_backward, setup_context=_setup_context)
