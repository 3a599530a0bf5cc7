"""Cascade Mask R-CNN, MViTv2-L from IN-21K, LSJ, 50 epochs. Published: box AP 55.8, mask AP 48.3.

Image: https://dl.fbaipublicfiles.com/mvit/mvitv2_models/MViTv2_L_in21k.pyth
Detector: https://dl.fbaipublicfiles.com/detectron2/MViTv2/
cascade_mask_rcnn_mvitv2_l_in12k_lsj_50ep/f308099658/model_final_c41c5a.pkl
"""

from .cascade_mask_rcnn_mvitv2_t_3x import model, optimizer, train
from .common.data_lsj import dataloader
from .common.mask_rcnn import size
from .common.schedule import steps

model.backbone.bottom_up.update(**size("L"), drop_path_rate=0.5)
train.init_checkpoint = "detectron2://ImageNetPretrained/mvitv2/MViTv2_L_in21k.pyth"
train.max_iter = 92187
lr_multiplier = steps(train.max_iter, [81944, 88773])
optimizer.lr = 1e-4
