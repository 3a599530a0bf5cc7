"""Backward kernels of ``triton_attention``; importing this file needs Triton."""

# mypy: disable-error-code="no-untyped-def,import-untyped,import-not-found"

import triton
import triton.language as tl

from .triton_attention_kernels import (
    LOG2E,
    SIZES,
    _dot,
    _key_rows,
    _one_hot,
    _query_rows,
    _store,
    _store_terms,
    _terms,
    _tile,
    _window,
)


# fmt: off
@triton.jit(do_not_specialize=SIZES)
def backward_queries(
    q, k, v, t0, t1, t2, grad, attn, lse, dq, dt0, dt1, dt2, delta, packed,
    q_sb, q_sn, q_sh, k_sb, k_sn, k_sh, v_sb, v_sn, v_sh, g_sb, g_sn, g_sh,
    heads, nq, nk, q0, q1, q2, k0, k1, k2, qw0, qw1, qw2, kw0, kw1, kw2, nw1, nw2,
    c1, c2, c3, blocks, scale,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, KP: tl.constexpr, AXES: tl.constexpr,
    CLS: tl.constexpr, WINDOWS: tl.constexpr, ADD_Q: tl.constexpr, D_TERMS: tl.constexpr,
    UNIT: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):
    """Gradients of q and of the terms of one block of queries; programs as in ``forward``.

    Leaves for ``backward_keys`` the sums of grad * attn, and the terms of all axes side by side,
    filled up to KP, so that they load in whole lines.
    """
