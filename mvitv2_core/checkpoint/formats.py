"""What each ecosystem's checkpoints look like: where the weights lie, and what tensors are called.

One table of names per format, read both ways. The project's names are those of the official
repositories, so most rows are the identity.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .report import CheckpointError

# Every name that an MViTv2 can have here. {i} block, {x} one of q, k, v, {a} axis, {p} weight or
# bias, {n} scale. In timm's, {m} is where the width grows.
# fmt: off
NAMES = (
    "patch_embed.proj.{p}", "cls_token",
    "pos_embed", "pos_embed_spatial", "pos_embed_temporal", "pos_embed_class",
    "blocks.{i}.norm1.{p}", "blocks.{i}.attn.qkv.{p}", "blocks.{i}.attn.proj.{p}",
    "blocks.{i}.attn.pool_{x}.weight", "blocks.{i}.attn.norm_{x}.{p}",
    "blocks.{i}.attn.rel_pos_{a}", "blocks.{i}.norm2.{p}", "blocks.{i}.mlp.fc1.{p}",
    "blocks.{i}.mlp.fc2.{p}", "blocks.{i}.proj.{p}",
    "norm.{p}", "head.projection.{p}", "scale{n}_norm.{p}",
)
# fmt: on
FIELDS = {"i": r"\d+", "x": "[qkv]", "a": "[thw]", "p": "weight|bias", "n": "[2-5]"}
TIME = ("pos_embed_spatial", "pos_embed_temporal", "pos_embed_class")
SCALES = ("scale{n}_norm.{p}",)
KERNELS = re.compile(r"patch_embed\.proj\.weight|blocks\.\d+\.attn\.pool_[qkv]\.weight")
DETECTOR, STAGE = "backbone.bottom_up.", r"stages\.(\d+)\.blocks\.(\d+)\."
# Where files keep the weights, and where a moving average of them: timm's trainer; DeiT's,
# ConvNeXt's and torchvision's; d2go's; others'.
NESTS = ("model_state", "state_dict", "model")
EMA_NESTS = ("state_dict_ema", "model_ema", "ema_state", "ema_state_dict", "ema")
COMPILED, WRAPPERS = "_orig_mod", ("module.", "model.")  # torch.compile; DDP, Lightning


@dataclass(frozen=True)
class Format:
    """One ecosystem's checkpoints."""

    source: str  # whose they are
    ranks: tuple[int, ...]  # 2 where it holds images, 3 where it holds clips
    lacks: tuple[str, ...]  # the project's names that it has no place for
    renamed: Mapping[str, str] = field(default_factory=dict)  # its names where they differ
    one_model: bool = False  # it has one alone: with class token, width growing in attention

    def table(self, in_att: bool = True) -> dict[str, str]:
        """Its name of each of the project's that it has a place for."""
        kept = [name for name in NAMES if name not in self.lacks]
        place = "attn" if in_att else "mlp"
        return {name: self.renamed.get(name, name).replace("{m}", place) for name in kept}


_TIMM = {  # whose blocks are numbered inside of stages: see _from_stages
    "blocks.{i}.proj.{p}": "blocks.{i}.shortcut_proj_{m}.{p}",
    "head.projection.{p}": "head.fc.{p}",
}
_TORCHVISION = {
    "patch_embed.proj.{p}": "conv_proj.{p}",
    "cls_token": "pos_encoding.class_token",
    "blocks.{i}.attn.pool_{x}.weight": "blocks.{i}.attn.pool_{x}.pool.weight",
    "blocks.{i}.attn.norm_{x}.{p}": "blocks.{i}.attn.pool_{x}.norm_act.0.{p}",
    "blocks.{i}.attn.proj.{p}": "blocks.{i}.attn.project.0.{p}",
    "blocks.{i}.mlp.fc1.{p}": "blocks.{i}.mlp.0.{p}",
    "blocks.{i}.mlp.fc2.{p}": "blocks.{i}.mlp.3.{p}",
    "blocks.{i}.proj.{p}": "blocks.{i}.project.{p}",
    "head.projection.{p}": "head.1.{p}",
}
_HEAD = ("cls_token", "norm.{p}", "head.projection.{p}")
_MARKS = {  # what begins names of theirs alone
    "detectron2": r"backbone\.bottom_up\.|scale[2-5]_norm\.",
    "timm": STAGE,
    "torchvision": r"conv_proj\.weight$",
}
FORMATS = {
    "image": Format("facebookresearch/mvit", (2,), (*TIME, *SCALES)),
    "slowfast": Format("PySlowFast", (2, 3), SCALES),
    "detectron2": Format("detectron2", (2,), (*TIME, *_HEAD)),
    "timm": Format("timm", (2,), (*TIME, *SCALES), _TIMM),
    "torchvision": Format(
        "torchvision", (3,), ("pos_embed", *TIME, *SCALES), _TORCHVISION, one_model=True
    ),
}


