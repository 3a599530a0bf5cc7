"""Exact attention for some queries at a time: each sees all its keys, so rows are complete."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import plain
from ..plain import Windows
from .context import eager
from .gradients import by_definition
from .precision import cast_for_product, without_autocast
from .window_chunks import Chunk, Layout, window_chunks

# Logits held at a time. On a CPU 8 MB in float32, which stays in the cache; accelerators have no
# such bound, and every chunk costs them ten launches: 256 MB in half precision.
CPU_LOGITS, OTHER_LOGITS = 2**21, 2**27
# The backward pass holds two such matrices between five products, and takes a quarter at a time, of
# one head; but not fewer queries than this, which slows products with many keys down.
BACKWARD_QUERIES = 1024


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    terms: Sequence[Tensor],
    axes: Sequence[int],
    q_thw: Sequence[int],
    k_thw: Sequence[int],
    cls_token: bool = False,
    add_q: bool = False,
    windows: Windows | None = None,
) -> Tensor:
    """``plain.attention`` by chunks, which keeps q, k, v and the terms for the backward pass.

    On CPUs measured 1.1x as fast as folded positions in windows and 1.5x in global blocks, in
    inference as in training (detection T at 1024, two cores); windows gathered a chunk at a time
    take a third of the memory off its inference. Elsewhere for heads too wide to fold.
    """
    if windows and not eager():  # compilers get windows of sizes that they know
        q_, *terms = (plain.partition(x, q_thw, windows[0]) for x in (q, *terms))
        k, v = (plain.partition(x, k_thw, windows[1]) for x in (k, v))
        out = attention(q_, k, v, terms, axes, *windows)
        out = plain.unpartition(out, q.shape[0], q_thw, windows[0])
        return out + q if add_q else out
    q, k, v, *cast_terms = cast_for_product(q, k, v, *terms)
    rest = (tuple(axes), tuple(q_thw), tuple(k_thw), cls_token, add_q, windows)
    with without_autocast(q.device.type):
        return _Chunked.apply(q, k, v, rest, *cast_terms)


class _Plan:
    """How a call's queries and keys lie, as both passes need it."""

    def __init__(self, q: Tensor, k: Tensor, rest: tuple) -> None:
        self.axes, q_thw, k_thw, self.cls_token, self.add_q, windows = rest
        # Without windows all tokens are one, on one axis: a class token fits no grid of more.
        grids = [(x.shape[1],) for x in (q, q, k, k)]
        self.k_thw = tuple(windows[1] if windows else k_thw)  # the keys that a query sees
        if windows:
            grids = [tuple(sizes) for sizes in (q_thw, windows[0], k_thw, windows[1])]
        self.layout = Layout(q.shape[0], q.shape[2], *grids)
        self.limit = CPU_LOGITS if q.device.type == "cpu" else OTHER_LOGITS

    def with_cls_token(self, term: Tensor) -> Tensor:
        """(B, Nq - 1, heads, k_size) -> (B, Nq, heads, k_size): zeros for the class token."""
        return F.pad(term, (0, 0, 0, 0, 1, 0)) if self.cls_token else term

    def backward_chunks(self) -> Iterator[Chunk]:
        """Chunks of a quarter of the logits, heads apart; see ``BACKWARD_QUERIES``."""
        return window_chunks(self.layout, self.limit // 4, True, BACKWARD_QUERIES, self.limit)

    def logits_of(self, chunk: Chunk, terms: Sequence[Tensor], scratch: _Scratch) -> Tensor:
        """What positions add for a chunk: contiguous (b, heads, n, Nk)."""
        first, parts = int(self.cls_token), [chunk.of_queries(term) for term in terms]
        b, n, heads, _ = parts[0].shape
        logits = scratch.get("logits", (b, heads, n, first + prod(self.k_thw)), parts[0].dtype)
        logits[..., :first] = 0
        cells = logits[..., first:].unflatten(-1, self.k_thw)
        # (b, n, heads, k_size) -> (b, heads, n, 1.., k_size, ..1)
        spread = []
        for axis, part in zip(self.axes, parts, strict=True):
            shape = [size if a == axis else 1 for a, size in enumerate(self.k_thw)]
            spread.append(part.transpose(1, 2).unflatten(-1, shape))
        if len(spread) == 1:
            cells.copy_(spread[0])
        else:
            some = sum(spread[1:-1], spread[0])
            torch.add(some.expand_as(cells), spread[-1].expand_as(cells), out=cells)
        return logits

    def add_residual(self, part: Tensor, x: Tensor, chunk: Chunk) -> None:
        """``part += x`` for a chunk's (b, n, heads, d) rows, but for the class token's."""
        first = int(self.cls_token and chunk.queries[0].start == 0)
        part[:, first:] += x[:, first:]


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, rest: tuple, *terms: Tensor) -> Tensor:
        plan = ctx.plan = _Plan(q, k, rest)
        ctx.rest = rest
        ctx.save_for_backward(q, k, v, *terms)
        terms = tuple(plan.with_cls_token(term) for term in terms)
        scale = q.shape[-1] ** -0.5
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        scratch = _Scratch(q)
        for chunk in window_chunks(plan.layout, plan.limit):
            q_ = chunk.of_queries(q)
            bias = plan.logits_of(chunk, terms, scratch)
            parts = (q_, chunk.of_keys(k), chunk.of_keys(v))
            q_h, k_h, v_h = (x.transpose(1, 2) for x in parts)
            part = F.scaled_dot_product_attention(q_h, k_h, v_h, attn_mask=bias, scale=scale)
            part = part.transpose(1, 2)
            if plan.add_q:
                plan.add_residual(part, q_, chunk)
            chunk.put_queries(out, part)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Makes each chunk's probabilities anew."""
        q, k, v, *terms = ctx.saved_tensors
        plan: _Plan = ctx.plan
        if torch.is_grad_enabled():
            needed = [need for i, need in enumerate(ctx.needs_input_grad) if i != 3]
            axes, *rest = ctx.rest
            found = by_definition(
                lambda q, k, v, *terms: plain.attention(q, k, v, terms, axes, *rest),
                (q, k, v, *terms),
                grad,
                needed,
            )
            return *found[:3], None, *found[3:]
        scale, first = q.shape[-1] ** -0.5, int(plan.cls_token)
        terms = [plan.with_cls_token(term) for term in terms]
        dq = torch.empty_like(q, memory_format=torch.contiguous_format)
        # Sums over chunks: float32 at least.
        wide = torch.promote_types(q.dtype, torch.float32)
        dk, dv = (torch.zeros(x.shape, dtype=wide, device=x.device) for x in (k, v))
        dterms = [torch.zeros(t.shape, dtype=t.dtype, device=t.device) for t in terms]
        scratch = _Scratch(q)
        for chunk in plan.backward_chunks():
            q_, g_ = (_by_head(chunk.of_queries(x)) for x in (q, grad))
            k_, v_ = (_by_head(chunk.of_keys(x)) for x in (k, v))
            k_ = k_ * scale
            logits = plan.logits_of(chunk, terms, scratch)
            shape, logits = logits.shape, logits.flatten(0, 1)
            _add_bmm(logits, q_, k_.transpose(1, 2))
            # In place but for half precision: softmax and its gradient finish a row's sums first.
            weights = scratch.get("logits", logits.shape, wide)
            torch.softmax(logits, -1, wide, out=weights)
            part = _bmm(weights.to(g_.dtype).transpose(1, 2), g_)
            chunk.add_keys(dv, _by_token(part, shape))
            dweights = scratch.get("dlogits", logits.shape, q.dtype)
            _bmm(g_, v_.transpose(1, 2), dweights)
            dlogits = scratch.get("dlogits", logits.shape, wide)
            _softmax_backward(dweights.to(wide), weights, dlogits)
            narrow = dlogits.to(q.dtype)
            part = _by_token(_bmm(narrow, k_), shape)
            if plan.add_q:
                plan.add_residual(part, _by_token(g_, shape), chunk)
            chunk.put_queries(dq, part)
            chunk.add_keys(dk, _by_token(_bmm(narrow.transpose(1, 2), q_), shape) * scale)
            # Each term was added along the other axes: its gradient is the sum over them.
            cells = dlogits.view(shape)[..., first:].unflatten(-1, plan.k_thw)
            for axis, dterm in zip(plan.axes, dterms, strict=True):
                others = [3 + a for a in range(len(plan.k_thw)) if a != axis]
                total = cells.sum(dim=others) if others else cells
                chunk.put_queries(dterm, total.transpose(1, 2))
        # The class token's row holds no positions.
        return dq, dk.to(k.dtype), dv.to(v.dtype), None, *(dterm[:, first:] for dterm in dterms)


