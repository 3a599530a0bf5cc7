"""Kernels of ``triton_attention``; importing this file needs Triton.

Grids have three axes here, the missing ones in front of size 1. A window's queries are counted over
the cells that lie in the grid, its keys over all of its cells. Strides of q, k and v come in units
of ``UNIT`` elements, which tells the compiler how loads align without a program for every size.
Head sizes that are no power of two are two tiles, ``D0`` and ``D1`` channels wide: 96 is 64 and 32.
"""

# mypy: disable-error-code="no-untyped-def,import-untyped,import-not-found"

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
# Sizes and strides: a program of their own for those divisible by 16 would gain nothing.
SIZES = [
    *("q_sb", "q_sn", "q_sh", "k_sb", "k_sn", "k_sh", "v_sb", "v_sn", "v_sh", "g_sb", "g_sn"),
    *("g_sh", "heads", "nq", "nk", "q0", "q1", "q2", "k0", "k1", "k2", "qw0", "qw1", "qw2", "kw0"),
    *("kw1", "kw2", "nw1", "nw2", "blocks", "splits", "rows_per_split", "c1", "c2", "c3", "numel"),
]


@triton.jit
def _dot(a, b, PRECISION: tl.constexpr, acc=None):
    """a @ b + acc in float32. Triton's interpreter knows no products of halves: "widened" there."""
    if PRECISION == "widened":
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc)
    else:
        return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def _cells(n, w1, w2):
    """Cells (n // (w1 * w2), n // w2 % w1, n % w2) of n < 2**20, by multiplications."""
    x = n.to(tl.float32) + 0.5
    i0 = (x * (1.0 / (w1 * w2))).to(tl.int32)
    rest = n - i0 * (w1 * w2)
    i1 = ((rest.to(tl.float32) + 0.5) * (1.0 / w2)).to(tl.int32)
    return i0, i1, rest - i1 * w2


@triton.jit
def _window(window, nw1, nw2, w0, w1, w2):
    """The first cell of a window along each axis."""
    return window // (nw1 * nw2) * w0, window // nw2 % nw1 * w1, window % nw2 * w2


@triton.jit
def _key_rows(n, count, o0, o1, o2, w1, w2, g0, g1, g2, WINDOWS: tl.constexpr):
    """Rows of k and v of the keys n of a window, and which of them exist."""
    if WINDOWS:
        i0, i1, i2 = _cells(n, w1, w2)
        i0, i1, i2 = i0 + o0, i1 + o1, i2 + o2
        return (i0 * g1 + i1) * g2 + i2, (n < count) & (i0 < g0) & (i1 < g1) & (i2 < g2)
    else:
        return n, n < count


@triton.jit
def _query_rows(m, o0, o1, o2, e1, e2, g1, g2, WINDOWS: tl.constexpr):
    """Rows of q of the queries m of a window, e1 x e2 of whose cells lie in the grid."""
    if WINDOWS:
        i0, i1, i2 = _cells(m, e1, e2)
        return ((i0 + o0) * g1 + i1 + o1) * g2 + i2 + o2
    else:
        return m


@triton.jit
def _tile(p, rows, mask, stride, FIRST: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr):
    """(rows, WIDTH) channels from FIRST on; zeros where masked and beyond D."""
    c = FIRST + tl.arange(0, WIDTH)
    mask = mask[:, None]
    if FIRST + WIDTH > D:
        mask = mask & (c < D)[None, :]
    return tl.load(p + rows[:, None] * stride + c[None, :], mask=mask, other=0.0)


@triton.jit
def _store(p, x, rows, mask, stride, FIRST: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr):
    c = FIRST + tl.arange(0, WIDTH)
    mask = mask[:, None]
    if FIRST + WIDTH > D:
        mask = mask & (c < D)[None, :]
    tl.store(p + rows[:, None] * stride + c[None, :], x.to(p.dtype.element_ty), mask=mask)


@triton.jit
def _one_hot(c, n, w1, w2, c1, c2, AXES: tl.constexpr, CLS: tl.constexpr):
    """Whether column c of the packed terms is of key n: its cell along one of the axes.

    ``c`` and ``n`` broadcast. Columns of the axes follow one another; those of the second and the
    third begin at c1 and c2. AXES has bit a for axis a. A class token has no cell.
    """
    i0, i1, i2 = _cells(n - CLS, w1, w2)
    hot = c < 0
    if AXES & 1:
        hot = hot | (c == i0)
    if AXES & 2:
        hot = hot | (c == c1 + i1)
    if AXES & 4:
        hot = hot | (c == c2 + i2)
    if CLS:
        hot = hot & (n > 0)
    return hot


@triton.jit
def _terms(t0, t1, t2, base, row, mask, c1, c2, c3, AXES: tl.constexpr, KP: tl.constexpr):
    """(rows, KP) terms of all axes side by side, of rows base + row of each."""
    c = tl.arange(0, KP)[None, :]
    row, mask = row[:, None], mask[:, None]
    x = tl.zeros((row.shape[0], KP), t0.dtype.element_ty)
    if AXES & 1:
        inside = mask & (c < c1)
        x = tl.load(t0 + base * c1 + (row * c1 + c), mask=inside, other=x)
    if AXES & 2:
        width = c2 - c1
        inside = mask & (c >= c1) & (c < c2)
        x = tl.load(t1 + base * width + (row * width + c - c1), mask=inside, other=x)
    if AXES & 4:
        width = c3 - c2
        inside = mask & (c >= c2) & (c < c3)
        x = tl.load(t2 + base * width + (row * width + c - c2), mask=inside, other=x)
    return x


