"""Names of tensors in each ecosystem's checkpoints: one table per format, read both ways.

The project's names are those of the official repositories, so most rows are the identity.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from .layout import Layout, read_layout
from .report import CheckpointError

# Every name that an MViTv2 can have here. {i} block, {x} one of q, k, v, {a} axis, {p} weight or
# bias, {n} scale.
NAMES = (
    "patch_embed.proj.{p}",
    "cls_token",
    "pos_embed",
    "pos_embed_spatial",
    "pos_embed_temporal",
    "pos_embed_class",
    "blocks.{i}.norm1.{p}",
    "blocks.{i}.attn.qkv.{p}",
    "blocks.{i}.attn.proj.{p}",
    "blocks.{i}.attn.pool_{x}.weight",
    "blocks.{i}.attn.norm_{x}.{p}",
    "blocks.{i}.attn.rel_pos_{a}",
    "blocks.{i}.norm2.{p}",
    "blocks.{i}.mlp.fc1.{p}",
    "blocks.{i}.mlp.fc2.{p}",
    "blocks.{i}.proj.{p}",
    "norm.{p}",
    "head.projection.{p}",
    "scale{n}_norm.{p}",
)
FIELDS = {"i": r"\d+", "x": "[qkv]", "a": "[thw]", "p": "weight|bias", "n": "[2-5]"}
TIME = ("pos_embed_spatial", "pos_embed_temporal", "pos_embed_class", "blocks.{i}.attn.rel_pos_t")
SCALES = ("scale{n}_norm.{p}",)
DETECTOR = "backbone.bottom_up."


@dataclass(frozen=True)
class Format:
    """One ecosystem's checkpoints.

    Args:
        name: what the format is called on the command line.
        source: whose it is.
        ranks: 2 where it holds images, 3 where it holds clips.
        renamed: its names, where they differ from the project's.
        renamed_mlp: the same for models whose width grows in the MLP, where they differ again.
        lacks: the project's names that it has no place for.
        needs_cls_token: whether all of its models have a class token.
        grows_in_mlp: whether it knows models whose width grows in the MLP.
    """

    name: str
    source: str
    ranks: tuple[int, ...]
    renamed: Mapping[str, str] = field(default_factory=dict)
    renamed_mlp: Mapping[str, str] = field(default_factory=dict)
    lacks: tuple[str, ...] = ()
    needs_cls_token: bool = False
    grows_in_mlp: bool = True

    def table(self, in_att: bool = True) -> dict[str, str]:
        """Its name of each of the project's that it has a place for."""
        renamed = {**self.renamed, **({} if in_att else self.renamed_mlp)}
        return {name: renamed.get(name, name) for name in NAMES if name not in self.lacks}


FORMATS = {
    row.name: row
    for row in (
        Format("image", "facebookresearch/mvit", (2,), lacks=(*TIME, *SCALES)),
        Format("slowfast", "PySlowFast", (2, 3), lacks=SCALES),
        Format(
            "detectron2",
            "detectron2",
            (2,),
            lacks=(*TIME, "cls_token", "norm.{p}", "head.projection.{p}"),
        ),
        Format(
            "timm",
            "timm",
            (2,),
            # Blocks are numbered inside of stages there: see _to_stages.
            renamed={
                "blocks.{i}.proj.{p}": "blocks.{i}.shortcut_proj_attn.{p}",
                "head.projection.{p}": "head.fc.{p}",
            },
            renamed_mlp={"blocks.{i}.proj.{p}": "blocks.{i}.shortcut_proj_mlp.{p}"},
            lacks=(*TIME, *SCALES),
        ),
        Format(
            "torchvision",
            "torchvision",
            (3,),
            renamed={
                "patch_embed.proj.{p}": "conv_proj.{p}",
                "cls_token": "pos_encoding.class_token",
                "blocks.{i}.attn.pool_{x}.weight": "blocks.{i}.attn.pool_{x}.pool.weight",
                "blocks.{i}.attn.norm_{x}.{p}": "blocks.{i}.attn.pool_{x}.norm_act.0.{p}",
                "blocks.{i}.attn.proj.{p}": "blocks.{i}.attn.project.0.{p}",
                "blocks.{i}.mlp.fc1.{p}": "blocks.{i}.mlp.0.{p}",
                "blocks.{i}.mlp.fc2.{p}": "blocks.{i}.mlp.3.{p}",
                "blocks.{i}.proj.{p}": "blocks.{i}.project.{p}",
                "head.projection.{p}": "head.1.{p}",
            },
            lacks=("pos_embed", *TIME[:3], *SCALES),
            needs_cls_token=True,
            grows_in_mlp=False,
        ),
    )
}


class Renamer:
    """Renames by a table of templates; None for names that no row matches."""

    def __init__(self, table: Mapping[str, str]) -> None:
        self.rows = [(re.compile(_pattern(old)), new) for old, new in table.items()]

    def __call__(self, name: str) -> str | None:
        for pattern, new in self.rows:
            found = pattern.fullmatch(name)
            if found:
                return new.format(**found.groupdict())
        return None