def _softmax_backward(dweights: Tensor, weights: Tensor, out: Tensor) -> None:
    """Gradient of the logits into ``out``, which may be the memory of ``dweights``."""
    operator = getattr(torch.ops.aten, "_softmax_backward_data", None)
    if operator is not None:
        operator.out(dweights, weights, -1, weights.dtype, grad_input=out)
    else:  # a release without it: it is not a public one
        total = (dweights * weights).sum(dim=-1, keepdim=True)
        torch.mul(dweights - total, weights, out=out)


def _by_head(x: Tensor) -> Tensor:
    """(b, n, heads, head_dim) -> (b * heads, n, head_dim)."""
    return x.transpose(1, 2).flatten(0, 1)


def _by_token(x: Tensor, shape: torch.Size) -> Tensor:
    """(b * heads, n, head_dim) -> (b, n, heads, head_dim), with ``shape`` (b, heads, ...)."""
    return x.unflatten(0, shape[:2]).transpose(1, 2)


def _bmm(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """Batched ``a @ b``; of a batch of one the plain product, which MKL forms 1.2x as fast."""
    if a.shape[0] == 1:
        return torch.mm(a[0], b[0], out=None if out is None else out[0])[None]
    return torch.bmm(a, b, out=out)


def _add_bmm(out: Tensor, a: Tensor, b: Tensor) -> None:
    """``out += _bmm(a, b)``."""
    if a.shape[0] == 1:
        out[0].addmm_(a[0], b[0])
    else:
        out.baddbmm_(a, b)


class _Scratch:
    """Buffers that one call's chunks share: fresh ones would be mapped and faulted in each time."""

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._held: dict[tuple[str, torch.dtype], Tensor] = {}

    def get(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Uninitialised memory of ``shape``, the same for the same name and dtype."""
        size, held = prod(shape), self._held.get((name, dtype))
        if held is None or held.numel() < size:  # the first chunk is the largest
            held = self._held[name, dtype] = self._like.new_empty(size, dtype=dtype)
        return held[:size].view(*shape)
