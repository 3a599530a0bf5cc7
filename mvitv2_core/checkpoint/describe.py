"""What model a checkpoint is of, by names and shapes alone, and what its file holds, for people:
``mvitv2 inspect`` and ``mvitv2 diff``."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..rows import VARIANTS
from .files import not_finite, read_checkpoint
from .formats import FORMATS, is_clip, size, stage_starts, to_project
from .report import listing, show_shape, table


@dataclass(frozen=True)
class Layout:
    """An MViTv2's structure as its tensors show it."""

    depths: tuple[int, ...]  # blocks of each stage; a stage begins where the width grows
    embed_dim: int  # of the first stage
    num_heads: int | None  # of the first stage; None where nothing shows them
    in_att: bool | None  # whether the width grows in attention; None where it never grows
    rank: int  # 2 for images, 3 for clips
    cls_token: bool  # whether there is a class token
    num_classes: int | None  # of the head, None without one
    # Nominal (H, W) or (T, H, W) that the position tables are sized for, for patches of stride 4
    # (and 2 in time); None where there are none.
    input_size: tuple[int, ...] | None

    @property
    def variant(self) -> str | None:
        """T, S, B, L or H, or None."""
        sizes = self.depths, self.embed_dim, self.num_heads
        return next((name for name, row in VARIANTS.items() if row == sizes), None)

    @property
    def kind(self) -> str:
        """What it takes: "images" or "clips"."""
        return "clips" if self.rank == 3 else "images"

    @property
    def structure(self) -> tuple[object, ...]:
        """What two models must share for one's weights to fit the other."""
        return self.depths, self.embed_dim, self.num_heads, self.in_att

    def __str__(self) -> str:
        sides = "x".join(map(str, self.input_size or "?"))
        name = f"MViTv2-{self.variant}" if self.variant else "an unpublished MViTv2"
        place = ", growing in the MLP" if self.in_att is False else ""
        return (
            f"{name} for {self.kind} of {sides} (depths {list(self.depths)}, "
            f"width {self.embed_dim}{place}, heads {self.num_heads or '?'})"
        )


def read_layout(state: Mapping[str, Tensor]) -> Layout:
    """The structure that a state dict under the project's names shows."""
    starts, in_att = stage_starts(state)
    first = "blocks.0.attn."
    head_dim = size(state, f"{first}pool_k.weight") or size(state, f"{first}rel_pos_h", 1)
    dim_att = size(state, f"{first}proj.weight")
    clip = is_clip(state)
    # The first block's q is not pooled: its tables have 2 * cells - 1 rows.
    patches = {"t": 2, "h": 4, "w": 4} if clip else {"h": 4, "w": 4}
    rows = {axis: size(state, f"{first}rel_pos_{axis}") for axis in patches}
    sides = tuple((n + 1) // 2 * patches[axis] for axis, n in rows.items() if n is not None)
    return Layout(
        depths=tuple(end - start for start, end in pairwise(starts)),
        embed_dim=size(state, "patch_embed.proj.weight") or 0,
        num_heads=dim_att // head_dim if dim_att and head_dim else None,
        in_att=in_att,
        rank=3 if clip else 2,
        cls_token="cls_token" in state,
        num_classes=size(state, "head.projection.weight"),
        input_size=sides if len(sides) == len(patches) else None,
    )


def inspect_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Format, structure and oddities of a checkpoint file, ready for JSON.

    Raises:
        CheckpointError: the file cannot be read, or its names are no MViTv2's.
    """
    checkpoint = read_checkpoint(path, check=False)
    named = to_project(checkpoint.file, checkpoint.state)
    state = named.known
    layout = read_layout(state)
    structure = asdict(layout)
    place = {True: "attention", False: "MLP", None: None}[structure.pop("in_att")]
    dtypes = Counter(str(value.dtype).removeprefix("torch.") for value in state.values())
    return {
        "file": checkpoint.file,
        "container": checkpoint.container,
        "weights_under": checkpoint.nest or None,
        "beside_the_weights": checkpoint.beside,
        "ema_weights_under": checkpoint.ema or None,
        "format": named.format,
        "format_of": FORMATS[named.format].source,
        "variant": layout.variant,
        "kind": layout.kind,
        **structure,
        "width_grows_in": place,
        "tensors": len(state),
        "parameters": sum(value.numel() for value in state.values()),
        "dtypes": dict(dtypes),
        "tensors_outside_of_the_model": len(named.unknown),
        "unusual": _unusual(state, named.unknown, sum(layout.depths)),
    }


def _unusual(state: Mapping[str, Tensor], unknown: tuple[str, ...], depth: int) -> list[str]:
    blocks = {int(name.split(".")[1]) for name in state if name.startswith("blocks.")}
    missing = [i for i in range(depth) if i not in blocks]
    found = {
        "not float32: ": [n for n, v in state.items() if v.dtype != torch.float32],
        "NaN or infinite values: ": not_finite(state),
        "all zero: ": [n for n, v in state.items() if n.endswith("weight") and not v.any()],
        "no tensors for blocks ": [str(missing)] if missing else [],
        "outside of the model: ": unknown,
    }
    return [text + listing(names, 4) for text, names in found.items() if names]


def show_inspection(facts: Mapping[str, Any]) -> str:
    """``inspect_checkpoint``'s facts as lines of text."""

    def show(value: Any) -> str:
        if isinstance(value, dict):
            return ", ".join(f"{count} {key}" for key, count in value.items())
        if isinstance(value, (list, tuple)):
            return ", ".join(map(str, value)) or "none"
        return "none" if value is None else f"{value:,}" if type(value) is int else str(value)

    lines = [(key.replace("_", " "), show(v)) for key, v in facts.items() if key != "unusual"]
    lines += [("unusual", text) for text in facts["unusual"] or ["nothing"]]
    width = max(len(key) for key, _ in lines)
    return "\n".join(f"{key.ljust(width)}  {text}" for key, text in lines)


def diff_checkpoints(a: str | os.PathLike[str], b: str | os.PathLike[str]) -> tuple[bool, str]:
    """Compare two files tensor by tensor under the project's names, whatever their formats.

    Values are equal where they are bit for bit, the time axis of one frame of PySlowFast's image
    models aside.

    Returns:
        Whether all tensors are equal, and a table of those that are not.
    """
    files = [read_checkpoint(path, check=False) for path in (a, b)]
    first, second = (to_project(read.file, read.state).state for read in files)
    rows = [("tensor", "a", "b", "difference")]
    names = dict.fromkeys([*first, *second])
    for name in names:
        pair = first.get(name), second.get(name)
        if difference := _difference(*pair):
            one, other = ("" if value is None else show_shape(value.shape) for value in pair)
            rows.append((name, one, other, difference))
    head = f"{len(names) - len(rows) + 1} of {len(names)} tensors are equal"
    return len(rows) == 1, head if len(rows) == 1 else f"{head}\n{table(rows)}"


def _difference(a: Tensor | None, b: Tensor | None) -> str:
    if a is None or b is None:
        return f"only in {'b' if a is None else 'a'}"
    a, b = (x.squeeze(2) if x.ndim == 5 and x.shape[2] == 1 else x for x in (a, b))
    if a.shape != b.shape:
        return "shape"
    if a.dtype != b.dtype:
        return f"{a.dtype} and {b.dtype}"
    if torch.equal(*(x.contiguous().flatten().view(torch.uint8) for x in (a, b))):
        return ""
    if not a.is_floating_point():
        return "values"
    return f"largest {(a.double() - b.double()).abs().max().item():.3g}"
