"""Cascade Mask R-CNN, MViTv2-B, 36 epochs. Published: box AP 54.1, mask AP 46.8 (detectron2: 46.7).

Image: https://dl.fbaipublicfiles.com/mvit/mvitv2_models/MViTv2_B_in1k.pyth
Detector: https://dl.fbaipublicfiles.com/detectron2/MViTv2/
cascade_mask_rcnn_mvitv2_b_3x/f308109448/model_final_421a91.pkl
"""

from .cascade_mask_rcnn_mvitv2_t_3x import dataloader, lr_multiplier, model, optimizer, train
from .common.mask_rcnn import size

model.backbone.bottom_up.update(**size("B"), drop_path_rate=0.4)
train.init_checkpoint = "detectron2://ImageNetPretrained/mvitv2/MViTv2_B_in1k.pyth"
