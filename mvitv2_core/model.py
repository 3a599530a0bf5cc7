"""The trunk that yields stage outputs, and the classifier on top of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from . import ops
from .attention import NormLayer
from .block import ActLayer, MultiScaleBlock
from .checks import check_flag, check_maker, refuse
from .config import MViTConfig
from .features import Features
from .plain import join_cls_token, split_cls_token
from .sizes import equal_sizes

Tokens = tuple[Tensor, tuple[int, ...]]  # (B, N, dim) and their grid
LAYER_NORM = partial(nn.LayerNorm, eps=1e-6)


class PatchEmbed(nn.Module):
    """Overlapping patches to tokens by one convolution."""

    def __init__(self, config: MViTConfig) -> None:
        super().__init__()
        self.rank, self.patch_rank = config.rank, len(config.patch_kernel)
        kernel, stride, padding = config.patch_kernel, config.patch_stride, config.patch_padding
        # Kernels that reach no pixel but padding would make tokens of nothing.
        self.least = tuple(max(k - 2 * p, 1) for k, p in zip(kernel, padding, strict=True))
        convolution = ops.CONVOLUTIONS[self.patch_rank - 1]
        self.proj = convolution(config.in_chans, config.blocks[0].dim, kernel, stride, padding)

    def forward(self, x: Tensor) -> Tokens:
        """(B, C, *spatial) -> (B, N, embed_dim) tokens and their grid."""
        fits = x.ndim == self.patch_rank + 2 and x.shape[1] == self.proj.in_channels
        if not fits or any(n < least for n, least in zip(x.shape[2:], self.least, strict=True)):
            shape = f"(B, {self.proj.in_channels}, {', '.join('THW'[3 - self.patch_rank :])})"
            refuse("input", f"{shape} of at least {self.least} pixels", tuple(x.shape))
        x = self.proj(x)
        thw = (1,) * (self.rank - self.patch_rank) + tuple(x.shape[2:])
        # (B, embed_dim, *grid) -> (B, N, embed_dim)
        return x.flatten(2).transpose(1, 2), thw


class MViT(Features):
    """MViTv2 trunk: patch embedding, positions and blocks. It has no last norm and no head.

    Adapters subclass it, so that names in its state dict are the published ones.

    Args:
        config: shapes and arithmetic.
        norm_layer: makes a norm from its number of channels. Published image and video
            weights use LayerNorm with eps 1e-6, the default.
        act_layer: makes the MLP's activation.
        act_checkpoint: recompute each block in the backward pass instead of keeping its
            activations; results do not change.
        compile: compile each block (docs/gpu.md); names in the state dict do not change.

    Raises TypeError or ValueError for an argument that is not of its kind.
    """

    cls_token: nn.Parameter | None
    pos_embed: nn.Parameter | None
    pos_embed_spatial: nn.Parameter | None
    pos_embed_temporal: nn.Parameter
    pos_embed_class: nn.Parameter | None

    def __init__(
        self,
        config: MViTConfig,
        norm_layer: NormLayer = LAYER_NORM,
        act_layer: ActLayer = nn.GELU,
        act_checkpoint: bool = False,
        compile: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(config, MViTConfig):
            refuse("config", "an MViTConfig", config, TypeError)
        check_maker("norm_layer", norm_layer)
        check_maker("act_layer", act_layer)
        check_flag("act_checkpoint", act_checkpoint)
        check_flag("compile", compile)
        self.config, self.act_checkpoint = config, act_checkpoint
        self.abs_pos_thw = config.abs_pos_thw or config.blocks[0].thw
        self.patch_embed = PatchEmbed(config)
        self.pos_drop = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            MultiScaleBlock(spec, config, norm_layer, act_layer) for spec in config.blocks
        )
        if compile:
            ops.compile_blocks(self.blocks)
        cells, separate = prod(self.abs_pos_thw), config.abs_pos == "separate"
        for name, rows in (
            ("cls_token", config.cls_token),
            ("pos_embed", config.abs_pos == "joint" and config.has_cls_row + cells),
            ("pos_embed_spatial", separate and cells // self.abs_pos_thw[0]),
            ("pos_embed_temporal", separate and self.abs_pos_thw[0]),
            ("pos_embed_class", separate and config.has_cls_row),
        ):
            table = nn.Parameter(torch.zeros(1, int(rows), config.blocks[0].dim))
            nn.init.trunc_normal_(table, std=0.02)
            self.register_parameter(name, table if rows else None)

    def init_weights(self, module: nn.Module) -> None:
        """Initial values of one module, for ``apply``: the image and video repositories' own.

        Weights truncated normal with std 0.02, every bias 0.02 (PySlowFast's
        video_model_builder.py, facebookresearch/mvit's mvit_model.py).
        """
        if isinstance(module, (nn.Linear, ops.HeadPool, *ops.CONVOLUTIONS)):
            nn.init.trunc_normal_(module.weight, std=0.02)  # type: ignore[arg-type]
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.constant_(module.bias, 0.02)
        elif isinstance(module, nn.LayerNorm) and module.elementwise_affine:
            nn.init.constant_(module.weight, 1.0)
            if module.bias is not None:  # norm_layer may make norms without
                nn.init.constant_(module.bias, 0.02)

    def forward(self, x: Tensor) -> list[Tokens]:
        """(B, C, *spatial) -> tokens (B, N, dim) and grid of each stage's last block."""
        ends = self.config.stage_ends
        return [stage for index, stage in enumerate(self.walk(x)) if index in ends]

    def walk(self, x: Tensor) -> Iterator[Tokens]:
        """(B, C, *spatial) -> tokens (B, N, dim) and grid after each block, as they are made."""
        x, thw = self.embed(x)
        recompute = self.act_checkpoint and self.training and torch.is_grad_enabled()
        for block in self.blocks:
            x, thw = checkpoint(block, x, thw, use_reentrant=False) if recompute else block(x, thw)
            yield x, thw

    def embed(self, x: Tensor) -> Tokens:
        """(B, C, *spatial) -> (B, N, embed_dim) tokens with class token and absolute positions."""
        x, thw = self.patch_embed(x)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        positions = self.abs_pos(thw)
        if positions is not None:
            x = x + positions
        return self.pos_drop(x), thw

    def abs_pos(self, thw: Sequence[int]) -> Tensor | None:
        """Absolute positions for the live grid: (1, N, embed_dim), or None."""
        if self.pos_embed is not None:
            row, table = split_cls_token(self.pos_embed, self.config.has_cls_row)
        elif self.pos_embed_spatial is not None:
            # (1, HW, C) and (1, T, C) -> (1, T * HW, C)
            table = self.pos_embed_spatial[:, None] + self.pos_embed_temporal[:, :, None]
            row, table = self.pos_embed_class, table.flatten(1, 2)
            if row is not None:
                # A product has gradient memory of its own: at batch 1 autograd gives this parameter
                # and cls_token one, and what changes gradients in place would act on it twice.
                row = row * 1
        else:
            return None
        table = resample_abs_pos(table, self.abs_pos_thw, thw)
        # A detector keeps the pre-trained class token's row, and has no token to add it to.
        return join_cls_token(row if self.config.cls_token else None, table)


class Head(nn.Module):
    """Dropout and one linear layer; ``projection`` is its name in every published checkpoint."""

    def __init__(self, dim: int, num_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.projection = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim) -> (B, num_classes) logits."""
        return self.projection(self.dropout(x))


class MViTClassifier(MViT):
    """Trunk, norm and a linear head on the class token or on the mean of the tokens.

    Takes the arguments of ``MViT``; the config's ``num_classes``, ``head_dropout``,
    ``head_init_scale`` and ``mean_pooling`` shape the head. Returns logits, in training and in
    evaluation.
    """

    def __init__(
        self,
        config: MViTConfig,
        norm_layer: NormLayer = LAYER_NORM,
        act_layer: ActLayer = nn.GELU,
        act_checkpoint: bool = False,
        compile: bool = False,
    ) -> None:
        super().__init__(config, norm_layer, act_layer, act_checkpoint, compile)
        self.norm = norm_layer(config.blocks[-1].dim_out)
        self.head = self.build_head()
        self.apply(self.init_weights)
        with torch.no_grad():
            for parameter in self.head.projection.parameters():  # type: ignore[union-attr]
                parameter.mul_(config.head_init_scale)

    def build_head(self) -> nn.Module:
        """The module under ``head``; it must have a ``projection``."""
        config = self.config
        return Head(config.blocks[-1].dim_out, config.num_classes, config.head_dropout)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """(B, C, *spatial) -> (B, num_classes) logits."""
        x, _ = self.tokens(x)
        return self.head(self.pool_tokens(x))

    def tokens(self, x: Tensor) -> Tokens:
        """(B, C, *spatial) -> the last block's (B, N, dim) tokens, before the norm, and grid."""
        return super().forward(x)[-1]  # of the last stage

    def pool_tokens(self, x: Tensor) -> Tensor:
        """(B, N, dim) tokens -> (B, dim), normalised."""
        if self.config.mean_pooling:
            return self.norm(x[:, int(self.config.cls_token) :].mean(dim=1))
        if self.config.cls_token:
            return self.norm(x[:, 0])  # the norm is per token: the others need none
        return self.norm(x).mean(dim=1)


def resample_abs_pos(table: Tensor, stored: Sequence[int], thw: Sequence[int]) -> Tensor:
    """(1, prod(stored), C) absolute positions -> (1, prod(thw), C), for another grid.

    Bicubic over two axes (detectron2's ``get_abs_pos``), trilinear over three (PySlowFast's
    ``_get_pos_embed``).
    """
    if equal_sizes(stored, thw):
        return table
    grid = table.transpose(1, 2).unflatten(-1, tuple(stored))
    mode = {1: "linear", 2: "bicubic", 3: "trilinear"}[len(stored)]
    return F.interpolate(grid, size=tuple(thw), mode=mode).flatten(2).transpose(1, 2)
