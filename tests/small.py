"""Small models of every kind, that what happens around the arithmetic is tried on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mvitv2_core import BlockSpec, MViTClassifier, MViTConfig
from mvitv2_core.config import lay_out
from mvitv2_core.rows import stage_rows
from tests.compare import randomize

# Nominal input size and what differs from the variant's defaults.
KINDS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "image": ((32, 40), {}),
    "image, width in the MLP": ((32, 40), {"dim_mul_in_att": False}),
    "clip with class token": ((4, 32, 40), {"cls_token": True, "abs_pos": "separate"}),
    "clip without class token": ((4, 32, 40), {"cls_token": False, "mean_pooling": True}),
}


def stage_blocks(
    depths: tuple[int, ...],
    embed_dim: int,
    num_heads: int,
    thw: tuple[int, ...],
    stride_kv: tuple[int, ...],
    drop_path_rate: float = 0.0,
    dim_mul_in_att: bool = True,
) -> tuple[BlockSpec, ...]:
    """Blocks of the paper's stages, of any width."""
    rows = stage_rows(depths, embed_dim, num_heads, stride_kv, dim_mul_in_att=dim_mul_in_att)
    return lay_out(rows, embed_dim, thw, drop_path_rate, dim_mul_in_att)


def small_model(
    kind: str, drop_path_rate: float = 0.0, act_checkpoint: bool = False, **overrides: Any
) -> nn.Module:
    """A classifier of two stages and three blocks, every parameter away from its first value."""
    size, options = KINDS[kind]
    options = {**options, **overrides}
    dim_mul_in_att = options.pop("dim_mul_in_att", True)
    config = MViTConfig.variant("T", size, num_classes=5, **options)
    grid = tuple(n // s for n, s in zip(size, config.patch_stride, strict=True))
    stride_kv = (1, 4, 4)[-len(size) :]
    blocks = stage_blocks((1, 2), 16, 2, grid, stride_kv, drop_path_rate, dim_mul_in_att)
    model = MViTClassifier(replace(config, blocks=blocks), act_checkpoint=act_checkpoint)
    return randomize(model)


def small_input(kind: str, batch: int = 2, seed: int = 0, **like: Any) -> Tensor:
    """Standard normal images or clips of the kind's nominal size."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, *KINDS[kind][0], generator=generator, dtype=torch.float64).to(
        **{"dtype": torch.float32, **like}
    )