def _pattern(template: str) -> str:
    parts = re.split(r"\{(\w)\}", template)
    return "".join(
        f"(?P<{part}>{FIELDS[part]})" if index % 2 else re.escape(part)
        for index, part in enumerate(parts)
    )


@dataclass(frozen=True)
class Named:
    """A checkpoint's tensors under the project's names.

    Args:
        format: whose names it had.
        state: tensors under the project's names; those without one keep their own.
        sources: the checkpoint's own name of each.
        unknown: names that the format does not know.
    """

    format: str
    state: dict[str, Tensor]
    sources: dict[str, str]
    unknown: tuple[str, ...]

    @property
    def known(self) -> dict[str, Tensor]:
        """The tensors that the format knows."""
        unknown = set(self.unknown)
        return {name: value for name, value in self.state.items() if name not in unknown}


def detect(file: str, state: Mapping[str, Tensor]) -> str:
    """Name of the format that a checkpoint's names are of.

    Raises:
        CheckpointError: none is recognised.
    """
    if any(re.match(rf"{re.escape(DETECTOR)}|scale[2-5]_norm\.", name) for name in state):
        return "detectron2"
    if any(re.match(r"stages\.\d+\.blocks\.\d+\.", name) for name in state):
        return "timm"
    if "conv_proj.weight" in state:
        return "torchvision"
    if any(Renamer({name: name for name in NAMES})(name) for name in state):
        deep = any(v.ndim == 5 for name, v in state.items() if KERNELS.search(name))
        return "slowfast" if deep else "image"
    first = ", ".join(sorted(state)[:3])
    raise CheckpointError(f"{file}: names of no known MViTv2 checkpoint: {first}, ...")


KERNELS = re.compile(r"^patch_embed\.proj\.weight|\.pool_[qkv]\.weight$")


def to_project(file: str, state: Mapping[str, Tensor], format: str = "") -> Named:
    """A checkpoint's tensors under the project's names; their values are shared, not copied.

    Args:
        file: for messages.
        state: tensors by the checkpoint's names.
        format: a key of ``FORMATS``; empty to recognise it.

    Raises:
        CheckpointError: the format is not recognised, or two names become one.
    """
    format = format or detect(file, state)
    row = FORMATS[format]
    theirs = {name: name for name in state}
    if format == "detectron2":
        # A full detector's file holds its backbone under a prefix, and other tensors beside it.
        if any(name.startswith(DETECTOR) for name in state):
            inside = {n for n in state if n.startswith(DETECTOR)}
            theirs = {n: n.removeprefix(DETECTOR) if n in inside else f"\0{n}" for n in state}
    elif format == "timm":
        theirs = _from_stages(state)
    rename = Renamer({new: old for old, new in row.table().items()})
    rename_mlp = Renamer({new: old for old, new in row.table(False).items()})
    named: dict[str, Tensor] = {}
    sources: dict[str, str] = {}
    unknown = []
    for original, name in theirs.items():
        ours = rename(name) or rename_mlp(name)
        value = state[original]
        if ours is None:
            ours = original
            unknown.append(original)
        if ours in named:
            raise CheckpointError(f"{file}: {sources[ours]} and {original} are the same tensor")
        if ours == "cls_token" and format == "torchvision":
            value = value.reshape(1, 1, -1)
        named[ours], sources[ours] = value, original
    return Named(format, named, sources, tuple(unknown))


def from_project(
    state: Mapping[str, Tensor], format: str, prefix: str = ""
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors under another format's names: what it has no place for stays out.

    Args:
        state: tensors under the project's names.
        format: a key of ``FORMATS``.
        prefix: put in front of every name, such as ``DETECTOR``.

    Returns:
        Tensors by the format's names, and the format's name of each of the project's that it has
        a place for.
    """
    layout = read_layout(state)
    rename = Renamer(FORMATS[format].table(layout.in_att is not False))
    renamed: dict[str, Tensor] = {}
    targets: dict[str, str] = {}
    for ours, value in state.items():
        name = rename(ours)
        if name is None:
            continue
        if format == "timm":
            name = _to_stages(name, layout)
        if ours == "cls_token" and format == "torchvision":
            value = value.reshape(-1)
        renamed[prefix + name], targets[ours] = value, prefix + name
    return renamed, targets


def _from_stages(state: Mapping[str, Tensor]) -> dict[str, str]:
    """timm's names with blocks counted through: stages.1.blocks.0 -> blocks.1 after one block."""
    pattern = re.compile(r"stages\.(\d+)\.blocks\.(\d+)\.")
    places = sorted({(int(m[1]), int(m[2])) for m in (pattern.match(name) for name in state) if m})
    flat = {place: index for index, place in enumerate(places)}

    def rename(name: str) -> str:
        found = pattern.match(name)
        if found is None:
            return name
        return f"blocks.{flat[int(found[1]), int(found[2])]}.{name[found.end() :]}"

    return {name: rename(name) for name in state}


def _to_stages(name: str, layout: Layout) -> str:
    found = re.match(r"blocks\.(\d+)\.", name)
    if found is None:
        return name
    stage, block = layout.place(int(found[1]))
    return f"stages.{stage}.blocks.{block}.{name[found.end() :]}"
