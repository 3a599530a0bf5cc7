"""Kernels of ``triton_pool``; importing this file needs Triton.

Grids and kernels have three axes here, the missing ones in front of size 1 and stride 1. Weights
come as (tensors, taps, D). Where there are two tensors, the last bit of program axis 1 says which.
Strides of the tokens come in units of ``UNIT`` elements, which tells the compiler how loads align.
"""

# mypy: disable-error-code="no-untyped-def,import-untyped,import-not-found"

import triton
import triton.language as tl

SIZES = [
    *("x_sb", "x_sn", "x_sh", "y_sb", "y_sn", "y_sh", "heads", "n0", "n1", "n2", "m0", "m1", "m2"),
    *("parts", "tiles"),
]


@triton.jit
def _pick(which, first, second, TWO: tl.constexpr):
    if TWO:
        return tl.where(which == 0, first, second)
    else:
        return first


@triton.jit
def _split(n, w1, w2):
    """Cells (n // (w1 * w2), n // w2 % w1, n % w2) of n < 2**20, by multiplications."""
    i0 = ((n.to(tl.float32) + 0.5) * (1.0 / (w1 * w2))).to(tl.int32)
    rest = n - i0 * (w1 * w2)
    i1 = ((rest.to(tl.float32) + 0.5) * (1.0 / w2)).to(tl.int32)
    return i0, i1, rest - i1 * w2


@triton.jit
def _below(i, n):
    return (i >= 0) & (i < n)


@triton.jit
def _convolve(
    x,
    weight,
    i,
    mask,
    c,
    stride,
    n0,
    n1,
    n2,
    m1,
    m2,
    D: tl.constexpr,
    CLS: tl.constexpr,
    K0: tl.constexpr,
    K1: tl.constexpr,
    K2: tl.constexpr,
    S0: tl.constexpr,
    S1: tl.constexpr,
    S2: tl.constexpr,
):
    """(rows, channels c) of the pooled tokens i, in float32; the class token passes by."""
    channels = (c < D)[None, :]
    i0, i1, i2 = _split(i - CLS, m1, m2)
    i0, i1, i2 = i0 * S0 - K0 // 2, i1 * S1 - K1 // 2, i2 * S2 - K2 // 2
    grid = mask & (i >= CLS)
    total = tl.zeros((i.shape[0], c.shape[0]), tl.float32)
    if CLS:
        first = (mask & (i == 0))[:, None] & channels
        total += tl.load(x + i[:, None] * stride + c[None, :], mask=first, other=0.0).to(tl.float32)
    # Each tap lies as far from the first one for all outputs.
    x += ((i0 * n1 + i1) * n2 + i2 + CLS)[:, None] * stride + c[None, :]
    # A loop around unrolled taps of the last axis: all of them unrolled want too many registers.
    for line in range(K0 * K1):
        l0, l1 = line // K1, line % K1
        within = grid & _below(i0 + l0, n0) & _below(i1 + l1, n1)
        for l2 in tl.static_range(K2):
            inside = (within & _below(i2 + l2, n2))[:, None] & channels
            part = tl.load(x + ((l0 * n1 + l1) * n2 + l2) * stride, mask=inside, other=0.0)
            w = tl.load(weight + (line * K2 + l2) * D + c, mask=c < D, other=0.0)
            total += part.to(tl.float32) * w.to(tl.float32)[None, :]
    return total


@triton.jit
def _moments(z, c, eps, D: tl.constexpr):
    """z less its mean over the channels, and one over its standard deviation."""
    centred = tl.where((c < D)[None, :], z - (tl.sum(z, 1) / D)[:, None], 0.0)
    return centred, 1 / tl.sqrt(tl.sum(centred * centred, 1) / D + eps)


# fmt: off
@triton.jit(do_not_specialize=SIZES)
def forward(
    xa, xb, weight, ga, gb, ba, bb, ya, yb,
    x_sb, x_sn, x_sh, heads, n0, n1, n2, m0, m1, m2, eps_a, eps_b,
    D: tl.constexpr, WIDTH: tl.constexpr, TWO: tl.constexpr, NORM: tl.constexpr,
    CLS: tl.constexpr, K0: tl.constexpr, K1: tl.constexpr, K2: tl.constexpr,
    S0: tl.constexpr, S1: tl.constexpr, S2: tl.constexpr,
    UNIT: tl.constexpr, ROWS: tl.constexpr,
):
    """Convolves and norms some tokens of a head: (tokens / ROWS, B * heads * tensors) programs."""
