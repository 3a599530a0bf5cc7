"""Mask R-CNN, MViTv2-L, 36 epochs. Published: box AP 51.8, mask AP 46.2.

The published IN-1K L widens in the MLP of each stage's last block.
Image: https://dl.fbaipublicfiles.com/mvit/mvitv2_models/MViTv2_L_in1k.pyth
Detector: none published.
"""

from .common.mask_rcnn import size
from .mask_rcnn_mvitv2_t_3x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.update(**size("L"), drop_path_rate=0.5, dim_mul_in_att=False)
train.init_checkpoint = "detectron2://ImageNetPretrained/mvitv2/MViTv2_L_in1k.pyth"
optimizer.lr = 1e-4
