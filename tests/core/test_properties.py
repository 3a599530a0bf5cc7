"""Drawn shapes, layouts, dtypes and paths of every part of the core against plain arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isqrt, prod

import pytest
import torch
from hypothesis import strategies as st
from torch import nn

from mvitv2_core import BlockSpec, MViTClassifier, MViTConfig, ops
from mvitv2_core.block import Mlp, MultiScaleBlock
from mvitv2_core.model import LAYER_NORM
from mvitv2_core.ops import HeadPool
from tests import plain
from tests.compare import randomize
from tests.draws import (
    Case,
    batches,
    cases,
    drawn,
    examples,
    hold,
    input_sizes,
    normal,
)
from tests.forms import attend_plain

CLAIM = "inputs drawn, core"
Tally = Callable[..., None]


class Tables(nn.Module):
    """Position tables of some axes, as parameters."""

    def __init__(self, rows: Sequence[int | None], head_dim: int, seed: int) -> None:
        super().__init__()
        self.axes = len(rows)
        for axis, count in enumerate(rows):
            if count is not None:
                table = nn.Parameter(normal((count, head_dim), seed + axis))
                self.register_parameter(f"table{axis}", table)

    def tables(self) -> list[nn.Parameter | None]:
        return [getattr(self, f"table{axis}", None) for axis in range(self.axes)]


def grids(rank: int) -> st.SearchStrategy[tuple[int, ...]]:
    return st.tuples(*[st.integers(1, (40, 7, 4)[rank - 1])] * rank)


@examples(200, 650, 32500)
def test_attend(count: int, tally: Tally) -> None:
    """Folded, chunked and fused attention, for any grids of queries and keys."""

    @drawn(count, st.data(), cases, batches, st.integers(1, 3), st.booleans())
    def check(data: st.DataObject, case: Case, batch: int, heads: int, cls_token: bool) -> None:
        rank = data.draw(st.integers(1, 3), "rank")
        q_thw, k_thw = data.draw(grids(rank), "q_thw"), data.draw(grids(rank), "k_thw")
        head_dim = data.draw(st.integers(1, 12), "head_dim")
        stored = st.one_of(st.none(), st.integers(1, 20))  # any length: tables are resampled
        rows = data.draw(st.lists(stored, min_size=rank, max_size=rank), "rows")
        sizes = [prod(grid) + cls_token for grid in (q_thw, k_thw, k_thw)]
        qkv = [
            0.5 * normal((batch, size, heads, head_dim), case.seed + 10 + i)
            for i, size in enumerate(sizes)
        ]
        rest = (q_thw, k_thw, cls_token)
        # A table of one row adds the same to each key's logit: its gradient is zero, a sum over all
        # pairs that cancels, of which rounding is left, which grows with the root of their number.
        pairs = batch * heads * sizes[0] * sizes[1]
        (out,) = hold(
            case,
            Tables(rows, head_dim, case.seed),
            qkv,
            lambda model, q, k, v: [ops.attention(q, k, v, model.tables(), *rest)],
            lambda model, q, k, v: [plain.attention(q, k, v, model.tables(), *rest)],
            roundings=max(8, isqrt(pairs)) if 1 in rows else 8,
        )
        assert out.shape == (batch, sizes[0], heads, head_dim)
        tally(CLAIM)

    check()


@examples(25, 50, 2500)
def test_plain_attend(count: int, tally: Tally) -> None:
    """``plain.attention``, which tracers see, is the plain arithmetic too."""

    @drawn(count, cases, batches, grids(2), grids(2), st.booleans())
    def check(case: Case, batch: int, q_thw: tuple, k_thw: tuple, cls_token: bool) -> None:
        sizes = [prod(grid) + cls_token for grid in (q_thw, k_thw, k_thw)]
        rest = (q_thw, k_thw, cls_token)
        hold(
            case,
            Tables((7, None), 6, case.seed),
            [normal((batch, size, 2, 6), case.seed + i) for i, size in enumerate(sizes)],
            lambda model, q, k, v: [attend_plain(q, k, v, model.tables(), *rest)],
            lambda model, q, k, v: [plain.attention(q, k, v, model.tables(), *rest)],
        )
        tally(CLAIM)

    check()


@examples(100, 300, 15000)
def test_pool(count: int, tally: Tally) -> None:
    """Any odd or even kernel and stride, on lines, images and clips from one cell up."""

    @drawn(count, st.data(), cases, batches, st.integers(1, 3), st.integers(1, 5))
    def check(data: st.DataObject, case: Case, batch: int, heads: int, head_dim: int) -> None:
        rank = data.draw(st.integers(1, 3), "rank")
        size = (st.integers(1, 40), st.integers(1, 12), st.integers(1, 8))[rank - 1]
        grid = data.draw(st.tuples(*[size] * rank), "grid")
        kernel = data.draw(st.tuples(*[st.integers(1, 5)] * rank), "kernel")
        stride = data.draw(st.tuples(*[st.integers(1, 8)] * rank), "stride")
        pool = HeadPool(head_dim, kernel, stride)
        pool.weight.data = normal(pool.weight.shape, case.seed + 1)
        hold(
            case,
            pool,
            [normal((batch, *grid, heads * head_dim), case.seed)],
            lambda model, x: [model(x)],
            lambda model, x: [plain.pool(x, model.weight, stride)],
        )
        tally(CLAIM)

    check()


@examples(50, 150, 7500)
def test_mlp(count: int, tally: Tally) -> None:
    width = st.integers(1, 12)

    @drawn(count, cases, st.tuples(batches, st.integers(1, 150)), width, width, width)
    def check(case: Case, shape: tuple[int, int], dim: int, hidden: int, dim_out: int) -> None:
        model = randomize(Mlp(dim, hidden, dim_out, nn.GELU, 0.0).double(), case.seed)
        x = normal((*shape, dim), case.seed + 1)
        hold(case, model, [x], lambda model, x: [model(x)], lambda model, x: [plain.mlp(model, x)])
        tally(CLAIM)

    check()


@st.composite
def specs(draw: st.DrawFn, dim: int, heads: int, thw: tuple[int, ...]) -> BlockSpec:
    """A block of ``heads`` or twice as many heads; its width grows in attention, the MLP or not."""
    rank = len(thw)
    grow, heads = draw(st.sampled_from(("none", "att", "mlp"))), heads * draw(st.integers(1, 2))
    dim_out = dim * 2 if grow != "none" else dim
    odd = st.tuples(*[st.sampled_from((1, 3, 5))] * rank)
    # Kernels of kv may be even, as PySlowFast's stride + 1; None where nothing is strided.
    any_kernel = st.tuples(*[st.integers(1, 5)] * rank)
    stride_q = draw(st.tuples(*[st.sampled_from((1, 1, 2, 4))] * rank))
    stride_kv = draw(st.tuples(*[st.integers(1, 4)] * rank))
    return BlockSpec(
        dim=dim,
        dim_att=dim_out if grow == "att" else dim,
        dim_out=dim_out,
        num_heads=heads,
        thw=thw,
        stride_q=stride_q,
        stride_kv=stride_kv,
        kernel_q=draw(odd if max(stride_q) > 1 else st.one_of(st.none(), odd)),
        kernel_kv=draw(any_kernel if max(stride_kv) > 1 else st.one_of(st.none(), any_kernel)),
    )


@st.composite
def configs(draw: st.DrawFn) -> MViTConfig:
    """Two to four blocks on one, two or three axes, with every switch of the config either way."""
    rank = draw(st.integers(1, 3))
    thw = draw(st.tuples(*[st.integers(1, 8)] * rank))
    first = thw
    blocks: list[BlockSpec] = []
    dim, heads = 4 * draw(st.integers(1, 2)), 1
    for _ in range(draw(st.integers(2, 4))):
        blocks.append(draw(specs(dim, heads, thw)))
        dim, heads, thw = blocks[-1].dim_out, blocks[-1].num_heads, blocks[-1].thw_out
        heads = heads if dim % (2 * heads) == 0 else heads // 2
    stills = rank > 1 and draw(st.booleans()) and draw(st.booleans())
    patch_rank = rank - 1 if stills else rank
    cls_token = draw(st.booleans())
    abs_pos = draw(st.sampled_from(("none", "joint") + (("separate",) if rank == 3 else ())))
    kept_row = draw(st.sampled_from((None, True))) if abs_pos == "joint" or cls_token else None
    return MViTConfig(
        blocks=tuple(blocks),
        input_size=tuple(4 * n for n in first[-patch_rank:]),
        patch_kernel=(3, 7, 7)[-patch_rank:] if patch_rank == 3 else (7,) * patch_rank,
        patch_stride=(2, 4, 4)[-patch_rank:] if patch_rank == 3 else (4,) * patch_rank,
        patch_padding=(1, 3, 3)[-patch_rank:] if patch_rank == 3 else (3,) * patch_rank,
        mlp_ratio=draw(st.sampled_from((0.5, 2.0, 4.0))),
        qkv_bias=draw(st.booleans()),
        cls_token=cls_token,
        abs_pos=abs_pos,
        abs_pos_cls_row=kept_row,
        rel_pos=draw(st.tuples(*[st.booleans()] * rank)),
        residual_pooling=draw(st.booleans()),
        num_classes=draw(st.integers(1, 5)),
        mean_pooling=draw(st.booleans()),
    )


@examples(50, 150, 7500)
def test_block(count: int, tally: Tally) -> None:
    @drawn(count, st.data(), cases, batches, configs())
    def check(data: st.DataObject, case: Case, batch: int, config: MViTConfig) -> None:
        spec = config.blocks[0]
        thw = data.draw(grids(config.rank), "thw")
        model = randomize(MultiScaleBlock(spec, config, LAYER_NORM, nn.GELU).double(), case.seed)
        hold(
            case,
            model,
            [normal((batch, prod(thw) + config.cls_token, spec.dim), case.seed)],
            lambda model, x: [model(x, thw)[0]],
            lambda model, x: [plain.block(model, spec, config, x, thw)[0]],
            roundings=16,
            smooth=max(spec.stride_q) == 1,
        )
        tally(CLAIM)

    check()


@examples(80, 250, 12500)
def test_model(count: int, tally: Tally) -> None:
    """Stage outputs and logits of whole models, with and without recomputed blocks."""

    @drawn(count, st.data(), cases, batches, configs(), st.booleans())
    def check(
        data: st.DataObject, case: Case, batch: int, config: MViTConfig, act_checkpoint: bool
    ) -> None:
        size = data.draw(input_sizes(len(config.patch_kernel)), "size")
        model = randomize(MViTClassifier(config, act_checkpoint=act_checkpoint), case.seed)
        strided = any(max(spec.stride_q) > 1 for spec in config.blocks)
        (out,) = hold(
            case,
            model,
            [normal((batch, config.in_chans, *size), case.seed)],
            lambda model, x: [model(x)],
            lambda model, x: [plain.classify(model, x)],
            roundings=16 * len(config.blocks),
            smooth=not strided,
        )
        assert out.shape == (batch, config.num_classes)
        tally(CLAIM)

    check()


@examples(20, 50, 2500)
def test_too_small(count: int, tally: Tally) -> None:
    """Without padding, inputs below the patch kernel are refused by name; from it up they run."""
    spec = BlockSpec(4, 4, 4, 1, (4, 4), (1, 1), (1, 1), (3, 3), (3, 3))
    shape = r"input must be \(B, 3, H, W\)"
    size = st.integers(0, 12)

    @drawn(count, batches, st.tuples(size, size), st.integers(0, 3), st.integers(1, 7))
    def check(batch: int, size: tuple[int, int], padding: int, kernel: int) -> None:
        config = MViTConfig((spec,), (16, 16), (kernel,) * 2, (4, 4), (padding,) * 2, num_classes=2)
        model, x = MViTClassifier(config), torch.zeros(batch, 3, *size)
        if min(size) >= max(kernel - 2 * padding, 1):
            assert model(x).shape == (batch, 2)
        else:
            with pytest.raises(ValueError, match=f"{shape} of at least"):
                model(x)
        with pytest.raises(ValueError, match=shape):
            model(x[:, :2])
        tally(CLAIM)

    check()


@pytest.mark.parametrize("act_checkpoint", [False, True])
def test_gradients_by_differences(act_checkpoint: bool) -> None:
    """Not only equal to the plain arithmetic's: the gradients are those of the function."""
    spec = BlockSpec(4, 8, 8, 2, (4, 4), (2, 2), (2, 1), (3, 3), (3, 3))
    config = MViTConfig((spec,), (16, 16), (7, 7), (4, 4), (3, 3), in_chans=1, num_classes=2)
    model = MViTClassifier(config, act_checkpoint=act_checkpoint)
    model = randomize(model.double())
    x = normal((1, 1, 9, 14), 0).requires_grad_()
    assert torch.autograd.gradcheck(model, (x,))