# fmt: on
    which = tl.program_id(1) % (1 + TWO)
    bh = tl.program_id(1) // (1 + TWO)
    b, h = (bh // heads).to(tl.int64), bh % heads
    x = _pick(which, xa, xb, TWO) + b * x_sb * UNIT + h * x_sh * UNIT
    count = m0 * m1 * m2 + CLS
    y = _pick(which, ya, yb, TWO) + b * count * heads * D + h * D
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, WIDTH)
    z = _convolve(x, weight + which * (K0 * K1 * K2 * D), i, i < count, c, x_sn * UNIT,
                  n0, n1, n2, m1, m2, D, CLS, K0, K1, K2, S0, S1, S2)
    if NORM:
        centred, rstd = _moments(z, c, _pick(which, eps_a, eps_b, TWO), D)
        g = tl.load(_pick(which, ga, gb, TWO) + c, mask=c < D, other=0.0).to(tl.float32)
        shift = tl.load(_pick(which, ba, bb, TWO) + c, mask=c < D, other=0.0).to(tl.float32)
        z = centred * rstd[:, None] * g[None, :] + shift[None, :]
    mask = (i < count)[:, None] & (c < D)[None, :]
    tl.store(y + i[:, None] * (heads * D) + c[None, :], z.to(y.dtype.element_ty), mask=mask)


# fmt: off
@triton.jit(do_not_specialize=SIZES)
def backward_norm(
    xa, xb, weight, ga, gb, dya, dyb, dza, dzb, sums,
    x_sb, x_sn, x_sh, y_sb, y_sn, y_sh, heads, n0, n1, n2, m0, m1, m2, parts, tiles, eps_a, eps_b,
    D: tl.constexpr, WIDTH: tl.constexpr, TWO: tl.constexpr,
    CLS: tl.constexpr, K0: tl.constexpr, K1: tl.constexpr, K2: tl.constexpr,
    S0: tl.constexpr, S1: tl.constexpr, S2: tl.constexpr,
    UNIT: tl.constexpr, Y_UNIT: tl.constexpr, ROWS: tl.constexpr,
):
    """Gradients of what is normed, recomputed here: (parts, B * heads * tensors) programs.

    A program takes ``tiles`` times ROWS tokens, and leaves the sums over them of the gradients of
    the norm's weight and bias in the last two rows of its (taps + 2, D) sums.
    """
