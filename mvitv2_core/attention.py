"""Pooling attention on any number of axes (paper, section 4.1; PySlowFast's attention.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from . import ops
from .config import BlockSpec, MViTConfig

NormLayer = Callable[[int], nn.Module]


class MultiScaleAttention(nn.Module):
    """Attention whose q, k and v are pooled over the grid, all to all or inside windows.

    ``spec`` has the shapes, ``config`` what all blocks share; ``norm_layer`` makes the norms of
    pooled q, k and v.
    """

    def __init__(self, spec: BlockSpec, config: MViTConfig, norm_layer: NormLayer) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.windows = spec.num_heads, spec.head_dim, spec.windows
        self.axes, self.cls_token = config.axes, config.cls_token
        self.residual_pooling = config.residual_pooling
        self.qkv = nn.Linear(spec.dim, 3 * spec.dim_att, bias=config.qkv_bias)
        self.proj = nn.Linear(spec.dim_att, spec.dim_att)
        self.proj_drop = nn.Dropout(config.dropout)
        kv = (spec.kernel_kv, spec.stride_kv)
        for name, kernel, stride in (("q", spec.kernel_q, spec.stride_q), ("k", *kv), ("v", *kv)):
            pool = norm = None
            # A pool of one cell with stride 1 counts as none and has no norm either, as upstream.
            if kernel is not None and max(*kernel, *stride) > 1:
                pool = ops.HeadPool(self.head_dim, kernel, stride)
                norm = ops.make_norm(norm_layer, self.head_dim)
            self.add_module(f"pool_{name}", pool)
            self.add_module(f"norm_{name}", norm)
        for axis, (name, used) in enumerate(zip(self.axes, config.rel_pos, strict=True)):
            table = nn.Parameter(torch.zeros(spec.table_length(axis), self.head_dim))
            self.register_parameter(f"rel_pos_{name}", table if used else None)
            if used and not config.rel_pos_zero_init:
                nn.init.trunc_normal_(table, std=0.02)

    def forward(self, x: Tensor, thw: Sequence[int]) -> tuple[Tensor, tuple[int, ...]]:
        """(B, N, dim) tokens on grid ``thw`` -> (B, Nq, dim_att) and the pooled grid."""
        # (B, N, dim_att) each -> (B, N, heads, head_dim)
        heads = (self.num_heads, self.head_dim)
        q, k, v = (part.unflatten(-1, heads) for part in ops.split_qkv(x, self.qkv))
        pools_kv, norms_kv = [self.pool_k, self.pool_v], [self.norm_k, self.norm_v]
        (q,), q_thw = ops.pool_heads([q], thw, [self.pool_q], [self.norm_q], self.cls_token)
        (k, v), k_thw = ops.pool_heads([k, v], thw, pools_kv, norms_kv, self.cls_token)
        tables = [getattr(self, f"rel_pos_{axis}") for axis in self.axes]
        out = ops.attention(
            *(q, k, v, tables, q_thw, k_thw),
            cls_token=self.cls_token,
            add_q=self.residual_pooling,
            windows=self.windows,
        )
        # (B, Nq, heads, head_dim) -> (B, Nq, dim_att)
        return self.proj_drop(self.proj(out.flatten(2))), q_thw
