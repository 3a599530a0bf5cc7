"""Cascade Mask R-CNN, MViTv2-B from IN-21K, 36 epochs. Published: box AP 54.9, mask AP 47.4.

Image: https://dl.fbaipublicfiles.com/mvit/mvitv2_models/MViTv2_B_in21k.pyth
Detector: https://dl.fbaipublicfiles.com/detectron2/MViTv2/
cascade_mask_rcnn_mvitv2_b_in12k_3x/f309003202/model_final_be5168.pkl
"""

from .cascade_mask_rcnn_mvitv2_b_3x import dataloader, lr_multiplier, model, optimizer, train

train.init_checkpoint = "detectron2://ImageNetPretrained/mvitv2/MViTv2_B_in21k.pyth"
