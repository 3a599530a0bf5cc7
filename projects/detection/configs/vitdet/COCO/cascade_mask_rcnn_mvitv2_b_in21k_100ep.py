"""ViTDet's recipe, MViTv2-B from IN-21K, 100 epochs. Published: box AP 55.6, mask AP 48.1.

Squares of 1024, LayerNorm in FPN and heads. Unlike the paper's recipe, ViTDet's lets weight decay
act on relative positions.
Image: https://dl.fbaipublicfiles.com/mvit/mvitv2_models/MViTv2_B_in21k.pyth
Detector: https://dl.fbaipublicfiles.com/detectron2/ViTDet/
COCO/cascade_mask_rcnn_mvitv2_b_in21k/f325820315/model_final_8c3da3.pkl
"""

from ...common.cascade import cascade
from ...common.data_1024 import dataloader
from ...common.mask_rcnn import model, size
from ...common.schedule import optimizer, steps, train

model.backbone.bottom_up.update(**size("B"), drop_path_rate=0.4)
model.backbone.update(norm="LN", square_pad=1024)
cascade(model, norm="LN")
train.init_checkpoint = "detectron2://ImageNetPretrained/mvitv2/MViTv2_B_in21k.pyth"
train.max_iter = 184375
lr_multiplier = steps(train.max_iter, [163889, 177546])
optimizer.lr = 8e-5
# Official ViTDet: relative positions decay like other weights. The paper's own recipes exempt them.
optimizer.params.overrides = {"pos_embed": {"weight_decay": 0.0}}
