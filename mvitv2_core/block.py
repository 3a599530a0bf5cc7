"""One transformer block: pooling attention and an MLP, each with a shortcut."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attend import split_cls_token
from .attention import MultiScaleAttention, NormLayer
from .config import MViTConfig
from .context import untouched
from .linear import call_linear, half_norm, norm_parts
from .mlp import Mlp
from .spec import BlockSpec


class DropPath(nn.Module):
    """Stochastic depth: in training, drops a residual branch of whole samples and scales the rest.

    Args:
        rate: probability of dropping, in [0, 1).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> (B, ...)."""
        if not self.training or self.rate == 0.0:
            return x
        return x * self.draw(x)

    def draw(self, x: Tensor) -> Tensor:
        """(B, 1, ...) factors for the samples of ``x``: 0, or 1 over the probability to stay."""
        keep = 1.0 - self.rate
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
        return mask.div_(keep)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


class MultiScaleBlock(nn.Module):
    """Pooling attention and MLP (paper, figure 2; PySlowFast's attention.py).

    Args:
        spec: shapes of the block.
        config: what all blocks share.
        norm_layer, act_layer: makers of the norms and of the MLP's activation.
        attention: class of the attention, called with ``spec``, ``config`` and ``norm_layer``.
    """

    def __init__(
        self,
        spec: BlockSpec,
        config: MViTConfig,
        norm_layer: NormLayer,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        attention: type[MultiScaleAttention] = MultiScaleAttention,
    ) -> None:
        super().__init__()
        self.cls_token, self.stride_q = config.cls_token, spec.stride_q
        self.dim_mul_in_att = spec.dim != spec.dim_att
        self.norm1 = norm_layer(spec.dim)
        self.attn = attention(spec, config, norm_layer)
        self.drop_path = DropPath(spec.drop_path)
        self.norm2 = norm_layer(spec.dim_att)
        hidden = int(spec.dim_att * config.mlp_ratio)
        self.mlp = Mlp(spec.dim_att, hidden, spec.dim_out, act_layer, config.dropout)
        widens = spec.dim != spec.dim_out
        self.proj = nn.Linear(spec.dim, spec.dim_out) if widens else None

    def forward(self, x: Tensor, thw: Sequence[int]) -> tuple[Tensor, tuple[int, ...]]:
        """(B, N, dim) tokens on grid ``thw`` -> (B, N', dim_out) and their grid."""
        widens_first = self.dim_mul_in_att and self.proj is not None
        norm = norm_parts(self.norm1, x)
        if norm is not None and not widens_first and self.attn.is_plain():
            out, q_thw = self.attn(x, thw, norm)
        else:
            x_norm = half_norm(self.norm1, x)
            out, q_thw = self.attn(x_norm, thw)
            x = call_linear(self.proj, x_norm) if widens_first and self.proj is not None else x
        x = self._pool_skip(x, thw) + self.drop_path(out)
        return self._add_mlp(x), q_thw

    def _add_mlp(self, x: Tensor) -> Tensor:
        """(B, N, dim_att) -> (B, N, dim_out)."""
        widens = not self.dim_mul_in_att and self.proj is not None
        norm = norm_parts(self.norm2, x)
        plain = untouched(self.mlp, Mlp) and untouched(self.drop_path, DropPath)
        if norm is not None and plain and not widens and self.mlp.is_plain():
            drop = self.drop_path.training and self.drop_path.rate
            return self.mlp.add_to(x, norm, self.drop_path.draw(x) if drop else None)
        x_norm = half_norm(self.norm2, x)
        out = self.mlp(x_norm)
        if widens and self.proj is not None:
            x = call_linear(self.proj, x_norm)
        return x + self.drop_path(out)

    def _pool_skip(self, x: Tensor, thw: Sequence[int]) -> Tensor:
        """Max-pools the shortcut to the grid of pooled q; the class token passes by."""
        stride = self.stride_q
        if max(stride) == 1:
            return x
        cls_token, x = split_cls_token(x) if self.cls_token else (None, x)
        grid = x.unflatten(1, tuple(thw))
        lead: tuple[int, ...] = tuple(x.shape[:1])
        while len(stride) > 1 and stride[0] == 1:  # (B, T, H, W, C) -> (B * T, H, W, C)
            lead, stride = (*lead, grid.shape[1]), stride[1:]
            grid = grid.flatten(0, 1)
        kernel = [s + 1 if s > 1 else 1 for s in stride]
        padding = [k // 2 for k in kernel]
        max_pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(stride) - 1]
        pooled = max_pool(grid.movedim(-1, 1), kernel, stride, padding).movedim(1, -1)
        if len(lead) > 1:
            pooled = pooled.unflatten(0, lead)
        pooled = pooled.flatten(1, -2)
        return pooled if cls_token is None else torch.cat([cls_token, pooled], dim=1)
