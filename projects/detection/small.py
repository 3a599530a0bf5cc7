"""Shrinks a Python recipe so that it trains on the toy shapes within seconds on a CPU.

Every part of the recipe stays: its kind of heads, norms, augmentations, sampler, optimizer groups
and schedule. Only sizes fall: pixels by eight, widths, depths, boxes, classes and steps.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from detectron2.config import LazyCall as L
from detectron2.data.detection_utils import get_fed_loss_cls_weights
from detectron2.evaluation import COCOEvaluator
from detectron2.layers import ShapeSpec
from omegaconf import DictConfig, ListConfig

CLASSES = 4  # of the toy shapes
PIXELS = ("short_edge_length", "max_size", "crop_size", "target_height", "target_width")
SHRINK, CHANNELS, CONV, FC = 8, 64, 32, 64


def shrink(cfg: Any) -> None:
    """Shrink a loaded LazyConfig, in place.

    Args:
        cfg: with ``model``, ``dataloader``, ``lr_multiplier`` and ``train`` of a recipe here.
    """
    shrink_backbone(cfg.model.backbone)
    shrink_heads(cfg.model)
    shrink_data(cfg.dataloader)
    train = cfg.train
    train.update(init_checkpoint="", max_iter=20, eval_period=20, log_period=5, device="cpu")
    train.output_dir = "outputs/small"
    train.amp.enabled = False  # detectron2's AMPTrainer needs CUDA
    train.ddp.update(fp16_compression=False, device_ids=None)
    train.checkpointer.update(period=20, max_to_keep=1)
    cfg.lr_multiplier.warmup_length = 0.1  # the rest of the schedule scales with max_iter


def shrink_backbone(fpn: Any) -> None:
    """At most two blocks a stage, 16 channels a head, windows of 16 tokens where there are any."""
    backbone = fpn.bottom_up
    ends = list(backbone.last_block_indexes)
    depths = [min(b - a, 2) for a, b in zip([-1, *ends], ends, strict=False)]
    backbone.update(
        img_size=64,
        embed_dim=16 * backbone.num_heads,
        depth=sum(depths),
        last_block_indexes=[sum(depths[: i + 1]) - 1 for i in range(len(depths))],
        adaptive_window_size=16 if backbone.get("adaptive_window_size", 56) else 0,
        pretrain_img_size=64,
    )
    fpn.out_channels = CHANNELS
    if fpn.get("square_pad"):
        fpn.square_pad //= SHRINK


def shrink_heads(model: Any) -> None:
    """Narrow heads for the toy classes, and few boxes."""
    rpn, heads = model.proposal_generator, model.roi_heads
    rpn.head.in_channels = CHANNELS
    sizes = rpn.anchor_generator.sizes
    rpn.anchor_generator.sizes = [[size // SHRINK * 2 for size in level] for level in sizes]
    rpn.update(batch_size_per_image=64, pre_nms_topk=(200, 100), post_nms_topk=(100, 50))
    heads.update(num_classes=CLASSES, batch_size_per_image=32)
    for head in heads.get("box_heads", None) or [heads.box_head]:
        size = head.input_shape.height
        head.input_shape = ShapeSpec(channels=CHANNELS, height=size, width=size)
        head.update(conv_dims=[CONV] * len(head.conv_dims), fc_dims=[FC] * len(head.fc_dims))
    for predictor in heads.get("box_predictors", None) or [heads.box_predictor]:
        predictor.input_shape = ShapeSpec(channels=FC)
        if predictor.get("use_fed_loss"):
            predictor.fed_loss_num_classes = CLASSES - 1
            weights = partial(get_fed_loss_cls_weights, "toy_shapes_train", 0.5)
            predictor.get_fed_loss_cls_weights = weights
    head = heads.mask_head
    size = head.input_shape.height
    head.input_shape = ShapeSpec(channels=CHANNELS, height=size, width=size)
    head.conv_dims = [CONV] * len(head.conv_dims)


def shrink_data(dataloader: Any) -> None:
    """The toy shapes, COCO's evaluator, small pixels, two images a step, no worker processes."""
    for split, loader in (("train", dataloader.train), ("val", dataloader.test)):
        loader.dataset.names = f"toy_shapes_{split}"
        loader.num_workers = 0
        shrink_pixels(loader.mapper.augmentations)
    dataloader.train.total_batch_size = 2
    dataloader.evaluator = L(COCOEvaluator)(dataset_name="toy_shapes_val")


def shrink_pixels(node: Any) -> None:
    """Divide every size in pixels of nested augmentations, in place."""
    if isinstance(node, ListConfig):
        for child in node:
            shrink_pixels(child)
    elif isinstance(node, DictConfig):
        for key, value in node.items():
            if key not in PIXELS:
                shrink_pixels(value)
            elif isinstance(value, int):
                node[key] = value // SHRINK
            else:
                node[key] = [size // SHRINK for size in value]
