"""What a detector costs: multiply-adds and training memory, from shapes alone.

Needs no weights and no data. The backbone is counted by ``mvitv2_core.cost``, everything after
it by running it on the meta device: one per multiply-add of convolutions, linears and matrix
products.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from copy import copy
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.modeling.roi_heads import CascadeROIHeads
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from mvitv2_core.cost import trunk_cost

Measure = Callable[..., tuple[int, Any]]
PROPOSALS, DETECTIONS = 1000, 100  # boxes per image that the box and the mask head see


def backbone_flops(model: Any, hw: Sequence[int]) -> Counter[str]:
    """Multiply-adds of an ``mvitv2_d2.MViT`` on one (H, W) image, by kind of work."""
    rows = trunk_cost(model.config, hw)
    total: Counter[str] = Counter()
    for row in rows:
        total.update(row.terms)
    blocks = rows[1:]
    for stage, end in enumerate(model.config.stage_ends):
        if hasattr(model, f"scale{2 + stage}_norm"):
            total["norms"] += 5 * prod(blocks[end].thw_out) * model.config.blocks[end].dim_out
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


def walk(
    model: Any, hw: Sequence[int], proposals: int, detections: int, measure: Measure
) -> dict[str, int]:
    """Run the parts of a detector one after another on the meta device.

    Args:
        model: GeneralizedRCNN, PanopticFPN or RetinaNet on the meta device, its backbone an FPN
            over an ``mvitv2_d2.MViT``.
        hw: size of the image before padding.
        proposals: boxes that each box head sees.
        detections: boxes that the mask and keypoint heads see.
        measure: called with a function and its arguments; returns a figure and the result.

    Returns:
        Figures by part.
    """
    image = torch.empty(1, 3, *padded(model, hw), device="meta")
    fpn = model.backbone
    parts = {}
    parts["backbone"], bottom_up = measure(fpn.bottom_up, image)
    parts["fpn"], features = measure(_above(fpn, bottom_up), image)
    if hasattr(model, "head"):
        maps = [features[name] for name in model.head_in_features]
        parts["dense head"], _ = measure(model.head, maps)
    if hasattr(model, "proposal_generator"):
        rpn = model.proposal_generator
        parts["rpn"], _ = measure(rpn.rpn_head, [features[name] for name in rpn.in_features])
    if hasattr(model, "sem_seg_head"):
        parts["semantic head"], _ = measure(model.sem_seg_head.layers, features)
    heads = getattr(model, "roi_heads", None)
    if heads is not None:
        finest = features[heads.box_in_features[0]]
        boxes = _boxes(finest, heads.box_pooler, proposals)
        stages = [(heads.box_head, heads.box_predictor)]
        if isinstance(heads, CascadeROIHeads):
            stages = list(zip(heads.box_head, heads.box_predictor, strict=True))
        parts["box heads"] = sum(measure(nn.Sequential(*stage), boxes)[0] for stage in stages)
        for name in ("mask", "keypoint"):
            if getattr(heads, f"{name}_on"):
                boxes = _boxes(finest, getattr(heads, f"{name}_pooler"), detections)
                parts[f"{name} head"], _ = measure(getattr(heads, f"{name}_head").layers, boxes)
    return parts


def detector_flops(
    model: Any, hw: Sequence[int], proposals: int = PROPOSALS, detections: int = DETECTIONS
) -> dict[str, int]:
    """Multiply-adds of one image through a detector in inference, by part; see ``walk``."""

    @torch.no_grad()
    def count(function: Any, *args: Any) -> tuple[int, Any]:
        if function is model.backbone.bottom_up:
            # A counter would see the fused path's products, not those of the definition.
            return backbone_flops(function, args[0].shape[2:]).total(), function(*args)
        with FlopCounterMode(display=False) as counter:
            result = function(*args)
        return counter.get_total_flops() // 2, result

    model.eval()
    return walk(model, hw, proposals, detections, count)


def training_bytes(model: Any, hw: Sequence[int]) -> dict[str, int]:
    """Bytes that autograd keeps for one image in float32 training on an accelerator, by part.

    Attention takes the path that it takes there; see ``walk``. Not counted: weights, gradients,
    optimizer state, losses, and buffers that live within one operation. The box heads see as
    many boxes as are sampled, the mask head the share of them that may be positive.
    """
    parameters = {p.untyped_storage()._cdata for p in model.parameters()}

    def keep(function: Any, *args: Any) -> tuple[int, Any]:
        held: dict[int, Any] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in parameters:
                held[storage._cdata] = storage  # holding it keeps its key from being used again
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), _Fused():
            result = function(*args)
        return sum(storage.nbytes() for storage in held.values()), result

    model.train()
    heads = getattr(model, "roi_heads", None)
    boxes = heads.batch_size_per_image if heads is not None else 0
    positive = int(boxes * heads.positive_fraction) if heads is not None else 0
    return walk(model, hw, boxes, positive, keep)


class _Fused(TorchFunctionMode):
    """Sends attention to a fused kernel; the meta device would write out its matrix."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
            return fused(*args, **kwargs)[0]
        return func(*args, **kwargs)


def _above(fpn: nn.Module, bottom_up: dict[str, Tensor]) -> nn.Module:
    """The FPN, sharing its layers, over feature maps that are there already."""
    above = copy(fpn)
    above._modules = {**fpn._modules, "bottom_up": _Given(bottom_up)}
    return above


class _Given(nn.Module):
    def __init__(self, features: dict[str, Tensor]) -> None:
        super().__init__()
        self.features = features

    def forward(self, _: Tensor) -> dict[str, Tensor]:
        return self.features


def _boxes(feature: Tensor, pooler: Any, count: int) -> Tensor:
    return torch.empty(count, feature.shape[1], *pooler.output_size, device="meta")
