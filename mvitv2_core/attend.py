"""softmax(q k^T * scale + positions) v, without ever holding a queries x keys matrix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .context import eager, observed
from .linear import autocast, no_autocast
from .rel_pos import key_cells, rel_pos_terms
from .windows import Chunk, Layout, chunks, partition, unpartition

# The flash and cuDNN kernels take heads of at most this many channels.
MAX_HEAD_DIM = 256
# They pad heads to a multiple of this by copying, unless they come padded.
HEAD_DIM_STEP = 8
# Logits that the chunked path holds at a time: 8 MB in float32, which stays in the cache.
CHUNK_LOGITS = 2**21
# The backward pass holds two such matrices between five products, and takes a quarter at a time, of
# one head; but not fewer queries than this, which slows products with many keys down.
BACKWARD_QUERIES = 1024


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tables: Sequence[Tensor | None],
    q_thw: Sequence[int],
    k_thw: Sequence[int],
    cls_token: bool = False,
    *,
    add_q: bool = False,
    windows: tuple[Sequence[int], Sequence[int]] | None = None,
) -> Tensor:
    """Attention with decomposed relative positions (paper, section 4.1).

    Args:
        q: (B, Nq, heads, head_dim) queries, unscaled; the class token's row first, if any.
        k, v: (B, Nk, heads, head_dim) keys and values.
        tables: one stored (L, head_dim) position table per axis, None for axes without.
        q_thw, k_thw: live grids; ``Nq`` and ``Nk`` are their products, plus the class token.
        cls_token: whether row 0 is a class token, which takes part without positions.
        add_q: whether to add q to the result (residual pooling), but for the class token's row.
        windows: sizes along each axis of the windows of q and of those of k and v; queries see the
            keys of their own window, and zeros that fill the last ones take part as keys.

    Returns:
        (B, Nq, heads, head_dim).

    Raises:
        ValueError: windows with a class token.
    """
    if windows and cls_token:
        raise ValueError("windows must be None with cls_token=True: a class token has no window")
    axes = [axis for axis, table in enumerate(tables) if table is not None]
    seen_thw = windows[1] if windows else k_thw  # the keys that a query sees
    if observed():
        # FLOP counters (fvcore), tracing exporters and torch.func know matmuls, not our kernels.
        path = "plain"
    else:
        path = choose_path(q.device.type, q.shape[-1], sum(seen_thw[axis] for axis in axes))
    if path == "chunked" and (windows is None or eager()):
        terms = _terms(q, tables, q_thw, seen_thw, cls_token, windows and windows[0])
        if cls_token:
            terms = [F.pad(term, (0, 0, 0, 0, 1, 0)) for term in terms]
        q, k, v, *terms = autocast(q, k, v, *terms)
        # Without windows all tokens are one, on one axis: a class token fits no grid of more.
        grids: list[Sequence[int]] = [[x.shape[1]] for x in (q, q, k, k)]
        if windows:
            grids = [q_thw, windows[0], k_thw, windows[1]]
        rest = (tuple(map(tuple, grids)), tuple(seen_thw), tuple(axes), cls_token, add_q)
        with no_autocast(q.device.type):
            return _Chunked.apply(q, k, v, *rest, *terms)
    if windows:
        k, v = (partition(x, k_thw, seen_thw) for x in (k, v))
        parts = attend(partition(q, q_thw, windows[0]), k, v, tables, *windows)
        out = unpartition(parts, q.shape[0], q_thw, windows[0])
    elif path == "plain":
        out = attend_plain(q, k, v, tables, q_thw, k_thw, cls_token)
    elif path == "fused":
        out = _fused(q, k, v)
    else:
        terms = _terms(q, tables, q_thw, k_thw, cls_token)
        cells = key_cells(k_thw, axes, cls_token, HEAD_DIM_STEP, k)
        out = _folded(q, k, v, terms, cells, cls_token)
    return _plus_q(out, q, cls_token) if add_q else out


def _plus_q(out: Tensor, q: Tensor, cls_token: bool) -> Tensor:
    if not cls_token:
        return out + q
    first, others = split_cls_token(out)
    return torch.cat([first, others + split_cls_token(q)[1]], dim=1)


def _terms(
    q: Tensor,
    tables: Sequence[Tensor | None],
    q_thw: Sequence[int],
    k_thw: Sequence[int],
    cls_token: bool,
    window: Sequence[int] | None = None,
) -> list[Tensor]:
    """``rel_pos_terms`` of the queries that are no class token."""
    # Contiguous once, or each axis would copy what the class token's row parts from it.
    q = split_cls_token(q)[1].contiguous() if cls_token else q
    return rel_pos_terms(q, tables, q_thw, k_thw, window)


def split_cls_token(x: Tensor) -> tuple[Tensor, Tensor]:
    """(B, 1 + N, ...) tokens -> views of the class token and of the others.

    One split, whose backward pass is one concatenation; two slices would each fill the gradient of
    all tokens with zeros first, and then add the two.
    """
    cls_token, others = x.split((1, x.shape[1] - 1), dim=1)
    return cls_token, others


def choose_path(device: str, head_dim: int, position_channels: int) -> str:
    """Which exact path attends: "fused", "folded" or "chunked".

    Args:
        device: "cpu", "cuda", ...
        head_dim: channels of a head.
        position_channels: key cells over all axes with positions; folding adds as many channels.

    Without positions PyTorch's fused attention does all. With them, accelerators and compilers
    fold positions into extra channels, up to the head size that fused kernels take. The rest goes
    by chunks of queries: heads too wide to fold, and eager CPU, where measured chunks beat folding
    by 1.1x in windows and 1.5x in global blocks, in inference as in training.
    """
    if not position_channels:
        return "fused"
    if head_dim + position_channels > MAX_HEAD_DIM:  # a multiple of the step itself
        return "chunked"
    return "chunked" if device == "cpu" and not torch.compiler.is_compiling() else "folded"


def _fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    # (B, N, heads, head_dim) -> (B, heads, N, head_dim) views; the kernels take any strides
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def _folded(
    q: Tensor, k: Tensor, v: Tensor, terms: Sequence[Tensor], cells: Tensor, cls_token: bool
) -> Tensor:
    """Positions as channels: [q, terms] . [k, cells] is the whole logit, so no bias exists.

    Exact because a key's row of ``cells`` holds a one for its cell on each axis: the product
    picks that cell's term.
    """
    head_dim = q.shape[-1]
    scale = head_dim**-0.5
    # Attention scales the whole product, and positions stand outside the scale: undo it on them.
    positions = torch.cat(list(terms), dim=-1) * (1 / scale)
    # Channels up to a full step are zeros, in ``cells`` as well, and so is the class token's row.
    width = cells.shape[-1] - positions.shape[-1]
    positions = F.pad(positions, (0, width, 0, 0, int(cls_token), 0))
    q = torch.cat([q, positions.to(q.dtype)], dim=-1)
    k = torch.cat([k, cells[None, :, None].expand(*k.shape[:3], -1)], dim=-1)
    # Fused kernels want one head size for q, k and v.
    v = F.pad(v, (0, q.shape[-1] - head_dim))
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, scale=scale)
    return out.transpose(1, 2)[..., :head_dim]


class _Chunked(torch.autograd.Function):
    """Exact attention for some queries at a time: each sees all its keys, so rows are complete.

    Keeps q, k, v and the terms for the backward pass, which makes each chunk's probabilities anew.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        grids: tuple[tuple[int, ...], ...],
        k_thw: tuple[int, ...],
        axes: tuple[int, ...],
        cls_token: bool,
        add_q: bool,
        *terms: Tensor,
    ) -> Tensor:
        layout = Layout(q.shape[0], q.shape[2], *grids)
        ctx.layout = (layout, k_thw, axes, cls_token, add_q)
        ctx.save_for_backward(q, k, v, *terms)
        scale = q.shape[-1] ** -0.5
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        scratch = _Scratch(q)
        for chunk in chunks(layout, CHUNK_LOGITS):
            q_ = chunk.of_queries(q)
            bias = _bias([chunk.of_queries(t) for t in terms], k_thw, axes, cls_token, scratch)
            parts = (q_, chunk.of_keys(k), chunk.of_keys(v))
            q_h, k_h, v_h = (x.transpose(1, 2) for x in parts)
            part = F.scaled_dot_product_attention(q_h, k_h, v_h, attn_mask=bias, scale=scale)
            part = part.transpose(1, 2)
            if add_q:
                _add_residual(part, q_, chunk, cls_token)
            chunk.put_queries(out, part)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *terms = ctx.saved_tensors
        layout, k_thw, axes, cls_token, add_q = ctx.layout
        scale, first = q.shape[-1] ** -0.5, int(cls_token)
        dq = torch.empty_like(q, memory_format=torch.contiguous_format)
        # Sums over chunks: float32 at least.
        wide = torch.promote_types(q.dtype, torch.float32)
        dk, dv = (torch.zeros(x.shape, dtype=wide, device=x.device) for x in (k, v))
        dterms = [torch.zeros(t.shape, dtype=t.dtype, device=t.device) for t in terms]
        scratch = _Scratch(q)
        for chunk in _backward_chunks(layout):
            q_, g_ = (_by_head(chunk.of_queries(x)) for x in (q, grad))
            k_, v_ = (_by_head(chunk.of_keys(x)) for x in (k, v))
            k_ = k_ * scale
            logits = _bias([chunk.of_queries(t) for t in terms], k_thw, axes, cls_token, scratch)
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
            torch.ops.aten._softmax_backward_data.out(
                dweights.to(wide), weights, -1, wide, grad_input=dlogits
            )
            narrow = dlogits.to(q.dtype)
            part = _by_token(_bmm(narrow, k_), shape)
            if add_q:
                _add_residual(part, _by_token(g_, shape), chunk, cls_token)
            chunk.put_queries(dq, part)
            chunk.add_keys(dk, _by_token(_bmm(narrow.transpose(1, 2), q_), shape) * scale)
            # Each term was added along the other axes: its gradient is the sum over them.
            cells = dlogits.view(shape)[..., first:].unflatten(-1, k_thw)
            for axis, dterm in zip(axes, dterms, strict=True):
                others = [3 + a for a in range(len(k_thw)) if a != axis]
                total = cells.sum(dim=others) if others else cells
                chunk.put_queries(dterm, total.transpose(1, 2))
        if cls_token:  # the class token's row holds no positions
            for dterm in dterms:
                dterm[:, 0] = 0
        return dq, dk.to(k.dtype), dv.to(v.dtype), *(None,) * 5, *dterms