class Renamer:
    """Renames by a table of templates; None for names that no row matches."""

    def __init__(self, table: Mapping[str, str]) -> None:
        def pattern(template: str) -> str:
            fields = r"\\{(\w)\\}"
            return re.sub(fields, lambda m: f"(?P<{m[1]}>{FIELDS[m[1]]})", re.escape(template))

        self.rows = [(re.compile(pattern(old)), new) for old, new in table.items()]

    def __call__(self, name: str) -> str | None:
        for pattern, new in self.rows:
            if found := pattern.fullmatch(name):
                return new.format(**found.groupdict())
        return None


def weights_keys(file: str, content: Mapping[Any, Any]) -> tuple[str, str]:
    """The keys of the weights ("" for the top) and of their moving average ("" without one)."""

    def only(keys: tuple[str, ...]) -> str:
        found = [key for key in keys if isinstance(content.get(key), Mapping) and content[key]]
        if len(found) > 1:
            raise CheckpointError(f"{file}: holds weights under each of {', '.join(found)}")
        return found[0] if found else ""

    # Lightning's WeightAveraging puts the average in the weights' place and the weights aside.
    if "averaging_state" in content and "current_model_state" in content:
        return "current_model_state", "state_dict"
    return only(NESTS), only(EMA_NESTS)


