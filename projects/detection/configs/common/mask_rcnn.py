"""Mask R-CNN with detectron2's FPN and heads on MViTv2-T, and the sizes of the other variants."""

from functools import partial

from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from torch import nn

from mvitv2_core import VARIANTS
from mvitv2_d2 import MViT


def size(variant):
    """The arguments of ``MViT`` in which the published variants differ."""
    depths, embed_dim, num_heads = VARIANTS[variant]
    return {
        "embed_dim": embed_dim,
        "depth": sum(depths),
        "num_heads": num_heads,
        "last_block_indexes": [sum(depths[: i + 1]) - 1 for i in range(len(depths))],
    }


model = model_zoo.get_config("common/models/mask_rcnn_fpn.py").model
constants = model_zoo.get_config("common/data/constants.py").constants
model.pixel_mean = constants.imagenet_rgb256_mean
model.pixel_std = constants.imagenet_rgb256_std
model.input_format = "RGB"
model.backbone.bottom_up = L(MViT)(
    **size("T"),
    drop_path_rate=0.2,
    norm_layer=partial(nn.LayerNorm, eps=1e-6),
    out_features=("scale2", "scale3", "scale4", "scale5"),
)
model.backbone.in_features = "${.bottom_up.out_features}"
