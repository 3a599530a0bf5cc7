"""Converts checkpoints between the ecosystems' formats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ..config import AbsPos, MViTConfig
from ..model import MViTClassifier
from .fit import PART, centre_frame, fit_state_dict
from .layout import Layout, read_layout
from .names import FORMATS, from_project, to_project
from .positions import ABS_POS, KERNEL, held_grid
from .report import CheckpointError, Entry, LoadReport, listing


def convert_state_dict(
    state: Mapping[str, Tensor],
    to: str,
    *,
    prefix: str = "",
    input_size: tuple[int, ...] | None = None,
    file: str = "the given tensors",
) -> tuple[dict[str, Tensor], LoadReport]:
    """A checkpoint's tensors in another format.

    From clips to a format for images, the centre frame is taken. From images to clips, use
    ``inflate_state_dict``. Tensors that the format has no place for (the head, for a detectron2
    backbone) stay out and are reported as unused.

    Args:
        state: tensors in any known format; not changed.
        to: "image", "slowfast", "detectron2", "timm" or "torchvision".
        prefix: put in front of every name: "backbone.bottom_up." makes a part of a detector.
        input_size: another nominal (H, W) or (T, H, W) to resample the position tables to: linear
            for relative positions, bicubic for absolute ones of images. Published variants only.
        file: what messages call the checkpoint.

    Returns:
        The tensors, which share memory with ``state`` where nothing was changed, and a report
        whose names are the new format's.

    Raises:
        CheckpointError: names of no known format, or a model that ``to`` cannot hold.
    """
    if to not in FORMATS:
        raise CheckpointError(f"{file}: format must be one of {', '.join(FORMATS)}, got {to!r}")
    named = to_project(file, state)
    if named.unknown and named.format != "detectron2":
        raise CheckpointError(f"{file}: no {named.format} names: {listing(named.unknown)}")
    current: dict[str, Tensor] = named.known
    entries = [_kept(name, value) for name, value in current.items()]
    _check_target(file, current, to)
    if input_size is not None:
        current, entries = _resize(file, current, input_size)
    if 3 not in FORMATS[to].ranks or read_layout(current).rank == 2:
        current, steps = centre_frame(current)
        lost = [e for e in steps if e.name in ABS_POS and e.status == "unused" and e.note != PART]
        if lost:
            raise CheckpointError(f"{file}: {lost[0].name} cannot be converted: {lost[0].note}")
        entries = _chain(entries, steps)
        if to == "slowfast":
            # PySlowFast's image models pool with a time axis of one frame.
            current = {n: _deep(n, value) for n, value in current.items()}
    renamed, targets = from_project(current, to, prefix)
    report = []
    for entry in entries:
        source = None if entry.source is None else named.sources[entry.source]
        if entry.status == "unused" or entry.name in targets:
            name = entry.name if entry.status == "unused" else targets[entry.name]
            shape = entry.shape if name not in renamed else tuple(renamed[name].shape)
            report.append(replace(entry, name=name, shape=shape, source=source))
        else:
            note = f"no place in {to}"
            report.append(replace(entry, status="unused", source=source, note=note))
    for name in named.unknown:
        shape = tuple(state[name].shape)
        report.append(Entry(name, "unused", shape, name, shape, "outside of the backbone"))
    return renamed, LoadReport(file, tuple(report), named.format)


def _kept(name: str, value: Tensor) -> Entry:
    return Entry(name, "loaded", tuple(value.shape), name, tuple(value.shape))


def _deep(name: str, value: Tensor) -> Tensor:
    pool = name != "patch_embed.proj.weight" and KERNEL.fullmatch(name)
    return value.unsqueeze(2) if pool and value.ndim == 4 else value


def _chain(first: list[Entry], then: list[Entry]) -> list[Entry]:
    """Entries of two steps as one: the second step's sources are the first one's names."""
    before = {entry.name: entry for entry in first if entry.status != "unused"}
    chained = [entry for entry in first if entry.status == "unused"]
    for entry in then:
        origin = before[entry.source or entry.name]
        status = origin.status if entry.status == "loaded" else entry.status
        note = "; ".join(note for note in (origin.note, entry.note) if note)
        chained.append(
            replace(
                entry,
                status=status,
                source=origin.source,
                source_shape=origin.source_shape,
                note=note,
            )
        )
    return chained


def _check_target(file: str, state: Mapping[str, Tensor], to: str) -> None:
    layout, row = read_layout(state), FORMATS[to]
    if layout.rank not in row.ranks and layout.rank == 2:
        raise CheckpointError(
            f"{file}: holds {layout}, and {row.source} takes clips: inflate it first"
        )
    if row.needs_cls_token and not layout.cls_token:
        raise CheckpointError(f"{file}: has no class token, which {row.source} cannot do without")
    if layout.in_att is False and not row.grows_in_mlp:
        raise CheckpointError(
            f"{file}: its width grows in the MLP, in {row.source} it grows in attention"
        )


def _resize(
    file: str, state: Mapping[str, Tensor], input_size: tuple[int, ...]
) -> tuple[dict[str, Tensor], list[Entry]]:
    layout = read_layout(state)
    if layout.variant is None:
        raise CheckpointError(f"{file}: only published variants can be resized, it holds {layout}")
    if len(input_size) != layout.rank:
        raise CheckpointError(f"{file}: input_size must have {layout.rank} sizes, got {input_size}")
    config = _sized(state, layout, input_size)
    with torch.device("meta"):
        shapes = {n: tuple(v.shape) for n, v in MViTClassifier(config).state_dict().items()}
    # Only position tables follow the size; everything else keeps the file's shape.
    wanted = {
        name: shapes[name] if "pos_" in name and name in shapes else tuple(value.shape)
        for name, value in state.items()
    }
    fitted, entries = fit_state_dict(state, wanted, config)
    if len(fitted) < len(state):
        lost = [name for name in state if name not in fitted]
        raise CheckpointError(f"{file}: cannot be resized to {input_size}: {listing(lost)}")
    return fitted, entries


def _sized(state: Mapping[str, Tensor], layout: Layout, input_size: tuple[int, ...]) -> MViTConfig:
    """A config whose position tables are those of ``state`` at another size."""
    config = MViTConfig.variant(
        layout.variant or "", input_size, dim_mul_in_att=layout.in_att is not False
    )
    abs_pos: AbsPos = "joint" if "pos_embed" in state else "none"
    if "pos_embed_spatial" in state:
        abs_pos = "separate"
    return replace(
        config,
        abs_pos=abs_pos,
        cls_token=layout.cls_token,
        abs_pos_cls_row=layout.cls_token or held_grid(state)[1],
    )
