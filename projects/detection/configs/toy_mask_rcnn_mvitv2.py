"""A small Mask R-CNN on MViTv2 that learns the toy shapes on a CPU within minutes.

For detectron2's own tools/lazyconfig_train_net.py; every value can be overridden there
(``train.max_iter=100 optimizer.lr=5e-4``). On a GPU: ``train.device=cuda train.amp.enabled=True``.
"""

from functools import partial

import detectron2.data.transforms as T
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import CosineParamScheduler
from torch import nn

from mvitv2_d2 import MViT

from ..toy_env import register_toy_shapes

register_toy_shapes()

model = model_zoo.get_config("common/models/mask_rcnn_fpn.py").model
model.pixel_mean = [127.5, 127.5, 127.5]
model.pixel_std = [64.0, 64.0, 64.0]
model.backbone.bottom_up = L(MViT)(
    img_size=128,
    embed_dim=24,
    depth=5,
    num_heads=1,
    last_block_indexes=(0, 1, 3, 4),
    adaptive_kv_stride=4,
    adaptive_window_size=16,
    drop_path_rate=0.0,
    norm_layer=partial(nn.LayerNorm, eps=1e-6),
    residual_pooling=True,
    out_features=("scale2", "scale3", "scale4", "scale5"),
)
# Narrow heads: the published width of 256 is for 80 classes and 800 pixels.
model.backbone.out_channels = 48
model.proposal_generator.head.in_channels = 48
model.proposal_generator.anchor_generator.sizes = [[12], [24], [48], [96], [160]]
model.proposal_generator.batch_size_per_image = 64
model.proposal_generator.pre_nms_topk = (500, 250)
model.proposal_generator.post_nms_topk = (200, 100)
model.roi_heads.num_classes = 4
model.roi_heads.batch_size_per_image = 48
model.roi_heads.box_pooler.sampling_ratio = 2
model.roi_heads.mask_pooler.sampling_ratio = 2
model.roi_heads.box_head.input_shape.channels = 48
model.roi_heads.box_head.conv_dims = [48, 48]
model.roi_heads.box_head.fc_dims = [256]
model.roi_heads.box_predictor.input_shape.channels = 256
model.roi_heads.mask_head.input_shape.channels = 48
model.roi_heads.mask_head.conv_dims = [48, 48]

dataloader = model_zoo.get_config("common/data/coco.py").dataloader
dataloader.train.dataset.names = "toy_shapes_train"
dataloader.test.dataset.names = "toy_shapes_val"
dataloader.train.mapper.augmentations = [
    L(T.ResizeShortestEdge)(short_edge_length=(112, 128), sample_style="choice", max_size=192),
    L(T.RandomFlip)(horizontal=True),
]
dataloader.test.mapper.augmentations = [
    L(T.ResizeShortestEdge)(short_edge_length=128, max_size=192)
]
dataloader.train.total_batch_size = 4
dataloader.train.num_workers = 1
dataloader.test.num_workers = 0
dataloader.evaluator.output_dir = "${train.output_dir}/inference"

# The paper's optimizer: AdamW without weight decay on norms and positions.
optimizer = model_zoo.get_config("common/optim.py").AdamW
optimizer.lr = 1e-3
optimizer.weight_decay = 0.05
optimizer.params.overrides = {
    name: {"weight_decay": 0.0} for name in ("pos_embed", "rel_pos_h", "rel_pos_w")
}

lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.02),
    warmup_factor=0.01,
    warmup_length=0.05,  # of all iterations
)

train = model_zoo.get_config("common/train.py").train
train.output_dir = "outputs/toy_mask_rcnn_mvitv2"
train.max_iter = 900
train.eval_period = 150
train.log_period = 20
train.checkpointer = {"period": 450, "max_to_keep": 2}
train.device = "cpu"
train.amp.enabled = False  # detectron2's AMPTrainer needs CUDA
