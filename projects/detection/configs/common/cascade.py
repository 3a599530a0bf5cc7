"""Cascade heads: three of four convolutions and one linear, with norms; two convolutions in RPN."""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.roi_heads import (
    CascadeROIHeads,
    FastRCNNConvFCHead,
    FastRCNNOutputLayers,
)


def cascade(model, norm):
    """Turn a Mask R-CNN into a Cascade Mask R-CNN, in place.

    Args:
        model: config of the Mask R-CNN.
        norm: of the box and mask heads. "naiveSyncBN_N" weighs each process by its number of
            boxes, which may be none.
    """
    heads = model.roi_heads
    for name in ("box_head", "box_predictor", "proposal_matcher"):
        heads.pop(name)
    heads.update(
        _target_=CascadeROIHeads,
        box_heads=[
            L(FastRCNNConvFCHead)(
                input_shape=ShapeSpec(channels=256, height=7, width=7),
                conv_dims=[256] * 4,
                fc_dims=[1024],
                conv_norm=norm,
            )
            for _ in range(3)
        ],
        box_predictors=[
            L(FastRCNNOutputLayers)(
                input_shape=ShapeSpec(channels=1024),
                test_score_thresh=0.05,
                box2box_transform=L(Box2BoxTransform)(weights=weights),
                cls_agnostic_bbox_reg=True,
                num_classes="${...num_classes}",
            )
            for weights in ((10, 10, 5, 5), (20, 20, 10, 10), (30, 30, 15, 15))
        ],
        proposal_matchers=[
            L(Matcher)(thresholds=[iou], labels=[0, 1], allow_low_quality_matches=False)
            for iou in (0.5, 0.6, 0.7)
        ],
    )
    heads.mask_head.conv_norm = norm
    model.proposal_generator.head.conv_dims = [-1, -1]