# fmt: on
    b, h = tl.program_id(1) // heads, tl.program_id(1) % heads
    window, m = tl.program_id(0) // blocks, tl.program_id(0) % blocks * BLOCK_M
    qo0, qo1, qo2 = _window(window, nw1, nw2, qw0, qw1, qw2)
    ko0, ko1, ko2 = _window(window, nw1, nw2, kw0, kw1, kw2)
    if WINDOWS:
        e1, e2 = tl.minimum(qw1, q1 - qo1), tl.minimum(qw2, q2 - qo2)
        queries = tl.minimum(qw0, q0 - qo0) * e1 * e2
        keys = kw0 * kw1 * kw2
    else:
        e1, e2, queries, keys = q1, q2, nq, nk
    if m >= queries:
        return
    m += tl.arange(0, BLOCK_M)
    q_in = m < queries
    row = _query_rows(m, qo0, qo1, qo2, e1, e2, q1, q2, WINDOWS)
    q += b.to(tl.int64) * q_sb * UNIT + h * q_sh * UNIT
    k += b.to(tl.int64) * k_sb * UNIT + h * k_sh * UNIT
    v += b.to(tl.int64) * v_sb * UNIT + h * v_sh * UNIT
    grad += b.to(tl.int64) * g_sb * UNIT + h * g_sh * UNIT
    first = b.to(tl.int64) * nq * heads * D + h * D
    line = tl.program_id(1).to(tl.int64) * nq

    qa = _tile(q, row, q_in, q_sn * UNIT, 0, D0, D)
    ga = _tile(grad, row, q_in, g_sn * UNIT, 0, D0, D)
    oa = _tile(attn + first, row, q_in, heads * D, 0, D0, D)
    d = tl.sum(ga.to(tl.float32) * oa.to(tl.float32), 1)
    dqa = tl.zeros((BLOCK_M, D0), tl.float32)
    if D1:
        qb = _tile(q, row, q_in, q_sn * UNIT, D0, D1, D)
        gb = _tile(grad, row, q_in, g_sn * UNIT, D0, D1, D)
        ob = _tile(attn + first, row, q_in, heads * D, D0, D1, D)
        d += tl.sum(gb.to(tl.float32) * ob.to(tl.float32), 1)
        dqb = tl.zeros((BLOCK_M, D1), tl.float32)
    tl.store(delta + line + row, d, mask=q_in)
    if AXES:
        base = b.to(tl.int64) * (nq - CLS) * heads
        placed = q_in & (row >= CLS)
        term = _terms(t0, t1, t2, base, (row - CLS) * heads + h, placed, c1, c2, c3, AXES, KP)
        _store(packed + line * KP, term, row, q_in, KP, 0, KP, KP)
        dterm = tl.zeros((BLOCK_M, KP), tl.float32)
    top = tl.load(lse + line + row, mask=q_in, other=0.0)
    for start in range(0, keys, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        k_row, k_in = _key_rows(n, keys, ko0, ko1, ko2, kw1, kw2, k0, k1, k2, WINDOWS)
        ka = _tile(k, k_row, k_in, k_sn * UNIT, 0, D0, D)
        s = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        if AXES:
            hot = _one_hot(tl.arange(0, KP)[:, None], n[None, :], kw1, kw2, c1, c2, AXES, CLS)
            hot = tl.where(hot, 1.0, 0.0).to(term.dtype)
            s = _dot(term, hot, PRECISION) * (1 / scale)
        s = _dot(qa, tl.trans(ka), PRECISION, s)
        dp = _dot(ga, tl.trans(_tile(v, k_row, k_in, v_sn * UNIT, 0, D0, D)), PRECISION)
        if D1:
            kb = _tile(k, k_row, k_in, k_sn * UNIT, D0, D1, D)
            s = _dot(qb, tl.trans(kb), PRECISION, s)
            dp = _dot(gb, tl.trans(_tile(v, k_row, k_in, v_sn * UNIT, D0, D1, D)), PRECISION, dp)
        p = tl.exp2(s * (scale * LOG2E) - top[:, None])
        p = tl.where((n < keys)[None, :], p, 0.0)
        ds = (p * (dp - d[:, None])).to(q.dtype.element_ty)
        dqa = _dot(ds, ka, PRECISION, dqa)
        if D1:
            dqb = _dot(ds, kb, PRECISION, dqb)
        if D_TERMS:
            dterm = _dot(ds, tl.trans(hot), PRECISION, dterm)
    dqa *= scale
    if ADD_Q:
        dqa += _tile(grad, row, q_in & (row >= CLS), g_sn * UNIT, 0, D0, D).to(tl.float32)
    _store(dq + first, dqa, row, q_in, heads * D, 0, D0, D)
    if D1:
        dqb *= scale
        if ADD_Q:
            dqb += _tile(grad, row, q_in & (row >= CLS), g_sn * UNIT, D0, D1, D).to(tl.float32)
        _store(dq + first, dqb, row, q_in, heads * D, D0, D1, D)
    if D_TERMS:
        _store_terms(dterm, dt0, dt1, dt2, base, (row - CLS) * heads + h, placed, c1, c2, c3,
                     AXES, KP)


# fmt: off
@triton.jit(do_not_specialize=SIZES)
def backward_keys(
    q, k, v, grad, lse, delta, packed, dk, dv,
    q_sb, q_sn, q_sh, k_sb, k_sn, k_sh, v_sb, v_sn, v_sh, g_sb, g_sn, g_sh,
    heads, nq, nk, q0, q1, q2, k0, k1, k2, qw0, qw1, qw2, kw0, kw1, kw2, nw1, nw2,
    c1, c2, c3, blocks, scale, splits, rows_per_split, numel,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, KP: tl.constexpr, AXES: tl.constexpr,
    CLS: tl.constexpr, WINDOWS: tl.constexpr,
    UNIT: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):
    """Gradients of one block of a window's keys and values from one part of its queries.

    (windows * blocks * splits, B * heads) programs. Each of the ``splits`` parts of the queries
    writes gradients of its own, (splits, numel), which ``add_splits`` adds.
    """
# fmt: on
    b, h = tl.program_id(1) // heads, tl.program_id(1) % heads
    split, rest = tl.program_id(0) % splits, tl.program_id(0) // splits
    window, n = rest // blocks, rest % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    qo0, qo1, qo2 = _window(window, nw1, nw2, qw0, qw1, qw2)
    ko0, ko1, ko2 = _window(window, nw1, nw2, kw0, kw1, kw2)
    if WINDOWS:
        e1, e2 = tl.minimum(qw1, q1 - qo1), tl.minimum(qw2, q2 - qo2)
        queries = tl.minimum(qw0, q0 - qo0) * e1 * e2
        keys = kw0 * kw1 * kw2
    else:
        e1, e2, queries, keys = q1, q2, nq, nk
    k_row, k_in = _key_rows(n, keys, ko0, ko1, ko2, kw1, kw2, k0, k1, k2, WINDOWS)
    q += b.to(tl.int64) * q_sb * UNIT + h * q_sh * UNIT
    k += b.to(tl.int64) * k_sb * UNIT + h * k_sh * UNIT
    v += b.to(tl.int64) * v_sb * UNIT + h * v_sh * UNIT
    grad += b.to(tl.int64) * g_sb * UNIT + h * g_sh * UNIT
    line = tl.program_id(1).to(tl.int64) * nq
    ka = _tile(k, k_row, k_in, k_sn * UNIT, 0, D0, D)
    va = _tile(v, k_row, k_in, v_sn * UNIT, 0, D0, D)
    dka = tl.zeros((BLOCK_N, D0), tl.float32)
    dva = tl.zeros((BLOCK_N, D0), tl.float32)
    if D1:
        kb = _tile(k, k_row, k_in, k_sn * UNIT, D0, D1, D)
        vb = _tile(v, k_row, k_in, v_sn * UNIT, D0, D1, D)
        dkb = tl.zeros((BLOCK_N, D1), tl.float32)
        dvb = tl.zeros((BLOCK_N, D1), tl.float32)
    if AXES:
        hot = _one_hot(tl.arange(0, KP)[None, :], n[:, None], kw1, kw2, c1, c2, AXES, CLS)
        hot = tl.where(hot, 1.0, 0.0).to(q.dtype.element_ty)
    stop = tl.minimum(queries, (split + 1) * rows_per_split)
    for start in range(split * rows_per_split, stop, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        q_in = m < stop
        row = _query_rows(m, qo0, qo1, qo2, e1, e2, q1, q2, WINDOWS)
        qa = _tile(q, row, q_in, q_sn * UNIT, 0, D0, D)
        ga = _tile(grad, row, q_in, g_sn * UNIT, 0, D0, D)
        s = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        if AXES:
            term = _tile(packed + line * KP, row, q_in, KP, 0, KP, KP)
            s = _dot(hot, tl.trans(term), PRECISION) * (1 / scale)
        s = _dot(ka, tl.trans(qa), PRECISION, s)
        dp = _dot(va, tl.trans(ga), PRECISION)
        if D1:
            qb = _tile(q, row, q_in, q_sn * UNIT, D0, D1, D)
            gb = _tile(grad, row, q_in, g_sn * UNIT, D0, D1, D)
            s = _dot(kb, tl.trans(qb), PRECISION, s)
            dp = _dot(vb, tl.trans(gb), PRECISION, dp)
        # Rows that are masked hold zeros of q and grad: they add nothing.
        top = tl.load(lse + line + row, mask=q_in, other=0.0)
        p = tl.exp2(s * (scale * LOG2E) - top[None, :])
        d = tl.load(delta + line + row, mask=q_in, other=0.0)
        ds = (p * (dp - d[None, :])).to(q.dtype.element_ty)
        p = p.to(q.dtype.element_ty)
        dva = _dot(p, ga, PRECISION, dva)
        dka = _dot(ds, qa, PRECISION, dka)
        if D1:
            dvb = _dot(p, gb, PRECISION, dvb)
            dkb = _dot(ds, qb, PRECISION, dkb)
    first = split.to(tl.int64) * numel + b.to(tl.int64) * nk * heads * D + h * D
    _store(dk + first, dka * scale, k_row, k_in, heads * D, 0, D0, D)
    _store(dv + first, dva, k_row, k_in, heads * D, 0, D0, D)
    if D1:
        _store(dk + first, dkb * scale, k_row, k_in, heads * D, D0, D1, D)
        _store(dv + first, dvb, k_row, k_in, heads * D, D0, D1, D)


@triton.jit(do_not_specialize=SIZES)
def add_splits(parts_k, parts_v, dk, dv, splits, numel, BLOCK: tl.constexpr):
    """(splits, numel) -> numel: (numel / BLOCK, 2) programs."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    if tl.program_id(1):
        parts_k, dk = parts_v, dv
    total = tl.zeros((BLOCK,), tl.float32)
    for _ in range(splits):
        total += tl.load(parts_k + i, mask=i < numel, other=0.0)
        parts_k += numel
    tl.store(dk + i, total.to(dk.dtype.element_ty), mask=i < numel)
