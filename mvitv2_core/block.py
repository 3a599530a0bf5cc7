"""One transformer block: pooling attention and an MLP, each with a shortcut (paper, figure 2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from . import ops
from .attention import MultiScaleAttention, NormLayer
from .config import BlockSpec, MViTConfig

ActLayer = Callable[[], nn.Module]


class DropPath(nn.Module):
    """Stochastic depth: drops a branch of whole samples with probability ``rate``, in training."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> (B, ...)."""
        if not self.training or self.rate == 0.0:
            return x
        return ops.drop_path(x, 1.0 - self.rate)


class Mlp(nn.Module):
    """Two linears, ``dim`` to ``hidden`` to ``dim_out``, with an activation between; dropout."""

    def __init__(
        self, dim: int, hidden: int, dim_out: int, act_layer: ActLayer, dropout: float
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = act_layer()
        self.fc2 = nn.Linear(hidden, dim_out)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, dim) -> (B, N, dim_out)."""
        return ops.mlp(x, self.fc1, self.act, self.fc2, self.drop)


class MultiScaleBlock(nn.Module):
    """Pooling attention and MLP (PySlowFast's attention.py).

    ``spec`` has the shapes, ``config`` what all blocks share; the layers are made by the makers.
    """

    def __init__(
        self, spec: BlockSpec, config: MViTConfig, norm_layer: NormLayer, act_layer: ActLayer
    ) -> None:
        super().__init__()
        self.cls_token, self.stride_q = config.cls_token, spec.stride_q
        self.widens_in_attention = spec.dim != spec.dim_att
        self.widens_in_mlp = spec.dim_att != spec.dim_out
        self.norm1 = ops.make_norm(norm_layer, spec.dim)
        self.attn = MultiScaleAttention(spec, config, norm_layer)
        self.drop_path = DropPath(spec.drop_path)
        self.norm2 = ops.make_norm(norm_layer, spec.dim_att)
        hidden = int(spec.dim_att * config.mlp_ratio)
        self.mlp = Mlp(spec.dim_att, hidden, spec.dim_out, act_layer, config.dropout)
        self.proj: Any = nn.Linear(spec.dim, spec.dim_out) if spec.dim != spec.dim_out else None

    def forward(self, x: Tensor, thw: Sequence[int]) -> tuple[Tensor, tuple[int, ...]]:
        """(B, N, dim) tokens on grid ``thw`` -> (B, N', dim_out) and their grid."""
        y = self.norm1(x)
        out, q_thw = self.attn(y, thw)
        if self.widens_in_attention:
            x = self.proj(y)
        x = ops.max_pool_skip(x, thw, self.stride_q, self.cls_token) + self.drop_path(out)
        y = self.norm2(x)
        out = self.mlp(y)
        if self.widens_in_mlp:
            x = self.proj(y)
        return x + self.drop_path(out), q_thw
