"""Check a detection config, Python or YAML, without data, weights or training.

    python projects/detection/check_config.py projects/detection/configs/mask_rcnn_mvitv2_t_3x.py
    python projects/detection/check_config.py configs/COCO/mask_rcnn_mvitv2_t_3x.yaml \\
        --size 800 1280 MODEL.MVITV2.WINDOW_SIZE 28

Builds the model on the meta device and prints stages, windows, strides, table sizes, parameters,
multiply-adds, training memory and how the official image checkpoint fits. Ends with status 1
where it does not fit.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import torch
from detectron2.config import LazyConfig, get_cfg, instantiate
from detectron2.modeling import build_model
from tabulate import tabulate
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mvitv2_core import MViTClassifier
from mvitv2_core.checkpoint.hub import OFFICIAL, PREFIX
from mvitv2_core.cost import trunk_cost
from mvitv2_d2 import MViT, add_mvitv2_config
from projects.detection.cost import (
    DETECTIONS,
    PROPOSALS,
    detector_flops,
    padded,
    training_bytes,
)


@dataclass(frozen=True)
class Fit:
    """How an image checkpoint's tensors meet the backbone's, by name and shape.

    Args:
        fitting: names that load.
        new: the backbone's names that the checkpoint lacks: they start afresh.
        unused: the checkpoint's names that the backbone has no place for.
        other_shape: names that both have, in different shapes. A trainer leaves them random.
    """

    fitting: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    other_shape: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether only what detection adds is new: norms of the feature maps, and pos_embed."""
        added = all(name.startswith("scale") or name == "pos_embed" for name in self.new)
        return added and not self.other_shape


def fit(backbone: nn.Module, checkpoint: nn.Module) -> Fit:
    """Compare two models' state dicts."""
    ours, theirs = backbone.state_dict(), checkpoint.state_dict()
    both = [name for name in ours if name in theirs]
    return Fit(
        fitting=[name for name in both if ours[name].shape == theirs[name].shape],
        new=[name for name in ours if name not in theirs],
        unused=[name for name in theirs if name not in ours],
        other_shape=[name for name in both if ours[name].shape != theirs[name].shape],
    )


@cache
def official_checkpoint(path: str) -> nn.Module | None:
    """The official classifier that ``path`` names, on the meta device; None for other files.

    Args:
        path: ``mvitv2://NAME``, or any path that ends with the name of an official file.

    Raises:
        ValueError: an unknown name after ``mvitv2://``.
    """
    name, file = path.removeprefix(PREFIX), path.rsplit("/", 1)[-1]
    if path.startswith(PREFIX):
        if name not in OFFICIAL:
            raise ValueError(f"{PREFIX}NAME must be one of {', '.join(OFFICIAL)}, got {path!r}")
        official = OFFICIAL[name]
    else:
        official = next((row for row in OFFICIAL.values() if row.file == file), None)
    if official is None or official.config is None:
        return None
    with torch.device("meta"):
        return MViTClassifier(official.config())


def load(path: str, opts: Sequence[str] = ()) -> tuple[nn.Module, str, Any]:
    """Build a config's model on the meta device.

    Args:
        path: a LazyConfig (.py) or a YAML file (.yaml, .yml).
        opts: overrides as the trainers take them: KEY=VALUE, or KEY VALUE for YAML.

    Returns:
        The model, the name of its initial checkpoint, and the config.

    Raises:
        ValueError: another ending, or a backbone that is not an FPN over ``mvitv2_d2.MViT``.
    """
    ending = Path(path).suffix
    if ending == ".py":
        cfg = LazyConfig.apply_overrides(LazyConfig.load(path), list(opts))
        checkpoint = cfg.train.init_checkpoint
        with torch.device("meta"):
            model = instantiate(cfg.model)
    elif ending in (".yaml", ".yml"):
        cfg = get_cfg()
        add_mvitv2_config(cfg)
        cfg.merge_from_file(path)
        cfg.merge_from_list(list(opts))
        cfg.MODEL.DEVICE = "meta"
        checkpoint = cfg.MODEL.WEIGHTS
        with torch.device("meta"):
            model = build_model(cfg)
    else:
        raise ValueError(f"config must end with .py, .yaml or .yml, got {path!r}")
    if not isinstance(getattr(model.backbone, "bottom_up", None), MViT):
        raise ValueError(f"backbone must be an FPN over mvitv2_d2.MViT, got {type(model.backbone)}")
    return model, checkpoint, cfg


def spread(values: Sequence[Any]) -> str:
    """Values of consecutive blocks, repeats counted: "56, 28 x10, 0"."""
    runs: list[list[Any]] = []
    for value in values:
        if runs and runs[-1][0] == value:
            runs[-1][1] += 1
        else:
            runs.append([value, 1])
    return ", ".join(str(value) if n == 1 else f"{value} x{n}" for value, n in runs)


def listed(names: Sequence[str], most: int = 8) -> str:
    """The number of names and the first of them."""
    shown = ", ".join(names[:most]) + (", ..." if len(names) > most else "")
    return f"{len(names)}: {shown}" if names else "0"


