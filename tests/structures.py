"""Published structures at a width that a test can afford."""

from __future__ import annotations

from mvitv2_core import MViTConfig
from mvitv2_core.rows import VARIANTS
from tests.small import stage_blocks

SIDE = 64


def small(
    variant: str, frames: int = 0, side: int = SIDE, in_att: bool = True, **options: object
) -> MViTConfig:
    """A published structure at width 8 per head, for images or clips, with the same kv strides."""
    row, rank = VARIANTS[variant], 3 if frames else 2
    stride = (2, 4, 4)[-rank:]
    size = (frames, side, side)[-rank:]
    return MViTConfig(
        blocks=stage_blocks(
            row.depths,
            8 * row.num_heads,
            row.num_heads,
            tuple(n // s for n, s in zip(size, stride, strict=True)),
            (1, 4, 4)[-rank:],
            dim_mul_in_att=in_att,
        ),
        input_size=size,
        patch_kernel=(3, 7, 7)[-rank:],
        patch_stride=stride,
        patch_padding=(1, 3, 3)[-rank:],
        rel_pos=(True,) * rank,
        **{"num_classes": 5, **options},
    )