# fmt: on
    which = tl.program_id(1) % (1 + TWO)
    bh = tl.program_id(1) // (1 + TWO)
    b, h = (bh // heads).to(tl.int64), bh % heads
    x = _pick(which, xa, xb, TWO) + b * x_sb * UNIT + h * x_sh * UNIT
    count = m0 * m1 * m2 + CLS
    dy = _pick(which, dya, dyb, TWO) + b * y_sb * Y_UNIT + h * y_sh * Y_UNIT
    dz = _pick(which, dza, dzb, TWO) + b * count * heads * D + h * D
    c = tl.arange(0, WIDTH)
    g = tl.load(_pick(which, ga, gb, TWO) + c, mask=c < D, other=0.0).to(tl.float32)
    dg = tl.zeros((ROWS, WIDTH), tl.float32)
    db = tl.zeros((ROWS, WIDTH), tl.float32)
    for tile in range(tiles):
        i = (tl.program_id(0) * tiles + tile) * ROWS + tl.arange(0, ROWS)
        z = _convolve(x, weight + which * (K0 * K1 * K2 * D), i, i < count, c, x_sn * UNIT,
                      n0, n1, n2, m1, m2, D, CLS, K0, K1, K2, S0, S1, S2)
        centred, rstd = _moments(z, c, _pick(which, eps_a, eps_b, TWO), D)
        normed = centred * rstd[:, None]
        mask = (i < count)[:, None] & (c < D)[None, :]
        grad = tl.load(dy + i[:, None] * (y_sn * Y_UNIT) + c[None, :], mask=mask, other=0.0)
        grad = grad.to(tl.float32)
        dg += grad * normed
        db += grad
        grad *= g[None, :]
        mean, along = tl.sum(grad, 1) / D, tl.sum(grad * normed, 1) / D
        grad = (grad - mean[:, None] - normed * along[:, None]) * rstd[:, None]
        grad = grad.to(dz.dtype.element_ty)
        tl.store(dz + i[:, None] * (heads * D) + c[None, :], grad, mask=mask)
    TAPS: tl.constexpr = K0 * K1 * K2
    line = (which * (tl.num_programs(1) // (1 + TWO)) + bh) * parts + tl.program_id(0)
    sums += line.to(tl.int64) * ((TAPS + 2) * D) + TAPS * D
    tl.store(sums + c, tl.sum(dg, 0), mask=c < D)
    tl.store(sums + D + c, tl.sum(db, 0), mask=c < D)


# fmt: off
@triton.jit(do_not_specialize=SIZES)
def backward_input(
    weight, dza, dzb, dxa, dxb, y_sb, y_sn, y_sh, heads, n0, n1, n2, m0, m1, m2,
    D: tl.constexpr, WIDTH: tl.constexpr, TWO: tl.constexpr,
    CLS: tl.constexpr, K0: tl.constexpr, K1: tl.constexpr, K2: tl.constexpr,
    S0: tl.constexpr, S1: tl.constexpr, S2: tl.constexpr,
    UNIT: tl.constexpr, ROWS: tl.constexpr,
):
    """Gathers each input token's gradient: (tokens / ROWS, B * heads * tensors) programs."""
# fmt: on
    which = tl.program_id(1) % (1 + TWO)
    bh = tl.program_id(1) // (1 + TWO)
    b, h = (bh // heads).to(tl.int64), bh % heads
    count = n0 * n1 * n2 + CLS
    dz = _pick(which, dza, dzb, TWO) + b * y_sb * UNIT + h * y_sh * UNIT
    dx = _pick(which, dxa, dxb, TWO) + b * count * heads * D + h * D
    weight += which * (K0 * K1 * K2 * D)
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, WIDTH)
    channels = (c < D)[None, :]
    j0, j1, j2 = _split(i - CLS, n1, n2)
    total = tl.zeros((ROWS, WIDTH), tl.float32)
    if CLS:
        first = ((i == 0) & (i < count))[:, None] & channels
        part = tl.load(dz + i[:, None] * (y_sn * UNIT) + c[None, :], mask=first, other=0.0)
        total += part.to(tl.float32)
    grid = (i >= CLS) & (i < count)
    for line in range(K0 * K1):
        # Outputs i with i * S - K // 2 + tap == j.
        i0, i1 = j0 + K0 // 2 - line // K1, j1 + K1 // 2 - line % K1
        within = grid & (i0 % S0 == 0) & (i1 % S1 == 0)
        within = within & _below(i0, m0 * S0) & _below(i1, m1 * S1)
        row = (i0 // S0 * m1 + i1 // S1) * m2 + CLS
        for last in tl.static_range(K2):
            i2 = j2 + K2 // 2 - last
            inside = (within & (i2 % S2 == 0) & _below(i2, m2 * S2))[:, None] & channels
            at = dz + (row + i2 // S2)[:, None] * (y_sn * UNIT) + c[None, :]
            part = tl.load(at, mask=inside, other=0.0)
            w = tl.load(weight + (line * K2 + last) * D + c, mask=c < D, other=0.0)
            total += part.to(tl.float32) * w.to(tl.float32)[None, :]
    mask = (i < count)[:, None] & channels
    tl.store(dx + i[:, None] * (heads * D) + c[None, :], total.to(dx.dtype.element_ty), mask=mask)


@triton.jit
def _tap(x, tap, mask, channels, stride, i0, i1, i2, n0, n1, n2,
         K1: tl.constexpr, K2: tl.constexpr):
    """Inputs (rows, channels) that a tap ties to the outputs whose first ones lie at x."""
    l0, l1, l2 = tap // (K1 * K2), tap // K2 % K1, tap % K2
    mask = mask & _below(i0 + l0, n0) & _below(i1 + l1, n1) & _below(i2 + l2, n2)
    at = x + ((l0 * n1 + l1) * n2 + l2) * stride
    return tl.load(at, mask=mask[:, None] & channels, other=0.0).to(tl.float32)


# fmt: off
@triton.jit(do_not_specialize=SIZES)
def backward_weight(
    xa, xb, dza, dzb, sums,
    x_sb, x_sn, x_sh, y_sb, y_sn, y_sh, heads, n0, n1, n2, m0, m1, m2, parts, tiles,
    D: tl.constexpr, WIDTH: tl.constexpr, TWO: tl.constexpr,
    CLS: tl.constexpr, K0: tl.constexpr, K1: tl.constexpr, K2: tl.constexpr,
    S0: tl.constexpr, S1: tl.constexpr, S2: tl.constexpr,
    UNIT: tl.constexpr, Y_UNIT: tl.constexpr, ROWS: tl.constexpr,
):
    """Sums over some tokens of the weight's gradient; programs as in ``backward_norm``.

    Three taps at a time, over tokens that stay in the cache: sums across threads end each three.
    """
# fmt: on
    which = tl.program_id(1) % (1 + TWO)
    bh = tl.program_id(1) // (1 + TWO)
    b, h = (bh // heads).to(tl.int64), bh % heads
    x = _pick(which, xa, xb, TWO) + b * x_sb * UNIT + h * x_sh * UNIT
    dz = _pick(which, dza, dzb, TWO) + b * y_sb * Y_UNIT + h * y_sh * Y_UNIT
    count = m0 * m1 * m2 + CLS
    c = tl.arange(0, WIDTH)
    channels = (c < D)[None, :]
    TAPS: tl.constexpr = K0 * K1 * K2
    line = (which * (tl.num_programs(1) // (1 + TWO)) + bh) * parts + tl.program_id(0)
    sums += line.to(tl.int64) * ((TAPS + 2) * D)
    for tap in range(0, TAPS, 3):
        sum_a = tl.zeros((ROWS, WIDTH), tl.float32)
        sum_b = tl.zeros((ROWS, WIDTH), tl.float32)
        sum_c = tl.zeros((ROWS, WIDTH), tl.float32)
        for tile in range(tiles):
            i = (tl.program_id(0) * tiles + tile) * ROWS + tl.arange(0, ROWS)
            mask = (i >= CLS) & (i < count)
            at = dz + i[:, None] * (y_sn * Y_UNIT) + c[None, :]
            grad = tl.load(at, mask=mask[:, None] & channels, other=0.0).to(tl.float32)
            i0, i1, i2 = _split(i - CLS, m1, m2)
            i0, i1, i2 = i0 * S0 - K0 // 2, i1 * S1 - K1 // 2, i2 * S2 - K2 // 2
            step = x_sn * UNIT
            at = x + ((i0 * n1 + i1) * n2 + i2 + CLS)[:, None] * step + c[None, :]
            sum_a += grad * _tap(at, tap, mask, channels, step, i0, i1, i2, n0, n1, n2, K1, K2)
            sum_b += grad * _tap(at, tap + 1, mask, channels, step, i0, i1, i2, n0, n1, n2, K1, K2)
            sum_c += grad * _tap(at, tap + 2, mask, channels, step, i0, i1, i2, n0, n1, n2, K1, K2)
        tl.store(sums + tap * D + c, tl.sum(sum_a, 0), mask=c < D)
        tl.store(sums + (tap + 1) * D + c, tl.sum(sum_b, 0), mask=(c < D) & (tap + 1 < TAPS))
        tl.store(sums + (tap + 2) * D + c, tl.sum(sum_c, 0), mask=(c < D) & (tap + 2 < TAPS))


@triton.jit(do_not_specialize=["lines"])
def add_sums(sums, out, lines, SIZE: tl.constexpr, BLOCK: tl.constexpr, LINES: tl.constexpr):
    """(tensors, lines, SIZE) -> (tensors, SIZE), in a fixed order: (SIZE / BLOCK, tensors)."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    sums += tl.program_id(1).to(tl.int64) * lines * SIZE
    total = tl.zeros((LINES, BLOCK), tl.float32)
    for start in range(0, lines, LINES):
        n = start + tl.arange(0, LINES)
        mask = (n < lines)[:, None] & (i < SIZE)[None, :]
        total += tl.load(sums + n[:, None] * SIZE + i[None, :], mask=mask, other=0.0)
    tl.store(out + tl.program_id(1) * SIZE + i, tl.sum(total, 0), mask=i < SIZE)