def stage_rows(backbone: Any, hw: Sequence[int]) -> list[dict[str, Any]]:
    """One row per stage: shapes, windows, strides, table sizes, parameters, GFLOPs."""
    config = backbone.config
    costs = trunk_cost(config, hw)[1:]  # without the patch embedding
    rows, start = [], 0
    for stage, end in enumerate(config.stage_ends):
        specs, stage_costs = config.blocks[start : end + 1], costs[start : end + 1]
        rows.append(
            {
                "stage": f"scale{stage + 2}",
                "blocks": f"{start}-{end}" if end > start else f"{start}",
                "dim": specs[-1].dim_out,
                "heads": specs[-1].num_heads,
                "grid": "x".join(map(str, stage_costs[-1].thw_out)),
                "q stride": spread([spec.stride_q[0] for spec in specs]),
                "kv stride": spread([spec.stride_kv[0] for spec in specs]),
                "window (0: global)": spread([spec.window_size for spec in specs]),
                "rel_pos rows": spread([spec.table_length(0) for spec in specs])
                if any(config.rel_pos)
                else "none",
                "params (M)": sum(cost.parameters for cost in stage_costs) / 1e6,
                "GFLOPs": sum(cost.flops for cost in stage_costs) / 1e9,
            }
        )
        start = end + 1
    return rows


def parameters_by_part(model: Any) -> dict[str, int]:
    """Parameters under the names that ``detector_flops`` uses."""
    heads = getattr(model, "roi_heads", None)
    modules = {
        "backbone": [model.backbone.bottom_up],
        "dense head": [getattr(model, "head", None)],
        "rpn": [getattr(model, "proposal_generator", None)],
        "semantic head": [getattr(model, "sem_seg_head", None)],
        "box heads": [getattr(heads, "box_head", None), getattr(heads, "box_predictor", None)],
        "mask head": [getattr(heads, "mask_head", None)],
        "keypoint head": [getattr(heads, "keypoint_head", None)],
    }
    counts = {
        name: sum(p.numel() for module in found if module is not None for p in module.parameters())
        for name, found in modules.items()
    }
    whole = sum(p.numel() for p in model.backbone.parameters())
    return {**counts, "fpn": whole - counts["backbone"]}


def report(
    path: str, size: Sequence[int] | None = None, opts: Sequence[str] = ()
) -> tuple[str, bool]:
    """The text that the command prints, and whether the official checkpoint fits.

    Args:
        path, opts: see ``load``.
        size: (H, W) of the image, before padding; by default 800 x 1333, or the square that the
            model pads to.
    """
    model, name, _ = load(path, opts)
    square = model.backbone.padding_constraints.get("square_size", 0)
    size = size or ((square, square) if square else (800, 1333))
    backbone = model.backbone.bottom_up
    hw = padded(model, size)
    flops, memory = detector_flops(model, size), training_bytes(model, size)
    counts = parameters_by_part(model)
    parts = [[part, counts[part] / 1e6, flops[part] / 1e9, memory[part] / 2**20] for part in flops]
    total = sum(p.numel() for p in model.parameters())
    parts.append(["all", total / 1e6, sum(flops.values()) / 1e9, sum(memory.values()) / 2**20])
    lines = [
        f"{path}: {type(model).__name__}, image {size[0]} x {size[1]}, padded to {hw[0]} x {hw[1]}",
        "",
        tabulate(stage_rows(backbone, hw), headers="keys", floatfmt=".2f"),
        "",
        tabulate(parts, headers=["part", "params (M)", "GFLOPs", "training MiB"], floatfmt=".2f"),
        "",
        f"GFLOPs: inference, {PROPOSALS} proposals, {DETECTIONS} detections. Training MiB: what "
        "autograd keeps for one image in float32 on an accelerator.",
    ]
    if backbone.act_checkpoint:
        lines.append("Activation checkpointing: add one block, recomputed in the backward pass.")
    checkpoint = official_checkpoint(name)
    if checkpoint is None:
        lines.append(f"Initial checkpoint: {name or 'none'}; not an official classifier's.")
        return "\n".join(lines), True
    result = fit(backbone, checkpoint)
    elements = sum(prod(backbone.state_dict()[n].shape) for n in result.fitting)
    lines += [
        "",
        f"Initial checkpoint: {name}: {'fits' if result.complete else 'DOES NOT FIT'}",
        f"  load        {len(result.fitting)} tensors, {elements / 1e6:.2f} M elements",
        f"  start new   {listed(result.new)}",
        f"  not used    {listed(result.unused)}",
        f"  other shape {listed(result.other_shape)}",
    ]
    return "\n".join(lines), result.complete


def main() -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="a .py, .yaml or .yml config")
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="of the image")
    parser.add_argument("opts", nargs="*", help="overrides, as the trainers take")
    args = parser.parse_intermixed_args()
    text, fits = report(args.config, args.size, args.opts)
    print(text)
    return 0 if fits else 1


if __name__ == "__main__":
    sys.exit(main())
