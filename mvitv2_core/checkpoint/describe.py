"""What model a checkpoint is of, by names and shapes alone, and what its file holds, for people:
``mvitv2 inspect`` and ``mvitv2 diff``."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..rows import VARIANTS
from .files import read_checkpoint
from .formats import FORMATS, stage_starts, to_project
from .report import listing, show_shape, table


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
    starts, in_att = stage_starts(state)

    def size(name: str, axis: int = 0) -> int | None:
        tensor = state.get(name)
        return tensor.shape[axis] if tensor is not None and tensor.ndim > axis else None

    depths = tuple(end - start for start, end in pairwise(starts))
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
            return None
        sizes.append((table.shape[0] + 1) // 2 * stride)
    return tuple(sizes)


def inspect_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Format, structure and oddities of a checkpoint file, ready for JSON.

    Raises:
        CheckpointError: the file cannot be read, or its names are no MViTv2's.
    """
    checkpoint = read_checkpoint(path, check=False)
    named = to_project(checkpoint.file, checkpoint.state)
    state = named.known
    layout = read_layout(state)
    dtypes = Counter(str(value.dtype).removeprefix("torch.") for value in state.values())
    return {
        "file": checkpoint.file,
        "container": checkpoint.container,
        "weights_under": checkpoint.nest or None,
        "beside_the_weights": list(checkpoint.beside),
        "ema_weights_under": checkpoint.ema or None,
        "format": named.format,
        "format_of": FORMATS[named.format].source,
        "variant": layout.variant,
        "kind": "clips" if layout.rank == 3 else "images",
        "rank": layout.rank,
        "depths": list(layout.depths),
        "embed_dim": layout.embed_dim,
        "num_heads": layout.num_heads,
        "width_grows_in": {True: "attention", False: "MLP", None: None}[layout.in_att],
        "cls_token": layout.cls_token,
        "num_classes": layout.num_classes,
        "input_size": None if layout.input_size is None else list(layout.input_size),
        "tensors": len(state),
        "parameters": sum(value.numel() for value in state.values()),
        "dtypes": dict(dtypes),
        "tensors_outside_of_the_model": len(named.unknown),
        "unusual": _unusual(state, named.unknown, layout.depths),
    }


def _unusual(
    state: Mapping[str, Tensor], unknown: tuple[str, ...], depths: tuple[int, ...]
) -> list[str]:
    found = []
    odd = [n for n, value in state.items() if value.dtype != torch.float32]
    if odd:
        found.append(f"not float32: {listing(odd, 4)}")
    plain = {n: v for n, v in state.items() if v.dtype.is_floating_point}
    broken = [n for n, value in plain.items() if not torch.isfinite(value).all()]
    if broken:
        found.append(f"NaN or infinite values: {listing(broken, 4)}")
    zero = [n for n, v in plain.items() if n.endswith("weight") and not v.any()]
    if zero:
        found.append(f"all zero: {listing(zero, 4)}")
    blocks = {int(name.split(".")[1]) for name in state if name.startswith("blocks.")}
    missing = sorted(set(range(sum(depths))) - blocks)
    if missing:
        found.append(f"no tensors for blocks {missing}")
    if unknown:
        found.append(f"outside of the model: {listing(unknown, 4)}")
    return found


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
    states = []
    for path in (a, b):
        checkpoint = read_checkpoint(path, check=False)
        states.append(to_project(checkpoint.file, checkpoint.state).state)
    rows = [("tensor", "a", "b", "difference")]
    first, second = states
    for name in list(first) + [name for name in second if name not in first]:
        ours, theirs = first.get(name), second.get(name)
        if ours is None or theirs is None:
            where = "a" if theirs is None else "b"
            rows.append((name, _show(ours), _show(theirs), f"only in {where}"))
            continue
        difference = _difference(ours, theirs)
        if difference:
            rows.append((name, _show(ours), _show(theirs), difference))
    equal = len(rows) == 1
    total = len(set(first) | set(second))
    head = f"{total - len(rows) + 1} of {total} tensors are equal"
    return equal, head if equal else f"{head}\n{table(rows)}"


def _show(value: Tensor | None) -> str:
    return "" if value is None else show_shape(tuple(value.shape))


def _difference(a: Tensor, b: Tensor) -> str:
    a, b = (x.squeeze(2) if x.ndim == 5 and x.shape[2] == 1 else x for x in (a, b))
    if a.shape != b.shape:
        return "shape"
    if a.dtype != b.dtype:
        return f"{a.dtype} and {b.dtype}"
    if a.dtype.is_floating_point:
        same = torch.equal(_bits(a), _bits(b))
        return "" if same else f"largest {(a.double() - b.double()).abs().max().item():.3g}"
    return "" if torch.equal(a, b) else "values"


def _bits(value: Tensor) -> Tensor:
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return value.contiguous().view(kinds[value.element_size()])
