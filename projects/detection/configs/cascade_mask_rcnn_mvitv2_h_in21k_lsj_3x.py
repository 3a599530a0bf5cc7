"""Cascade Mask R-CNN, MViTv2-H from IN-21K, LSJ, 36 epochs. Published: box AP 56.1, mask AP 48.5.

Image: https://dl.fbaipublicfiles.com/mvit/mvitv2_models/MViTv2_H_in21k.pyth
Detector: https://dl.fbaipublicfiles.com/detectron2/MViTv2/
cascade_mask_rcnn_mvitv2_h_in12k_lsj_3x/f309013744/model_final_30d36b.pkl
"""

from .cascade_mask_rcnn_mvitv2_t_3x import lr_multiplier, model, optimizer, train
from .common.data_lsj import dataloader
from .common.mask_rcnn import size

model.backbone.bottom_up.update(**size("H"), drop_path_rate=0.6, use_act_checkpoint=True)
train.init_checkpoint = "detectron2://ImageNetPretrained/mvitv2/MViTv2_H_in21k.pyth"
