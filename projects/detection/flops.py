"""Multiply-adds of a detector, counted by hand from the block specs and from shapes alone.

Needs no weights and no data: the backbone is counted from its ``BlockSpec`` rows, everything
after it by running it on the meta device. Counted as fvcore counts: convolutions, linears and
matrix products one per multiply-add, LayerNorms five per element, nothing else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from detectron2.modeling.roi_heads import CascadeROIHeads
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mvitv2_core.config import BlockSpec, MViTConfig

PROPOSALS, DETECTIONS = 1000, 100  # boxes per image that the box and the mask head see


def pooled(hw: Sequence[int], stride: Sequence[int], kernel: Sequence[int]) -> tuple[int, ...]:
    """Live grid after a pool with padding kernel // 2."""
    return tuple(
        (n + 2 * (k // 2) - k) // s + 1 for n, s, k in zip(hw, stride, kernel, strict=True)
    )


def block_flops(spec: BlockSpec, config: MViTConfig, hw: Sequence[int]) -> dict[str, int]:
    """Multiply-adds of one block on the live (H, W) grid of its input, by term, per image."""
    if spec.kernel_q is None or spec.kernel_kv is None:
        raise ValueError(f"q and kv must be pooled, got kernels {spec.kernel_q}, {spec.kernel_kv}")
    q_hw = pooled(hw, spec.stride_q, spec.kernel_q)
    k_hw = pooled(hw, spec.stride_kv, spec.kernel_kv)
    tokens, queries, keys = prod(hw), prod(q_hw), prod(k_hw)
    window = getattr(spec, "window_size", 0)
    rows, columns = queries, k_hw  # of the attention matrix, whose columns are (H, W)
    if window:  # filled up to whole windows, and the filling is computed
        q_window = [window // s for s in spec.stride_q]
        rows = prod(-(-n // w) * w for n, w in zip(q_hw, q_window, strict=True))
        columns = tuple(window // s for s in spec.stride_kv)
    axes = sum(n for n, used in zip(columns, config.rel_pos, strict=True) if used)
    width, hidden = spec.dim_att, int(spec.dim_att * config.mlp_ratio)
    widens = spec.dim != spec.dim_out
    skip = tokens if spec.dim != spec.dim_att else queries
    norms = tokens * spec.dim + queries * width + (queries + 2 * keys) * width
    return {
        "linears": tokens * spec.dim * 3 * width
        + queries * (width * width + width * hidden + hidden * spec.dim_out)
        + (skip * spec.dim * spec.dim_out if widens else 0),
        "pools": width * (queries * prod(spec.kernel_q) + 2 * keys * prod(spec.kernel_kv)),
        "attention": 2 * rows * prod(columns) * width,
        "positions": rows * axes * width,
        "norms": 5 * norms,
    }


def backbone_flops(model: Any, hw: Sequence[int]) -> Counter[str]:
    """Multiply-adds of an ``mvitv2_d2.MViT`` on one (H, W) image, by term."""
    config: MViTConfig = model.config
    grid = tuple(
        (n + 2 * p - k) // s + 1
        for n, k, s, p in zip(
            hw, config.patch_kernel, config.patch_stride, config.patch_padding, strict=True
        )
    )
    total = Counter(
        patch_embed=prod(grid) * config.embed_dim * config.in_chans * prod(config.patch_kernel)
    )
    for index, spec in enumerate(config.blocks):
        total.update(block_flops(spec, config, grid))
        grid = pooled(grid, spec.stride_q, spec.kernel_q or ())
        if index in config.stage_ends and hasattr(
            model, f"scale{2 + config.stage_ends.index(index)}_norm"
        ):
            total["norms"] += 5 * prod(grid) * spec.dim_out
    return total


def padded(model: nn.Module, hw: Sequence[int]) -> tuple[int, int]:
    """The (H, W) that an image of ``hw`` is padded to, alone in its batch."""
    backbone: Any = model.backbone
    square = backbone.padding_constraints.get("square_size", 0)
    if square:
        if max(hw) > square:
            raise ValueError(f"an image must fit into square_pad={square}, got {tuple(hw)}")
        return square, square
    step = max(backbone.size_divisibility, 1)
    height, width = (-(-n // step) * step for n in hw)
    return height, width


def detector_flops(
    model: Any, hw: Sequence[int], proposals: int = PROPOSALS, detections: int = DETECTIONS
) -> dict[str, int]:
    """Multiply-adds of one image through a detector, by part.

    Args:
        model: GeneralizedRCNN, PanopticFPN or RetinaNet on the meta device, its backbone an FPN
            over an ``mvitv2_d2.MViT``.
        hw: size of the image before padding.
        proposals: boxes that each box head sees.
        detections: boxes that the mask and keypoint heads see.
    """
    model.eval()
    image = torch.empty(1, 3, *padded(model, hw), device="meta")
    fpn = model.backbone
    parts = {"backbone": backbone_flops(fpn.bottom_up, image.shape[2:]).total()}
    both, features = _count(fpn, image)
    parts["fpn"] = both - _count(fpn.bottom_up, image)[0]
    if hasattr(model, "head"):
        maps = [features[name] for name in model.head_in_features]
        parts["dense head"], _ = _count(model.head, maps)
    if hasattr(model, "proposal_generator"):
        rpn = model.proposal_generator
        parts["rpn"], _ = _count(rpn.rpn_head, [features[name] for name in rpn.in_features])
    if hasattr(model, "sem_seg_head"):
        parts["semantic head"], _ = _count(model.sem_seg_head.layers, features)
    heads = getattr(model, "roi_heads", None)
    if heads is not None:
        boxes = _boxes(features["p2"], heads.box_pooler, proposals)
        cascade = isinstance(heads, CascadeROIHeads)
        stages = (
            zip(heads.box_head, heads.box_predictor, strict=True)
            if cascade
            else [(heads.box_head, heads.box_predictor)]
        )
        parts["box heads"] = sum(_count(nn.Sequential(*stage), boxes)[0] for stage in stages)
        for name in ("mask", "keypoint"):
            if getattr(heads, f"{name}_on"):
                boxes = _boxes(features["p2"], getattr(heads, f"{name}_pooler"), detections)
                layers = getattr(heads, f"{name}_head").layers
                parts[f"{name} head"], _ = _count(layers, boxes)
    return parts


def _boxes(feature: Tensor, pooler: Any, count: int) -> Tensor:
    return torch.empty(count, feature.shape[1], *pooler.output_size, device="meta")


def _count(function: Any, *args: Any) -> tuple[int, Any]:
    """Multiply-adds of the convolutions and products of a call, and what it returns."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        result = function(*args)
    return counter.get_total_flops() // 2, result
