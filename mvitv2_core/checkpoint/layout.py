"""What model a checkpoint is of, read from names and shapes alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt

from torch import Tensor

from ..rows import VARIANTS


@dataclass(frozen=True)
class Layout:
    """An MViTv2's structure as its tensors show it.

    Args:
        depths: blocks of each stage; a stage begins where the width grows.
        embed_dim, num_heads: of the first stage; heads None where nothing shows them.
        in_att: whether the width grows in attention; None where it never grows.
        rank: 2 for images, 3 for clips.
        cls_token: whether there is a class token.
        num_classes: of the head, None without one.
        input_size: nominal (H, W) or (T, H, W) that the position tables are sized for, for
            patches of stride 4 (and 2 in time); None where there are none.
    """

    depths: tuple[int, ...]
    embed_dim: int
    num_heads: int | None
    in_att: bool | None
    rank: int
    cls_token: bool
    num_classes: int | None
    input_size: tuple[int, ...] | None

    @property
    def variant(self) -> str | None:
        """T, S, B, L or H, or None."""
        for name, row in VARIANTS.items():
            if row == (self.depths, self.embed_dim, self.num_heads):
                return name
        return None

    @property
    def structure(self) -> tuple[object, ...]:
        """What two models must share for one's weights to fit the other."""
        return self.depths, self.embed_dim, self.num_heads, self.in_att

    def place(self, block: int) -> tuple[int, int]:
        """Stage of a block, and its number inside of the stage."""
        for stage, depth in enumerate(self.depths):
            if block < depth:
                return stage, block
            block -= depth
        raise IndexError(f"block must be below {sum(self.depths)}")

    def __str__(self) -> str:
        size = "?" if self.input_size is None else "x".join(map(str, self.input_size))
        name = f"MViTv2-{self.variant}" if self.variant else "an unpublished MViTv2"
        heads = "?" if self.num_heads is None else self.num_heads
        kind = "clips" if self.rank == 3 else "images"
        place = "" if self.in_att is not False else ", growing in the MLP"
        return (
            f"{name} for {kind} of {size} (depths {list(self.depths)}, width {self.embed_dim}"
            f"{place}, heads {heads})"
        )


def read_layout(state: Mapping[str, Tensor]) -> Layout:
    """The structure that a state dict under the project's names shows."""
    found = (re.match(r"blocks\.(\d+)\.", name) for name in state)
    depth = max((int(m[1]) + 1 for m in found if m), default=0)

    def size(name: str, axis: int = 0) -> int | None:
        tensor = state.get(name)
        return tensor.shape[axis] if tensor is not None and tensor.ndim > axis else None

    starts, in_att = [0], None
    for i in range(depth):
        dim = size(f"blocks.{i}.attn.qkv.weight", 1)
        dim_att = size(f"blocks.{i}.attn.proj.weight")
        dim_out = size(f"blocks.{i}.mlp.fc2.weight")
        if None not in (dim, dim_att) and dim != dim_att:
            starts.append(i)
            in_att = True
        elif None not in (dim, dim_out) and dim != dim_out:
            starts.append(i + 1)
            in_att = False
    ends = [*starts[1:], depth]
    depths = tuple(end - start for start, end in zip(starts, ends, strict=True))
    embed_dim = size("patch_embed.proj.weight") or 0
    attn = "blocks.0.attn."
    head_dim = size(f"{attn}pool_k.weight") or size(f"{attn}rel_pos_h", 1)
    dim_att = size(f"{attn}proj.weight")
    heads = dim_att // head_dim if dim_att and head_dim else None
    frames = size(f"{attn}rel_pos_t")
    kernels = [state[n] for n in ("patch_embed.proj.weight", f"{attn}pool_k.weight") if n in state]
    clip = frames is not None or any(k.ndim == 5 and k.shape[2] > 1 for k in kernels)
    return Layout(
        depths=depths,
        embed_dim=embed_dim,
        num_heads=heads,
        in_att=in_att,
        rank=3 if clip else 2,
        cls_token="cls_token" in state,
        num_classes=size("head.projection.weight"),
        input_size=_input_size(state, clip),
    )


def _input_size(state: Mapping[str, Tensor], clip: bool) -> tuple[int, ...] | None:
    """From the first block's tables, whose q is not pooled: 2 * cells - 1 rows each."""
    sizes = []
    for axis, stride in zip("thw" if clip else "hw", (2, 4, 4) if clip else (4, 4), strict=True):
        table = state.get(f"blocks.0.attn.rel_pos_{axis}")
        if table is None or table.ndim != 2:
            return _abs_size(state) if not clip else None
        sizes.append((table.shape[0] + 1) // 2 * stride)
    return tuple(sizes)


def _abs_size(state: Mapping[str, Tensor]) -> tuple[int, ...] | None:
    table = state.get("pos_embed")
    if table is None or table.ndim != 3:
        return None
    for rows in (table.shape[1], table.shape[1] - 1):
        if isqrt(rows) ** 2 == rows:
            return (4 * isqrt(rows),) * 2
    return None
