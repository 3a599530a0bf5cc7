"""Pooling attention on any number of axes (paper, section 4.1; PySlowFast's attention.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .attend import attend, split_cls_token
from .config import MViTConfig
from .context import untouched
from .linear import NormParts, autocast, call_linear, half_norm, linear, norm_linears
from .pool import HeadPool
from .spec import BlockSpec

NormLayer = Callable[[int], nn.Module]


class MultiScaleAttention(nn.Module):
    """Attention whose q, k and v are pooled over the grid.

    Args:
        spec: shapes of the block.
        config: what all blocks share.
        norm_layer: makes the norms of pooled q, k and v from their number of channels.
    """

    def __init__(self, spec: BlockSpec, config: MViTConfig, norm_layer: NormLayer) -> None:
        super().__init__()
        self.num_heads, self.head_dim = spec.num_heads, spec.head_dim
        self.axes, self.cls_token = config.axes, config.cls_token
        self.residual_pooling = config.residual_pooling
        self.qkv = nn.Linear(spec.dim, 3 * spec.dim_att, bias=config.qkv_bias)
        self.proj = nn.Linear(spec.dim_att, spec.dim_att)
        self.proj_drop = nn.Dropout(config.dropout)
        pools = (
            ("q", spec.kernel_q, spec.stride_q),
            ("k", spec.kernel_kv, spec.stride_kv),
            ("v", spec.kernel_kv, spec.stride_kv),
        )
        for name, kernel, stride in pools:
            # A pool of one cell with stride 1 counts as none and has no norm either, as upstream.
            pooled = kernel is not None and max(*kernel, *stride) > 1
            pool = HeadPool(self.head_dim, kernel or (), stride) if pooled else None
            self.add_module(f"pool_{name}", pool)
            self.add_module(f"norm_{name}", norm_layer(self.head_dim) if pooled else None)
        for axis, (name, used) in enumerate(zip(self.axes, config.rel_pos, strict=True)):
            rows = torch.zeros(spec.rel_pos_rows(axis), self.head_dim) if used else None
            table = None if rows is None else nn.Parameter(rows)
            self.register_parameter(f"rel_pos_{name}", table)
            if table is not None and not config.rel_pos_zero_init:
                nn.init.trunc_normal_(table, std=0.02)

    def forward(
        self, x: Tensor, thw: Sequence[int], norm: NormParts | None = None
    ) -> tuple[Tensor, tuple[int, ...]]:
        """(B, N, dim) tokens on grid ``thw`` -> (B, Nq, dim_att) and the pooled grid.

        Args:
            norm: of ``norm_parts``, for tokens that are not normed yet; only where ``is_plain``.
        """
        q, k, v = self._qkv(x, norm)
        q, q_thw = self._pool(q, thw, "q")
        k, k_thw = self._pool(k, thw, "k")
        v, _ = self._pool(v, thw, "v")
        out = self.attend(q, k, v, q_thw, k_thw, self.residual_pooling)
        # (B, Nq, heads, head_dim) -> (B, Nq, dim_att)
        out = out.flatten(2)
        return self.proj_drop(call_linear(self.proj, out)), q_thw

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        q_thw: Sequence[int],
        k_thw: Sequence[int],
        add_q: bool = False,
    ) -> Tensor:
        """How pooled tokens attend: inside ``windows``, or all to all.

        Args:
            q: (B, Nq, heads, head_dim).
            k, v: (B, Nk, heads, head_dim).
            q_thw, k_thw: their grids.
            add_q: whether to add q, but for the class token's row, to which upstream adds none.

        Returns:
            (B, Nq, heads, head_dim).
        """
        tables, windows = self.rel_pos_tables(), self.windows
        return attend(q, k, v, tables, q_thw, k_thw, self.cls_token, add_q=add_q, windows=windows)

    @property
    def windows(self) -> tuple[Sequence[int], Sequence[int]] | None:
        """Sizes of the windows of q and of kv, one per axis; None without. For classes with."""
        return None

    def rel_pos_tables(self) -> list[Tensor | None]:
        """The position table of each axis, None where the axis has none."""
        return [getattr(self, f"rel_pos_{name}") for name in self.axes]

    def is_plain(self) -> bool:
        """Whether the weights of ``qkv`` alone decide what it does, so that it can take a norm."""
        ours = type(self).forward is MultiScaleAttention.forward and untouched(self, type(self))
        return ours and untouched(self.qkv, nn.Linear)

    def _qkv(self, x: Tensor, norm: NormParts | None) -> Sequence[Tensor]:
        """(B, N, dim) tokens -> three of (B, N, dim_att).

        Three products with views of one weight cost as much as one, and give each pool tokens
        that are contiguous, so nothing is copied between here and the convolutions.
        """
        if not untouched(self.qkv, nn.Linear):
            return self.qkv(x).chunk(3, dim=-1)
        # Once, not for each of the three.
        x, weight, bias = autocast(x, self.qkv.weight, self.qkv.bias)
        weights = weight.chunk(3)
        biases = (None,) * 3 if bias is None else bias.chunk(3)
        if norm is not None:
            return norm_linears(x, norm, weights, biases)
        return [linear(x, w, b) for w, b in zip(weights, biases, strict=True)]

    def _pool(self, x: Tensor, thw: Sequence[int], name: str) -> tuple[Tensor, tuple[int, ...]]:
        """(B, N, heads * head_dim) -> (B, N', heads, head_dim) pooled and normed, and its grid."""
        pool, norm = getattr(self, f"pool_{name}"), getattr(self, f"norm_{name}")
        if pool is None:
            return x.unflatten(-1, (self.num_heads, self.head_dim)), tuple(thw)
        cls_token, x = split_cls_token(x) if self.cls_token else (None, x)
        grid = pool(x.unflatten(1, tuple(thw)))
        pooled_thw = tuple(grid.shape[1:-1])
        pooled = grid.flatten(1, -2)
        if cls_token is not None:  # passes the convolution by, not the norm
            pooled = torch.cat([cls_token, pooled], dim=1)
        return half_norm(norm, pooled.unflatten(-1, (self.num_heads, self.head_dim))), pooled_thw
