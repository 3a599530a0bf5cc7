"""Drawn images, windows and backbones of the detectron2 path against plain arithmetic."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import strategies as st

pytest.importorskip("detectron2", reason="install detectron2 to run: make setup")

from detectron2.modeling import FPN
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import Tensor, nn

from mvitv2_d2 import MViT
from mvitv2_d2.stages import SCALES
from tests import plain
from tests.compare import randomize
from tests.draws import Case, batches, cases, drawn, examples, hold, image_sizes, normal

CLAIM = "inputs drawn, detectron2"


@st.composite
def backbones(draw: st.DrawFn) -> MViT:
    """Two to five blocks in one to four stages, windows of 8 to 64 tokens or none."""
    depth = draw(st.integers(2, 5))
    inner = st.lists(st.integers(0, depth - 2), max_size=3, unique=True)
    ends = (*sorted(draw(inner)), depth - 1)
    heads, kv_stride = draw(st.integers(1, 2)), draw(st.sampled_from((1, 2, 4)))
    names = st.lists(st.sampled_from(SCALES[: len(ends)]), min_size=1, unique=True)
    pretrained = draw(st.integers(4, 40))
    return MViT(
        img_size=draw(st.tuples(st.integers(4, 40), st.integers(4, 40))),
        embed_dim=4 * heads,
        depth=depth,
        num_heads=heads,
        last_block_indexes=ends,
        qkv_pool_kernel=draw(st.sampled_from(((1, 1), (3, 3), (5, 3)))),
        adaptive_kv_stride=kv_stride,
        # Multiples of the kv strides at every depth.
        adaptive_window_size=draw(st.sampled_from((0, 16, 32, 64))),
        residual_pooling=draw(st.booleans()),
        mlp_ratio=draw(st.sampled_from((1.0, 4.0))),
        qkv_bias=draw(st.booleans()),
        use_abs_pos=draw(st.booleans()),
        use_rel_pos=draw(st.booleans()),
        use_act_checkpoint=draw(st.booleans()),
        pretrain_img_size=pretrained,
        pretrain_use_cls_token=draw(st.booleans()),
        out_features=draw(names),
        dim_mul_in_att=draw(st.booleans()),
    )


@examples(40, 150, 7500)
def test_backbone(count: int, tally: Callable[..., None]) -> None:
    """Feature maps of any image: sizes rounded up, none for a batch of none."""

    @drawn(count, cases, backbones(), batches, image_sizes())
    def check(case: Case, model: MViT, batch: int, size: tuple[int, int]) -> None:
        randomize(model, case.seed)
        strided = any(max(spec.stride_q) > 1 for spec in model.config.blocks)
        outputs = hold(
            case,
            model,
            [normal((batch, 3, *size), case.seed)],
            lambda model, x: list(model(x).values()),
            lambda model, x: list(plain.features(model, x).values()),
            roundings=16 * len(model.config.blocks),
            smooth=not strided,
        )
        for spec, feature in zip(model.output_shape().values(), outputs, strict=True):
            rounded = [-(-n // spec.stride) for n in size]
            assert feature.shape == (batch, spec.channels, *rounded)
        tally(CLAIM)

    check()


def pyramid(model: nn.Module, bottom_up: dict[str, Tensor], image: Tensor) -> list[Tensor]:
    """detectron2's own FPN over feature maps that are given."""

    class Given(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return bottom_up

    held, model.bottom_up = model.bottom_up, Given()
    try:
        return list(model(image).values())
    finally:
        model.bottom_up = held


@examples(20, 50, 2500)
def test_fpn(count: int, tally: Callable[..., None]) -> None:
    """Under detectron2's FPN: sizes that no level divides come padded, as detectron2 pads them."""

    @drawn(count, cases, batches, image_sizes(), st.sampled_from((0, 16)))
    def check(case: Case, batch: int, size: tuple[int, int], window: int) -> None:
        backbone = MViT(
            embed_dim=4, depth=4, last_block_indexes=(0, 1, 2, 3), adaptive_window_size=window
        )
        model = randomize(FPN(backbone, list(SCALES), 4, top_block=LastLevelMaxPool()), case.seed)
        # ImageList.from_tensors pads to the size_divisibility of the pyramid.
        step = model.size_divisibility
        padded = [-(-n // step) * step for n in size]
        image = normal((batch, 3, *padded), case.seed)
        image[:, :, size[0] :] = image[:, :, :, size[1] :] = 0
        outputs = hold(
            case,
            model,
            [image],
            lambda model, x: list(model(x).values()),
            lambda model, x: pyramid(model, plain.features(model.bottom_up, x), x),
            roundings=64,
            smooth=False,
        )
        assert [len(level) for level in outputs] == [batch] * 5
        tally(CLAIM)

    check()
