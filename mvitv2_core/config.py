"""What an MViTv2 is, as plain data: one row per variant, one spec per block. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from .spec import (
    BlockSpec,
    check_flag,
    check_positive,
    check_rate,
    check_scale,
    check_sizes,
    is_whole,
)

AbsPos = Literal["none", "joint", "separate"]
FLAGS = ("qkv_bias", "cls_token", "rel_pos_zero_init", "residual_pooling", "mean_pooling")


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
        check_sizes("input_size", self.input_size)
        check_sizes("patch_kernel", self.patch_kernel)
        check_sizes("patch_stride", self.patch_stride, len(self.patch_kernel))
        padding = self.patch_padding
        if (
            not isinstance(padding, tuple)
            or len(padding) != len(self.patch_kernel)
            or not all(is_whole(n) and n >= 0 for n in padding)
        ):
            raise ValueError(
                f"patch_padding must hold {len(self.patch_kernel)} sizes >= 0, got "
                f"{self.patch_padding}"
            )
        if self.rank - len(self.patch_kernel) not in (0, 1):
            raise ValueError(
                f"patch_kernel must have as many axes as the token grid ({self.rank}), or one "
                f"fewer, got {self.patch_kernel}"
            )
        if len(self.input_size) not in (self.rank, len(self.patch_kernel)):
            raise ValueError(f"input_size must have {self.rank} sizes, got {self.input_size}")
        if not isinstance(self.rel_pos, tuple) or len(self.rel_pos) != self.rank:
            raise ValueError(f"rel_pos must hold {self.rank} flags, got {self.rel_pos!r}")
        for used in self.rel_pos:
            check_flag("rel_pos of each axis", used)
        for name in FLAGS:
            check_flag(name, getattr(self, name))
        if self.abs_pos_cls_row is not None:
            check_flag("abs_pos_cls_row", self.abs_pos_cls_row)
        if self.abs_pos_thw is not None and self.abs_pos != "none":
            check_sizes("abs_pos_thw", self.abs_pos_thw, self.rank)
        for name in ("in_chans", "num_classes"):
            check_positive(name, getattr(self, name))
        for name in ("mlp_ratio", "head_init_scale"):
            check_scale(name, getattr(self, name))
        narrowest = min(block.dim_att for block in self.blocks)
        if int(narrowest * self.mlp_ratio) < 1:
            raise ValueError(
                f"mlp_ratio must leave a hidden width of at least 1 over {narrowest} channels, "
                f"got {self.mlp_ratio}"
            )
        if self.abs_pos not in ("none", "joint", "separate"):
            raise ValueError(f"abs_pos must be none, joint or separate, got {self.abs_pos!r}")
        if self.abs_pos == "separate" and self.rank != 3:
            raise ValueError(f"abs_pos='separate' needs a (T, H, W) grid, got rank {self.rank}")
        if self.cls_token and self.abs_pos_cls_row is False and self.abs_pos != "none":
            raise ValueError("abs_pos_cls_row must not be False where cls_token is True")
        if self.abs_pos == "separate" and self.abs_pos_cls_row and not self.cls_token:
            raise ValueError(
                "abs_pos_cls_row of separate tables needs cls_token=True: nothing uses it"
            )
        for name in ("dropout", "head_dropout"):
            check_rate(name, getattr(self, name))
        for index, (block, following) in enumerate(zip(self.blocks, self.blocks[1:], strict=False)):
            if block.dim_out != following.dim or len(block.thw) != len(following.thw):
                raise ValueError(
                    f"blocks[{index + 1}] must take what blocks[{index}] gives: "
                    f"dim {following.dim} after dim_out {block.dim_out}"
                )
            if block.thw_out != following.thw:
                raise ValueError(
                    f"blocks[{index + 1}] must have the thw that blocks[{index}] gives, "
                    f"{block.thw_out}, got {following.thw}"
                )

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
        row, rank = VARIANTS[name], len(input_size)
        check_sizes("input_size", input_size, rank)
        least = (2, 4, 4)[-rank:]
        if any(n < s for n, s in zip(input_size, least, strict=True)):
            raise ValueError(
                f"input_size must be at least the patch stride {least}, got {input_size}"
            )
        if kv_stride is not None:
            check_positive("kv_stride", kv_stride)
        check_rate("drop_path_rate", drop_path_rate)
        check_flag("dim_mul_in_att", dim_mul_in_att)
        unknown = sorted(set(overrides) - set(cls.__dataclass_fields__))
        if unknown:
            raise TypeError(f"{', '.join(unknown)}: no such field of MViTConfig")
        clip = rank == 3
        stride = (2, 4, 4)[-rank:]
        config = cls(
            blocks=stage_blocks(
                depths=row.depths,
                embed_dim=row.embed_dim,
                num_heads=row.num_heads,
                thw=tuple(n // s for n, s in zip(input_size, stride, strict=True)),
                stride_kv=(1,) * (rank - 2) + ((kv_stride or (8 if clip else 4)),) * 2,
                drop_path_rate=drop_path_rate,
                dim_mul_in_att=dim_mul_in_att,
            ),
            input_size=tuple(input_size),
            patch_kernel=(3, 7, 7)[-rank:],
            patch_stride=stride,
            patch_padding=(1, 3, 3)[-rank:],
            rel_pos=(True,) * rank,
            cls_token=clip,
        )
        return replace(config, **overrides)  # type: ignore[arg-type]


def stage_blocks(
    depths: tuple[int, ...],
    embed_dim: int,
    num_heads: int,
    thw: tuple[int, ...],
    stride_kv: tuple[int, ...],
    drop_path_rate: float = 0.0,
    dim_mul_in_att: bool = True,
) -> tuple[BlockSpec, ...]:
    """Block specs of the paper's four-stage layout (section 4, Table 1).

    Width and heads double, and spatial q stride is 2, in the first block of each stage but the
    first; ``stride_kv`` starts there and is divided by the q stride of each block.

    Args:
        depths: blocks per stage.
        embed_dim, num_heads: of the first stage.
        thw: token grid of the first stage.
        stride_kv: kv strides of the first stage, one per axis.
        drop_path_rate: drop path of the last block.
        dim_mul_in_att: whether the width grows in attention, or in the MLP of the block before.

    Raises:
        ValueError: a size is not positive or heads do not divide the width.
    """
    check_sizes("depths", depths, len(depths) if isinstance(depths, tuple) else 1)
    check_sizes("thw", thw)
    check_sizes("stride_kv", stride_kv, len(thw))
    for name, value in (("embed_dim", embed_dim), ("num_heads", num_heads)):
        check_positive(name, value)
    check_rate("drop_path_rate", drop_path_rate)
    check_flag("dim_mul_in_att", dim_mul_in_att)
    rank, total = len(thw), sum(depths)
    starts = {sum(depths[:stage]) for stage in range(1, len(depths))}
    dim, specs = embed_dim, []
    for i in range(total):
        step = (1,) * (rank - 2) + (2, 2) if i in starts else (1,) * rank
        stride_kv = tuple(max(kv // q, 1) for kv, q in zip(stride_kv, step, strict=True))
        num_heads *= 2 if i in starts else 1
        dim_out = dim * 2 if (i if dim_mul_in_att else i + 1) in starts else dim
        spec = BlockSpec(
            dim=dim,
            dim_att=dim_out if dim_mul_in_att else dim,
            dim_out=dim_out,
            num_heads=num_heads,
            thw=thw,
            stride_q=step,
            stride_kv=stride_kv,
            kernel_q=(3,) * rank,
            kernel_kv=(3,) * rank,
            drop_path=drop_path_rate * i / max(total - 1, 1),
        )
        specs.append(spec)
        dim, thw = dim_out, spec.thw_out
    return tuple(specs)
