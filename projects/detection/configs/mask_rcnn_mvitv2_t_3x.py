"""Mask R-CNN, MViTv2-T, 36 epochs. Published: box AP 48.2 (detectron2: 48.3), mask AP 43.8.

Image: https://dl.fbaipublicfiles.com/mvit/mvitv2_models/MViTv2_T_in1k.pyth
Detector: https://dl.fbaipublicfiles.com/detectron2/MViTv2/
mask_rcnn_mvitv2_t_3x/f307611773/model_final_1a1c30.pkl
"""

from .common.data import dataloader
from .common.mask_rcnn import model
from .common.schedule import lr_multiplier, optimizer, train

train.init_checkpoint = "detectron2://ImageNetPretrained/mvitv2/MViTv2_T_in1k.pyth"
