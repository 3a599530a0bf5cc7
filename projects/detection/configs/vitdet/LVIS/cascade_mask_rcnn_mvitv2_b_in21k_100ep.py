"""ViTDet's recipe on LVIS v1, MViTv2-B from IN-21K, 100 epochs. Published: box 46.3, mask 42.0.

Image: https://dl.fbaipublicfiles.com/mvit/mvitv2_models/MViTv2_B_in21k.pyth
Detector: https://dl.fbaipublicfiles.com/detectron2/ViTDet/
LVIS/cascade_mask_rcnn_mvitv2_b_in21k/329477206/model_final_a00567.pkl
"""

from ...common.lvis import lvis
from ...common.schedule import steps
from ..COCO.cascade_mask_rcnn_mvitv2_b_in21k_100ep import dataloader, model, optimizer, train

lvis(model, dataloader)
train.max_iter = 156250
train.eval_period = 30000
lr_multiplier = steps(train.max_iter, [138889, 150463])
optimizer.lr = 1e-4
