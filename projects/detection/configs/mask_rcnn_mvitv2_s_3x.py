"""Mask R-CNN, MViTv2-S, 36 epochs. Published: box AP 49.9, mask AP 45.1.

Image: https://dl.fbaipublicfiles.com/mvit/mvitv2_models/MViTv2_S_in1k.pyth
Detector: none published.
"""

from .common.mask_rcnn import size
from .mask_rcnn_mvitv2_t_3x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.update(**size("S"), drop_path_rate=0.2)
train.init_checkpoint = "detectron2://ImageNetPretrained/mvitv2/MViTv2_S_in1k.pyth"
