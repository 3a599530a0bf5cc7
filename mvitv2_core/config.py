"""What an MViTv2 is, as plain data: a spec per block, and what all share. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from .checks import check_flag, check_rate, check_scale, check_sizes, check_whole, refuse
from .rows import BlockRow, published

AbsPos = Literal["none", "joint", "separate"]


@dataclass(frozen=True)
class BlockSpec:
    """Shapes of one block.

    Args:
        dim, dim_out: widths of the tokens that come in and go out.
        dim_att: width of attention and of ``norm2``: ``dim_out`` where the width grows in
            attention, ``dim`` where it grows in the MLP (published: IN-1K L, MaskFeat fine-tunes).
        num_heads: attention heads; must divide ``dim_att``.
        thw: nominal token grid at the block's input, one size per axis. It fixes the lengths of
            the position tables; any other grid is accepted at run time.
        stride_q, stride_kv: strides of the pools, one per axis.
        kernel_q, kernel_kv: kernels of the pools, one per axis; None for no pool and no norm.
        drop_path: probability of dropping a residual branch, per sample.
        window_size: height and width of the windows that queries attend in, in tokens of the
            block's input; 0 attends globally (Hybrid window attention: paper, section 4.3). In
            time, a window has the nominal grid's length.

    Raises ValueError for sizes, ranks or widths that do not fit together.
    """

    dim: int
    dim_att: int
    dim_out: int
    num_heads: int
    thw: tuple[int, ...]
    stride_q: tuple[int, ...]
    stride_kv: tuple[int, ...]
    kernel_q: tuple[int, ...] | None
    kernel_kv: tuple[int, ...] | None
    drop_path: float = 0.0
    window_size: int = 0

    def __post_init__(self) -> None:
        for name in ("dim", "dim_att", "dim_out", "num_heads"):
            check_whole(name, getattr(self, name))
        check_sizes("thw", self.thw)
        for name in ("q", "kv"):
            stride, kernel = getattr(self, f"stride_{name}"), getattr(self, f"kernel_{name}")
            check_sizes(f"stride_{name}", stride, len(self.thw))
            if kernel is not None:
                check_sizes(f"kernel_{name}", kernel, len(self.thw))
            elif max(stride) > 1:
                refuse(f"kernel_{name}", f"given with stride_{name}={stride}", kernel)
        if self.dim_att % self.num_heads:
            refuse("num_heads", f"a divisor of dim_att={self.dim_att}", self.num_heads)
        if self.dim_att not in (self.dim, self.dim_out):
            refuse("dim_att", f"dim={self.dim} or dim_out={self.dim_out}", self.dim_att)
        # Pooled q meets the max-pooled shortcut (kernel stride + 1), and both must have one size.
        if self.kernel_q is not None and not all(k % 2 for k in self.kernel_q):
            refuse("kernel_q", "odd on every axis", self.kernel_q)
        if not all(s == 1 or s % 2 == 0 for s in self.stride_q):
            refuse("stride_q", "1 or even on every axis", self.stride_q)
        check_rate("drop_path", self.drop_path)
        check_whole("window_size", self.window_size, 0)
        # Or windows of q and of kv would not cover the same tokens, nor always be equally many.
        steps = zip(self._window, self.stride_q, self.stride_kv, strict=True)
        if self.window_size and any(n % q or n % kv for n, q, kv in steps):
            strides = f"stride_q={self.stride_q} and stride_kv={self.stride_kv}"
            refuse("window_size", f"a multiple of the block's {strides}", self.window_size)

    @property
    def head_dim(self) -> int:
        return self.dim_att // self.num_heads

    @property
    def thw_out(self) -> tuple[int, ...]:
        """Nominal grid after q pooling: divided with floor, as the official tables are."""
        return tuple(max(n // s, 1) for n, s in zip(self.thw, self.stride_q, strict=True))

    @property
    def windows(self) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """Sizes of the windows of pooled q and kv, which cover the same tokens; None without."""
        if not self.window_size:
            return None
        q, kv = (
            tuple(n // s for n, s in zip(self._window, strides, strict=True))
            for strides in (self.stride_q, self.stride_kv)
        )
        return q, kv

    @property
    def _window(self) -> tuple[int, ...]:
        """Sizes of a window in tokens of the block's input."""
        return (*self.thw[:-2], self.window_size, self.window_size)[-len(self.thw) :]

    def table_length(self, axis: int) -> int:
        """Rows of the stored table of relative positions of ``axis``.

        Spatial tables follow the larger of the pooled q and kv sizes; the temporal table (first
        of three axes) has 2*T - 1 rows for the block's input T whatever its strides, as in
        PySlowFast's attention.py, on which the published SSv2 L checkpoint depends.
        """
        size = self.thw[axis]
        if len(self.thw) == 3 and axis == 0:
            return 2 * size - 1
        return 2 * max(size // self.stride_q[axis], size // self.stride_kv[axis], 1) - 1


def lay_out(
    rows: Sequence[BlockRow],
    embed_dim: int,
    thw: tuple[int, ...],
    drop_path_rate: float = 0.0,
    dim_mul_in_att: bool = True,
) -> tuple[BlockSpec, ...]:
    """Blocks one after another: each takes the width and the grid that the one before gives.

    Args:
        rows: one per block.
        embed_dim, thw: width and token grid of the patch embedding.
        drop_path_rate: of the last block; rises linearly from 0.
        dim_mul_in_att: whether widths grow in attention, or in the MLP.
    """
    check_rate("drop_path_rate", drop_path_rate)
    check_flag("dim_mul_in_att", dim_mul_in_att)
    dim, specs = embed_dim, []
    for index, row in enumerate(rows):
        spec = BlockSpec(
            dim=dim,
            dim_att=row.dim_out if dim_mul_in_att else dim,
            thw=thw,
            drop_path=drop_path_rate * index / max(len(rows) - 1, 1),
            **row._asdict(),
        )
        specs.append(spec)
        dim, thw = spec.dim_out, spec.thw_out
    return tuple(specs)


@dataclass(frozen=True)
class MViTConfig:
    """Everything that shapes an MViTv2; raises ValueError for parts that do not fit together.

    Args:
        blocks: one spec per block, in order.
        input_size: nominal (H, W) of images or (T, H, W) of clips, in pixels and frames.
        patch_kernel, patch_stride, patch_padding: the patch embedding's convolution. Two axes
            on a three-axis grid mean stills: the grid gets a time axis of size 1.
        in_chans: channels of the input.
        mlp_ratio: hidden width of the MLP over ``dim_att``.
        qkv_bias: whether ``qkv`` has a bias.
        cls_token: whether a class token stands in front of the tokens.
        abs_pos: "none", one "joint" table, or "separate" spatial and temporal tables.
        abs_pos_thw: grid of the absolute table; None for the nominal grid.
        abs_pos_cls_row: whether the table has a first row for a class token; None for
            ``cls_token``. Detectors keep the row of the pre-trained model, and have no such token.
        rel_pos: for each axis, whether it has relative positions.
        rel_pos_zero_init: start relative positions at zero (else truncated normal, 0.02).
        residual_pooling: add pooled q to the output of attention (paper, section 4.1).
        dropout: dropout in attention's output, in the MLP and after the positions.
        num_classes, head_dropout, head_init_scale: of ``MViTClassifier``'s head: its outputs, the
            dropout before its projection, a factor on its initial weights and biases.
        mean_pooling: classify the normalised mean of the tokens. Otherwise the class token
            after the norm or, without one, the mean of the normalised tokens.
    """

    blocks: tuple[BlockSpec, ...]
    input_size: tuple[int, ...]
    patch_kernel: tuple[int, ...]
    patch_stride: tuple[int, ...]
    patch_padding: tuple[int, ...]
    in_chans: int = 3
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    cls_token: bool = False
    abs_pos: AbsPos = "none"
    abs_pos_thw: tuple[int, ...] | None = None
    abs_pos_cls_row: bool | None = None
    rel_pos: tuple[bool, ...] = (True, True)
    rel_pos_zero_init: bool = False
    residual_pooling: bool = True
    dropout: float = 0.0
    num_classes: int = 1000
    head_dropout: float = 0.0
    head_init_scale: float = 1.0
    mean_pooling: bool = False

    def __post_init__(self) -> None:
        blocks = self.blocks if isinstance(self.blocks, tuple) else ()
        if not blocks or not all(isinstance(block, BlockSpec) for block in blocks):
            refuse("blocks", "a tuple of BlockSpecs", self.blocks)
        for index, (before, block) in enumerate(pairwise(blocks), 1):
            if (before.dim_out, before.thw_out) != (block.dim, block.thw):
                given = f"dim={before.dim_out} and thw={before.thw_out}"
                refuse(f"blocks[{index}]", f"of what blocks[{index - 1}] gives, {given}", block)
        check_sizes("input_size", self.input_size)
        check_sizes("patch_kernel", self.patch_kernel)
        rank, patch_rank = self.rank, len(self.patch_kernel)
        check_sizes("patch_stride", self.patch_stride, patch_rank)
        check_sizes("patch_padding", self.patch_padding, patch_rank, least=0)
        if patch_rank not in (rank, rank - 1):
            refuse("patch_kernel", f"of {rank} axes or one fewer", self.patch_kernel)
        if len(self.input_size) not in (rank, patch_rank):
            refuse("input_size", f"of {rank} axes", self.input_size)
        if not isinstance(self.rel_pos, tuple) or len(self.rel_pos) != rank:
            refuse("rel_pos", f"{rank} flags", self.rel_pos)
        for used in self.rel_pos:
            check_flag("rel_pos of each axis", used)
        for check, names in (
            (check_flag, "qkv_bias cls_token rel_pos_zero_init residual_pooling mean_pooling"),
            (check_whole, "in_chans num_classes"),
            (check_scale, "mlp_ratio head_init_scale"),
            (check_rate, "dropout head_dropout"),
        ):
            for name in names.split():
                check(name, getattr(self, name))
        if int(min(block.dim_att for block in blocks) * self.mlp_ratio) < 1:
            refuse("mlp_ratio", "so large that it leaves a hidden width", self.mlp_ratio)
        allowed = ("none", "joint", "separate")[: 3 if rank == 3 else 2]
        if self.abs_pos not in allowed:
            refuse("abs_pos", f"{' or '.join(allowed)} on a grid of {rank} axes", self.abs_pos)
        if self.abs_pos_thw is not None and self.abs_pos != "none":
            check_sizes("abs_pos_thw", self.abs_pos_thw, rank)
        check_flag("abs_pos_cls_row", self.has_cls_row)
        windowed = [i for i, block in enumerate(blocks) if block.window_size]
        if self.cls_token and windowed:
            refuse("cls_token", f"False with windows (window_size of blocks[{windowed[0]}])", True)
        # Only a joint table may hold a row that no token uses.
        odd = self.abs_pos != "none" and self.has_cls_row != self.cls_token
        if odd and (self.abs_pos == "separate" or self.cls_token):
            refuse("abs_pos_cls_row", f"cls_token={self.cls_token}", self.abs_pos_cls_row)

    @property
    def rank(self) -> int:
        """Axes of the token grid: 2 for images, 3 for clips."""
        return len(self.blocks[0].thw)

    @property
    def axes(self) -> str:
        """Names of the grid's axes, as the position tables are called: "hw" or "thw"."""
        return "thw"[3 - self.rank :]

    @property
    def has_cls_row(self) -> bool:
        """Whether absolute positions have a row for a class token."""
        return self.cls_token if self.abs_pos_cls_row is None else self.abs_pos_cls_row

    @property
    def stage_ends(self) -> tuple[int, ...]:
        """Index of the last block of each stage: a stage begins where q is strided."""
        last = len(self.blocks) - 1
        return tuple(i for i in range(last) if max(self.blocks[i + 1].stride_q) > 1) + (last,)

    @classmethod
    def variant(
        cls,
        name: str,
        input_size: tuple[int, ...] = (224, 224),
        *,
        kv_stride: int | None = None,
        drop_path_rate: float = 0.0,
        dim_mul_in_att: bool = True,
        **overrides: Any,
    ) -> MViTConfig:
        """One of the published sizes, as an image or (with a (T, H, W) ``input_size``) video model.

        Args:
            name, input_size, kv_stride, dim_mul_in_att: see ``rows.published``.
            drop_path_rate: of the last block; rises linearly from 0.
            overrides: other fields of ``MViTConfig``.
        """
        layout, fields = published(name, input_size, kv_stride, dim_mul_in_att)
        blocks = lay_out(*layout, drop_path_rate, dim_mul_in_att)
        return cls(**{"blocks": blocks, **fields, **overrides})
