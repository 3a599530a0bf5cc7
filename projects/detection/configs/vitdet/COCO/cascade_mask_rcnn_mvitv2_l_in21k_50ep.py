"""ViTDet's recipe, MViTv2-L from IN-21K, 50 epochs. Published: box AP 55.7, mask AP 48.3.

Image: https://dl.fbaipublicfiles.com/mvit/mvitv2_models/MViTv2_L_in21k.pyth
Detector: https://dl.fbaipublicfiles.com/detectron2/ViTDet/
COCO/cascade_mask_rcnn_mvitv2_l_in21k/f325607715/model_final_2141b0.pkl
"""

from ...common.mask_rcnn import size
from ...common.schedule import steps
from .cascade_mask_rcnn_mvitv2_b_in21k_100ep import dataloader, model, optimizer, train

model.backbone.bottom_up.update(**size("L"), drop_path_rate=0.5)
train.init_checkpoint = "detectron2://ImageNetPretrained/mvitv2/MViTv2_L_in21k.pyth"
train.max_iter = 92187
lr_multiplier = steps(train.max_iter, [81944, 88773])
# The official file halves B's schedule and keeps its warm-up as a fraction: 125 steps, not 250.
lr_multiplier.warmup_length = 250 / 184375