@triton.jit
def _store_terms(x, t0, t1, t2, base, row, mask, c1, c2, c3, AXES: tl.constexpr, KP: tl.constexpr):
    """Parts what ``_terms`` joins."""
    c = tl.arange(0, KP)[None, :]
    row, mask = row[:, None], mask[:, None]
    x = x.to(t0.dtype.element_ty)
    if AXES & 1:
        tl.store(t0 + base * c1 + (row * c1 + c), x, mask=mask & (c < c1))
    if AXES & 2:
        width = c2 - c1
        inside = mask & (c >= c1) & (c < c2)
        tl.store(t1 + base * width + (row * width + c - c1), x, mask=inside)
    if AXES & 4:
        width = c3 - c2
        inside = mask & (c >= c2) & (c < c3)
        tl.store(t2 + base * width + (row * width + c - c2), x, mask=inside)


# fmt: off
@triton.jit(do_not_specialize=SIZES)
def forward(
    q, k, v, t0, t1, t2, out, attn, lse,
    q_sb, q_sn, q_sh, k_sb, k_sn, k_sh, v_sb, v_sn, v_sh,
    heads, nq, nk, q0, q1, q2, k0, k1, k2, qw0, qw1, qw2, kw0, kw1, kw2, nw1, nw2,
    c1, c2, c3, blocks, scale,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, KP: tl.constexpr, AXES: tl.constexpr,
    CLS: tl.constexpr, WINDOWS: tl.constexpr, ADD_Q: tl.constexpr, KEEP: tl.constexpr,
    UNIT: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):
    """One block of a window's queries: (windows * blocks, B * heads) programs.

    Writes out, log2-sum-exp2 of the logits in base 2, and with KEEP the result without q.
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
    qa = _tile(q, row, q_in, q_sn * UNIT, 0, D0, D)
    acc_a = tl.zeros((BLOCK_M, D0), tl.float32)
    if D1:
        qb = _tile(q, row, q_in, q_sn * UNIT, D0, D1, D)
        acc_b = tl.zeros((BLOCK_M, D1), tl.float32)
    if AXES:
        base = b.to(tl.int64) * (nq - CLS) * heads
        placed = q_in & (row >= CLS)
        term = _terms(t0, t1, t2, base, (row - CLS) * heads + h, placed, c1, c2, c3, AXES, KP)
    top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    for start in range(0, keys, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        k_row, k_in = _key_rows(n, keys, ko0, ko1, ko2, kw1, kw2, k0, k1, k2, WINDOWS)
        s = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        if AXES:
            hot = _one_hot(tl.arange(0, KP)[:, None], n[None, :], kw1, kw2, c1, c2, AXES, CLS)
            s = _dot(term, tl.where(hot, 1.0, 0.0).to(term.dtype), PRECISION) * (1 / scale)
        s = _dot(qa, tl.trans(_tile(k, k_row, k_in, k_sn * UNIT, 0, D0, D)), PRECISION, s)
        if D1:
            s = _dot(qb, tl.trans(_tile(k, k_row, k_in, k_sn * UNIT, D0, D1, D)), PRECISION, s)
        s = tl.where((n < keys)[None, :], s, float("-inf"))
        new_top = tl.maximum(top, tl.max(s, 1) * (scale * LOG2E))
        p = tl.exp2(s * (scale * LOG2E) - new_top[:, None])
        shrink = tl.exp2(top - new_top)
        top = new_top
        total = total * shrink + tl.sum(p, 1)
        p = p.to(v.dtype.element_ty)
        acc_a = _dot(p, _tile(v, k_row, k_in, v_sn * UNIT, 0, D0, D),
                     PRECISION, acc_a * shrink[:, None])
        if D1:
            acc_b = _dot(p, _tile(v, k_row, k_in, v_sn * UNIT, D0, D1, D),
                           PRECISION, acc_b * shrink[:, None])
    first = b.to(tl.int64) * nq * heads * D + h * D
    tl.store(lse + tl.program_id(1).to(tl.int64) * nq + row, top + tl.log2(total), mask=q_in)
    acc_a /= total[:, None]
    if KEEP:
        _store(attn + first, acc_a, row, q_in, heads * D, 0, D0, D)
    if ADD_Q:
        acc_a += _tile(q, row, q_in & (row >= CLS), q_sn * UNIT, 0, D0, D).to(tl.float32)
    _store(out + first, acc_a, row, q_in, heads * D, 0, D0, D)
    if D1:
        acc_b /= total[:, None]
        if KEEP:
            _store(attn + first, acc_b, row, q_in, heads * D, D0, D1, D)
        if ADD_Q:
            acc_b += _tile(q, row, q_in & (row >= CLS), q_sn * UNIT, D0, D1, D).to(tl.float32)
        _store(out + first, acc_b, row, q_in, heads * D, D0, D1, D)