def _backward_chunks(layout: Layout) -> Iterator[Chunk]:
    """Chunks of a quarter of the logits, heads apart; see ``BACKWARD_QUERIES``."""
    return chunks(layout, CHUNK_LOGITS // 4, True, BACKWARD_QUERIES, CHUNK_LOGITS)


def _add_residual(part: Tensor, x: Tensor, chunk: Chunk, cls_token: bool) -> None:
    """``part += x`` for a chunk's (b, n, heads, d) rows, but for the class token's."""
    first = int(cls_token and chunk.queries[0].start == 0)
    part[:, first:] += x[:, first:]


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


def _bias(
    terms: Sequence[Tensor],
    k_thw: Sequence[int],
    axes: Sequence[int],
    cls_token: bool,
    scratch: _Scratch,
) -> Tensor:
    """(b, n, heads, k_size) terms of each axis -> contiguous (b, heads, n, Nk) logits."""
    first, (b, n, heads, _) = int(cls_token), terms[0].shape
    bias = scratch.get("logits", (b, heads, n, first + prod(k_thw)), terms[0].dtype)
    bias[..., :first] = 0
    cells = bias[..., first:].unflatten(-1, tuple(k_thw))
    *some, last = (_spread(term, axis, k_thw) for axis, term in zip(axes, terms, strict=True))
    if some:
        torch.add(sum(some[1:], some[0]).expand_as(cells), last.expand_as(cells), out=cells)
    else:
        cells.copy_(last)
    return bias


def _spread(term: Tensor, axis: int, k_thw: Sequence[int]) -> Tensor:
    """(b, n, heads, k_size) term of an axis -> (b, heads, n, 1.., k_size, ..1)."""
    shape = [1] * len(k_thw)
    shape[axis] = k_thw[axis]
    return term.transpose(1, 2).unflatten(-1, shape)


def attend_plain(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tables: Sequence[Tensor | None],
    q_thw: Sequence[int],
    k_thw: Sequence[int],
    cls_token: bool = False,
) -> Tensor:
    """The same as ``attend`` in plain matrix products, holding the whole matrix.

    The definition that every fast path is tested against, and what tracers see.
    """
    first = int(cls_token)
    logits = (q * q.shape[-1] ** -0.5).transpose(1, 2) @ k.permute(0, 2, 3, 1)
    terms = rel_pos_terms(q[:, first:], tables, q_thw, k_thw)
    axes = [axis for axis, table in enumerate(tables) if table is not None]
    for axis, term in zip(axes, terms, strict=True):
        bias = _spread(term, axis, k_thw).expand(-1, -1, -1, *k_thw).flatten(3)
        logits = logits + F.pad(bias, (first, 0, first, 0))
    return (logits.softmax(dim=-1) @ v.transpose(1, 2)).transpose(1, 2)
