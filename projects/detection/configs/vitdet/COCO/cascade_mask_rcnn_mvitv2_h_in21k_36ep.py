"""ViTDet's recipe, MViTv2-H from IN-21K, 36 epochs. Published: box AP 55.9, mask AP 48.3.

Image: https://dl.fbaipublicfiles.com/mvit/mvitv2_models/MViTv2_H_in21k.pyth
Detector: https://dl.fbaipublicfiles.com/detectron2/ViTDet/
COCO/cascade_mask_rcnn_mvitv2_h_in21k/f326187358/model_final_2234d7.pkl
"""

from ...common.mask_rcnn import size
from ...common.schedule import steps
from .cascade_mask_rcnn_mvitv2_b_in21k_100ep import dataloader, model, optimizer, train

model.backbone.bottom_up.update(**size("H"), drop_path_rate=0.6, use_act_checkpoint=True)
train.init_checkpoint = "detectron2://ImageNetPretrained/mvitv2/MViTv2_H_in21k.pyth"
train.max_iter = 67500
lr_multiplier = steps(train.max_iter, [52500, 62500])
optimizer.lr = 1.6e-4