def average_inside(content: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """A moving average's tensors without its counters, which lie around or beside them."""
    for inside in ("module", *NESTS):
        if isinstance(content.get(inside), Mapping):
            return content[inside]
    return {name: value for name, value in content.items() if name != "n_averaged"}


def wrapped(state: Mapping[str, Any], format: str) -> dict[str, Any]:
    """What a format's files hold: the weights, under the key that its readers look for."""
    if format in ("image", "slowfast"):
        return {"model_state": dict(state)}
    if format == "detectron2":
        # The last key makes detectron2 match names by their endings, as for its own backbones.
        return {"model": dict(state), "__author__": "mvitv2", "matching_heuristics": True}
    return dict(state)


def unwrapped(state: Mapping[str, Any]) -> dict[str, str]:
    """Each name without ``_orig_mod.``, and without ``module.`` or ``model.`` if all have it."""
    plain = {name: uncompiled(name) for name in state}
    while wrapper := [w for w in WRAPPERS if all(n.startswith(w) for n in plain.values())]:
        plain = {name: short.removeprefix(wrapper[0]) for name, short in plain.items()}
    return plain


def uncompiled(name: str) -> str:
    """A tensor's name without ``torch.compile``'s part of it."""
    return ".".join(part for part in name.split(".") if part != COMPILED)


def of_the_model(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The backbone's tensors of a full detector's file, whose heads may count in whole numbers
    (BatchNorm's ``num_batches_tracked``); all of another file."""
    return {name: value for name, value in state.items() if name.startswith(DETECTOR)} or state


@dataclass(frozen=True)
class Named:
    """A checkpoint's tensors under the project's names."""

    format: str  # whose names it had
    state: dict[str, Tensor]  # under the project's names; those without one keep their own
    sources: dict[str, str]  # the checkpoint's own name of each
    unknown: tuple[str, ...]  # names that the format does not know

    @property
    def known(self) -> dict[str, Tensor]:
        """The tensors that the format knows."""
        return {name: value for name, value in self.state.items() if name not in self.unknown}

    @property
    def beside(self) -> tuple[str, ...]:
        """What a full detector's file holds beside the backbone; nothing in other files."""
        detector = any(name.startswith(DETECTOR) for name in self.sources.values())
        return self.unknown if detector else ()


def detect(file: str, state: Mapping[str, Tensor]) -> str:
    """Name of the format that a checkpoint's names are of; CheckpointError if of none."""
    for format, mark in _MARKS.items():
        if any(re.match(mark, name) for name in state):
            return format
    known = Renamer({name: name for name in NAMES})
    if any(known(name) for name in state):
        deep = any(v.ndim == 5 for name, v in state.items() if KERNELS.fullmatch(name))
        return "slowfast" if deep else "image"
    first = ", ".join(sorted(state)[:3])
    raise CheckpointError(f"{file}: names of no known MViTv2 checkpoint: {first}, ...")


def to_project(file: str, state: Mapping[str, Tensor]) -> Named:
    """A checkpoint's tensors under the project's names; their values are shared, not copied.

    Raises:
        CheckpointError: names of no known format, or two names become one; names ``file``.
    """
    format = detect(file, state)
    tables = (FORMATS[format].table(in_att) for in_att in (True, False))
    rename = Renamer({new: old for table in tables for old, new in table.items()})
    theirs: Mapping[str, str] = _from_stages(state) if format == "timm" else {n: n for n in state}
    # In a full detector's file other tensors lie beside the backbone's.
    inside = DETECTOR if any(name.startswith(DETECTOR) for name in state) else ""
    named: dict[str, Tensor] = {}
    sources: dict[str, str] = {}
    unknown = []
    for original, name in theirs.items():
        value = state[original]
        ours = rename(name.removeprefix(inside)) if name.startswith(inside) else None
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

    Returns:
        Tensors by the format's names, ``prefix`` in front of each, and the format's name of each
        of the project's that it has a place for.
    """
    starts, in_att = stage_starts(state)
    rename = Renamer(FORMATS[format].table(in_att is not False))
    renamed: dict[str, Tensor] = {}
    targets: dict[str, str] = {}
    for ours, value in state.items():
        name = rename(ours)
        if name is None:
            continue
        if format == "timm" and (found := re.match(r"blocks\.(\d+)\.", name)):
            stage = bisect_right(starts[:-1], int(found[1])) - 1
            place = f"stages.{stage}.blocks.{int(found[1]) - starts[stage]}."
            name = place + name[found.end() :]
        if ours == "cls_token" and format == "torchvision":
            value = value.reshape(-1)
        renamed[prefix + name], targets[ours] = value, prefix + name
    return renamed, targets


def _from_stages(state: Mapping[str, Tensor]) -> dict[str, str]:
    """timm's names with blocks counted through: stages.1.blocks.0 -> blocks.1 after one block."""
    found = {name: re.match(STAGE, name) for name in state}
    places = sorted({(int(m[1]), int(m[2])) for m in found.values() if m})
    return {
        name: f"blocks.{places.index((int(m[1]), int(m[2])))}.{name[m.end() :]}" if m else name
        for name, m in found.items()
    }


def stage_starts(state: Mapping[str, Tensor]) -> tuple[list[int], bool | None]:
    """First block of each stage, where the width grows, and the number of blocks at the end.

    Returns:
        These numbers, and whether the width grows in attention; None where it never grows.
    """
    blocks = {int(m[1]) for name in state if (m := re.match(r"blocks\.(\d+)\.", name))}
    depth = max(blocks, default=-1) + 1
    # A block whose width grows has a projection of its shortcut.
    growing = sorted(i for i in blocks if f"blocks.{i}.proj.weight" in state)
    if not growing:
        return [0, depth], None
    attn = f"blocks.{growing[0]}.attn"
    in_att = size(state, f"{attn}.qkv.weight", 1) != size(state, f"{attn}.proj.weight")
    return [0, *(i if in_att else i + 1 for i in growing), depth], in_att


def size(state: Mapping[str, Tensor], name: str, axis: int = 0) -> int | None:
    """Length of a tensor along an axis; None without such a tensor or axis."""
    tensor = state.get(name)
    return tensor.shape[axis] if tensor is not None and tensor.ndim > axis else None


def is_clip(state: Mapping[str, Tensor]) -> bool:
    """Whether a model is for clips: kernels over more than one frame, or positions in time."""
    return any(
        re.fullmatch(r"blocks\.\d+\.attn\.rel_pos_t", name)
        or (value.ndim == 5 and value.shape[2] > 1 and KERNELS.fullmatch(name))
        for name, value in state.items()
    )
