"""Cascade Mask R-CNN, MViTv2-T, 36 epochs. Published: box AP 52.2, mask AP 45.0.

Image: https://dl.fbaipublicfiles.com/mvit/mvitv2_models/MViTv2_T_in1k.pyth
Detector: https://dl.fbaipublicfiles.com/detectron2/MViTv2/
cascade_mask_rcnn_mvitv2_t_3x/f308344828/model_final_c6967a.pkl
"""

from .common.cascade import cascade
from .mask_rcnn_mvitv2_t_3x import dataloader, lr_multiplier, model, optimizer, train

cascade(model, norm="naiveSyncBN_N")
