"""ViTDet's recipe on LVIS v1, MViTv2-H from IN-21K, 50 epochs. Published: box 49.5, mask 44.1.

Image: https://dl.fbaipublicfiles.com/mvit/mvitv2_models/MViTv2_H_in21k.pyth
Detector: https://dl.fbaipublicfiles.com/detectron2/ViTDet/
LVIS/cascade_mask_rcnn_mvitv2_h_in21k/330445165/model_final_ad4220.pkl
"""

from ...common.mask_rcnn import size
from ...common.schedule import steps
from .cascade_mask_rcnn_mvitv2_b_in21k_100ep import dataloader, model, optimizer, train

model.backbone.bottom_up.update(**size("H"), drop_path_rate=0.6, use_act_checkpoint=True)
train.init_checkpoint = "detectron2://ImageNetPretrained/mvitv2/MViTv2_H_in21k.pyth"
train.max_iter = 78125
lr_multiplier = steps(train.max_iter, [69444, 75231])
optimizer.lr = 2e-5
