"""Cascade Mask R-CNN, MViTv2-S, 36 epochs. Published: box AP 53.2, mask AP 46.0.

Image: https://dl.fbaipublicfiles.com/mvit/mvitv2_models/MViTv2_S_in1k.pyth
Detector: https://dl.fbaipublicfiles.com/detectron2/MViTv2/
cascade_mask_rcnn_mvitv2_s_3x/f308344647/model_final_279baf.pkl
"""

from .cascade_mask_rcnn_mvitv2_t_3x import dataloader, lr_multiplier, model, optimizer, train
from .common.mask_rcnn import size

model.backbone.bottom_up.update(**size("S"), drop_path_rate=0.2)
train.init_checkpoint = "detectron2://ImageNetPretrained/mvitv2/MViTv2_S_in1k.pyth"
