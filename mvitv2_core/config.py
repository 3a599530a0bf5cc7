"""What an MViTv2 is, as plain data: a row per variant, a spec per block. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, NamedTuple

from .checks import check_count, check_flag, check_positive, check_rate, check_scale, check_sizes

AbsPos = Literal["none", "joint", "separate"]


class Variant(NamedTuple):
    """One size of the paper's Table 1: blocks per stage, width and heads of the first stage."""

    depths: tuple[int, ...]
    embed_dim: int
    num_heads: int


VARIANTS = {
    "T": Variant((1, 2, 5, 2), 96, 1),
    "S": Variant((1, 2, 11, 2), 96, 1),
    "B": Variant((2, 3, 16, 3), 96, 1),
    "L": Variant((2, 6, 36, 4), 144, 2),
    "H": Variant((4, 8, 60, 8), 192, 3),
}


@dataclass(frozen=True)
class BlockSpec:
    """Shapes of one block.

    Args:
        dim: width of the tokens that come in.
        dim_att: width of attention and of ``norm2``: ``dim_out`` where the width grows in
            attention, ``dim`` where it grows in the MLP.
        dim_out: width of the tokens that go out.
        num_heads: attention heads; must divide ``dim_att``.
        thw: nominal token grid at the block's input, one size per axis. It fixes the lengths of
            the position tables; any other grid is accepted at run time.
        stride_q, stride_kv: strides of the pools, one per axis.
        kernel_q, kernel_kv: kernels of the pools, one per axis; None for no pool and no norm.
        drop_path: probability of dropping a residual branch, per sample.
        window_size: width of the windows that queries attend in, in tokens of the block's input;
            0 attends globally (Hybrid window attention: paper, section 4.3).

    Raises:
        ValueError: sizes, ranks or widths that do not fit together.
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
            check_positive(name, getattr(self, name))
        check_sizes("thw", self.thw)
        for name in ("stride_q", "stride_kv"):
            check_sizes(name, getattr(self, name), len(self.thw))
        for name, stride in (("q", self.stride_q), ("kv", self.stride_kv)):
            kernel = getattr(self, f"kernel_{name}")
            if kernel is not None:
                check_sizes(f"kernel_{name}", kernel, len(self.thw))
            elif max(stride) > 1:
                raise ValueError(f"kernel_{name} must be given with stride_{name}={stride}")
        if self.dim_att % self.num_heads:
            raise ValueError(f"num_heads must divide dim_att={self.dim_att}, got {self.num_heads}")
        if self.dim_att not in (self.dim, self.dim_out):
            raise ValueError(
                f"dim_att must be dim={self.dim} or dim_out={self.dim_out}, got {self.dim_att}"
            )
        # Pooled q meets the max-pooled shortcut (kernel stride + 1), and both must have one size.
        if self.kernel_q is not None and not all(k % 2 for k in self.kernel_q):
            raise ValueError(f"kernel_q must be odd on every axis, got {self.kernel_q}")
        if not all(s == 1 or s % 2 == 0 for s in self.stride_q):
            raise ValueError(f"stride_q must be 1 or even on every axis, got {self.stride_q}")
        check_rate("drop_path", self.drop_path)
        check_count("window_size", self.window_size)
        # Or windows of q and of kv would not cover the same tokens, nor always be equally many.
        if self.window_size and any(self.window_size % s for s in self.stride_q + self.stride_kv):
            raise ValueError(
                f"window_size must be a multiple of the block's strides, stride_q={self.stride_q} "
                f"and stride_kv={self.stride_kv}, got {self.window_size}"
            )

    @property
    def head_dim(self) -> int:
        return self.dim_att // self.num_heads

    @property
    def thw_out(self) -> tuple[int, ...]:
        """Nominal grid after q pooling: divided with floor, as the official tables are."""
        return tuple(max(n // s, 1) for n, s in zip(self.thw, self.stride_q, strict=True))

    @property
    def windows(self) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """Sizes of the windows of pooled q and of pooled kv, one per axis; None without."""
        if not self.window_size:
            return None
        q, kv = (tuple(self.window_size // s for s in t) for t in (self.stride_q, self.stride_kv))
        return q, kv

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


class BlockRow(NamedTuple):
    """What one block adds to the model, as a config of any ecosystem says it; see ``BlockSpec``."""

    dim_out: int
    num_heads: int
    stride_q: tuple[int, ...]
    stride_kv: tuple[int, ...]
    kernel_q: tuple[int, ...] | None
    kernel_kv: tuple[int, ...] | None
    window_size: int = 0


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
        drop_path_rate: drop path of the last block; rises linearly from 0.
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


def stage_rows(
    depths: Sequence[int],
    embed_dim: int,
    num_heads: int,
    stride_kv: tuple[int, ...],
    kernel: tuple[int, ...] | None = None,
    dim_mul_in_att: bool = True,
) -> list[BlockRow]:
    """The paper's stages (section 4, Table 1), image or video.

    Heads double, and the spatial stride of q is 2, in the first block of each stage but the first.
    The width doubles there too, or in the MLP of the block before; kv strides halve.

    Args:
        depths: blocks of each stage.
        embed_dim, num_heads: of the first stage.
        stride_kv: of the first stage, one per axis.
        kernel: of all pools, one size per axis; 3 by default.
        dim_mul_in_att: see ``lay_out``.
    """
    if not isinstance(depths, Sequence) or isinstance(depths, str) or not depths:
        raise ValueError(f"depths must hold the blocks of each stage, got {depths!r}")
    for name, size in (*(("depths", n) for n in depths), ("num_heads", num_heads)):
        check_positive(name, size)
    check_positive("embed_dim", embed_dim)
    check_sizes("stride_kv", stride_kv)
    rank, starts = len(stride_kv), {sum(depths[:stage]) for stage in range(1, len(depths))}
    kernel, dim, rows = kernel or (3,) * rank, embed_dim, []
    for index in range(sum(depths)):
        step = (1, 2, 2)[-rank:] if index in starts else (1,) * rank
        stride_kv = tuple(max(kv // q, 1) for kv, q in zip(stride_kv, step, strict=True))
        num_heads *= 2 if index in starts else 1
        dim *= 2 if (index if dim_mul_in_att else index + 1) in starts else 1
        rows.append(BlockRow(dim, num_heads, step, stride_kv, kernel, kernel))
    return rows


@dataclass(frozen=True)
class MViTConfig:
    """Everything that shapes the weights and the arithmetic of an MViTv2.

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
            ``cls_token``. A detector's table keeps the row of the model it was pre-trained as.
        rel_pos: for each axis, whether it has relative positions.
        rel_pos_zero_init: start relative positions at zero (else truncated normal, 0.02).
        residual_pooling: add pooled q to the output of attention (paper, section 4.1).
        dropout: dropout in attention's output, in the MLP and after the positions.
        num_classes: outputs of ``MViTClassifier``'s head.
        head_dropout: dropout before the head's projection.
        head_init_scale: factor on the head's initial weights and biases.
        mean_pooling: classify the normalised mean of the tokens. Otherwise the class token
            after the norm or, without one, the mean of the normalised tokens.

    Raises:
        ValueError: ranks, widths or probabilities that do not fit together.
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
            raise ValueError(f"blocks must be a tuple of BlockSpecs, got {self.blocks!r}")
        for index, (before, block) in enumerate(pairwise(blocks), 1):
            if (before.dim_out, before.thw_out) != (block.dim, block.thw):
                raise ValueError(
                    f"blocks[{index}] must take what blocks[{index - 1}] gives, dim="
                    f"{before.dim_out} and thw={before.thw_out}, got {block.dim} and {block.thw}"
                )
        check_sizes("input_size", self.input_size)
        check_sizes("patch_kernel", self.patch_kernel)
        patch_rank = len(self.patch_kernel)
        check_sizes("patch_stride", self.patch_stride, patch_rank)
        check_sizes("patch_padding", self.patch_padding, patch_rank, least=0)
        for name, allowed in (
            ("patch_kernel", (self.rank, self.rank - 1)),
            ("input_size", (self.rank, patch_rank)),
        ):
            if len(getattr(self, name)) not in allowed:
                raise ValueError(f"{name} must fit a grid of {self.rank} axes, got {self!r}")
        if not isinstance(self.rel_pos, tuple) or len(self.rel_pos) != self.rank:
            raise ValueError(f"rel_pos must hold {self.rank} flags, got {self.rel_pos!r}")
        for used in self.rel_pos:
            check_flag("rel_pos of each axis", used)
        for name in ("qkv_bias", "rel_pos_zero_init", "residual_pooling", "mean_pooling"):
            check_flag(name, getattr(self, name))
        for name in ("in_chans", "num_classes"):
            check_positive(name, getattr(self, name))
        for name in ("mlp_ratio", "head_init_scale"):
            check_scale(name, getattr(self, name))
        for name in ("dropout", "head_dropout"):
            check_rate(name, getattr(self, name))
        narrowest = min(block.dim_att for block in blocks)
        if int(narrowest * self.mlp_ratio) < 1:
            raise ValueError(f"mlp_ratio must leave a hidden width, got {self.mlp_ratio}")
        self._check_abs_pos()

    def _check_abs_pos(self) -> None:
        check_flag("cls_token", self.cls_token)
        if self.abs_pos not in ("none", "joint", "separate"):
            raise ValueError(f"abs_pos must be none, joint or separate, got {self.abs_pos!r}")
        if self.abs_pos == "separate" and self.rank != 3:
            raise ValueError(f"abs_pos='separate' needs a (T, H, W) grid, got rank {self.rank}")
        if self.abs_pos_thw is not None and self.abs_pos != "none":
            check_sizes("abs_pos_thw", self.abs_pos_thw, self.rank)
        if self.abs_pos_cls_row is None:
            return
        check_flag("abs_pos_cls_row", self.abs_pos_cls_row)
        # Only a joint table may hold a row that no token uses.
        odd = self.abs_pos_cls_row != self.cls_token
        if odd and (self.abs_pos == "separate" or (self.cls_token and self.abs_pos == "joint")):
            raise ValueError(f"abs_pos_cls_row must be cls_token={self.cls_token}, or None")

    @property
    def rank(self) -> int:
        """Axes of the token grid: 2 for images, 3 for clips."""
        return len(self.blocks[0].thw)

    @property
    def axes(self) -> str:
        """Names of the grid's axes, as the position tables are called: "hw" or "thw"."""
        return "thw"[3 - self.rank :]

    @property
    def embed_dim(self) -> int:
        return self.blocks[0].dim

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
        **overrides: object,
    ) -> MViTConfig:
        """One of the published sizes, as an image or (with a (T, H, W) ``input_size``) video model.

        Args:
            name: a key of ``VARIANTS``.
            input_size: (H, W), or (T, H, W) for clips: patches of 3x7x7 with stride 2x4x4.
            kv_stride: spatial kv stride of the first stage; 4 for images and 8 for clips as
                published (paper, sections 5.1 and 5.3), halved at each stage.
            drop_path_rate: drop path of the last block; rises linearly from 0.
            dim_mul_in_att: False for the published IN-1K L and the MaskFeat fine-tunes, whose
                width grows in the MLP of the block before.
            overrides: other fields of ``MViTConfig``.

        Raises:
            ValueError: unknown ``name``, or a size that does not fit.
        """
        if not isinstance(name, str) or name not in VARIANTS:
            raise ValueError(f"name must be one of {', '.join(VARIANTS)}, got {name!r}")
        if not isinstance(input_size, tuple) or len(input_size) not in (2, 3):
            raise ValueError(f"input_size must be (H, W) or (T, H, W), got {input_size!r}")
        rank = len(input_size)
        check_sizes("input_size", input_size, rank)
        stride = (2, 4, 4)[-rank:]
        thw = tuple(n // s for n, s in zip(input_size, stride, strict=True))
        if not all(thw):
            raise ValueError(f"input_size must be at least {stride}, got {input_size}")
        if kv_stride is None:
            kv_stride = 8 if rank == 3 else 4
        check_positive("kv_stride", kv_stride)
        unknown = sorted(set(overrides) - set(cls.__dataclass_fields__))
        if unknown:
            raise TypeError(f"{', '.join(unknown)}: no such field of MViTConfig")
        stride_kv = (1, kv_stride, kv_stride)[-rank:]
        check_flag("dim_mul_in_att", dim_mul_in_att)
        rows = stage_rows(*VARIANTS[name], stride_kv, dim_mul_in_att=dim_mul_in_att)
        embed_dim = VARIANTS[name].embed_dim
        config = cls(
            blocks=lay_out(rows, embed_dim, thw, drop_path_rate, dim_mul_in_att),
            input_size=input_size,
            patch_kernel=(3, 7, 7)[-rank:],
            patch_stride=stride,
            patch_padding=(1, 3, 3)[-rank:],
            rel_pos=(True,) * rank,
            cls_token=rank == 3,
        )
        return replace(config, **overrides)  # type: ignore[arg-type]
