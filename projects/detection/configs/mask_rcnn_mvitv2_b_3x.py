"""Mask R-CNN, MViTv2-B, 36 epochs. Published: box AP 51.0, mask AP 45.7.

Image: https://dl.fbaipublicfiles.com/mvit/mvitv2_models/MViTv2_B_in1k.pyth
Detector: none published.
"""

from .common.mask_rcnn import size
from .mask_rcnn_mvitv2_t_3x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.update(**size("B"), drop_path_rate=0.4)
train.init_checkpoint = "detectron2://ImageNetPretrained/mvitv2/MViTv2_B_in1k.pyth"
