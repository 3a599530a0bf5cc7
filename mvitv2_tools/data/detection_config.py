"""A plan as configs for detectron2's two tools: Python for its lazy trainer, YAML for the other."""

from __future__ import annotations

import json
import pprint

from mvitv2_core.recipes import recipe_path
from mvitv2_core.rows import VARIANTS

from .detection_plan import Plan

# Shapes of configs/COCO/toy_mask_rcnn_mvitv2.yaml.
TOY_BACKBONE = """img_size=128,
    embed_dim=24,
    depth=5,
    num_heads=1,
    last_block_indexes=(0, 1, 3, 4),
    adaptive_window_size=16,"""
TOY_HEADS = """
# Narrow heads and small anchors, as for the toy shapes.
model.backbone.out_channels = 48
model.proposal_generator.head.in_channels = 48
model.proposal_generator.anchor_generator.sizes = [[12], [24], [48], [96], [160]]
model.proposal_generator.batch_size_per_image = 64
model.proposal_generator.pre_nms_topk = (500, 250)
model.proposal_generator.post_nms_topk = (200, 100)
model.roi_heads.batch_size_per_image = 48
model.roi_heads.box_head.input_shape.channels = 48
model.roi_heads.box_head.conv_dims = [48, 48]
model.roi_heads.box_head.fc_dims = [256]
model.roi_heads.box_predictor.input_shape.channels = 256
"""
TOY_MASKS = """model.roi_heads.mask_head.input_shape.channels = 48
model.roi_heads.mask_head.conv_dims = [48, 48]
"""
NO_MASKS = """
# The data has boxes alone.
model.roi_heads.mask_in_features = None
model.roi_heads.mask_pooler = None
model.roi_heads.mask_head = None
"""
BITMASKS = """# Masks in run lengths are no polygons.
dataloader.train.mapper.instance_mask_format = "bitmask"
"""
# Half of the images are cropped first, as in the published recipes.
CROP = """
    L(T.RandomApply)(
        tfm_or_aug=L(T.AugmentationList)(
            augs=[
                L(T.ResizeShortestEdge)(short_edge_length=[400, 500, 600], sample_style="choice"),
                L(T.RandomCrop)(crop_type="absolute_range", crop_size=(384, 600)),
            ]
        ),
        prob=0.5,
    ),"""

PYTHON = '''\
"""{title}.

Written by `mvitv2 data detection`; everything may be edited, here or as KEY=VALUE:

    python tools/lazyconfig_train_net.py --config-file {file} --num-gpus 1 KEY=VALUE ...

tools/ is detectron2's. Learning rate and steps are for {batch} images a step, on all GPUs
together; for another batch run the command again with --batch.
"""

from functools import partial

import detectron2.data.transforms as T
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.data import DatasetMapper
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler
from torch import nn

from mvitv2_d2 import MViT
from mvitv2_d2.own_data import own_coco

# In the order of their ids in the json: output i of the model is the i-th.
_classes = {classes}

model = model_zoo.get_config("common/models/mask_rcnn_fpn.py").model
model.pixel_mean = [123.675, 116.28, 103.53]
model.pixel_std = [58.395, 57.12, 57.375]
model.input_format = "RGB"
model.backbone.bottom_up = L(MViT)(
    {backbone}
    drop_path_rate={drop_path_rate},
    norm_layer=partial(nn.LayerNorm, eps=1e-6),
    out_features=("scale2", "scale3", "scale4", "scale5"),
)
model.backbone.in_features = "${{.bottom_up.out_features}}"
model.roi_heads.num_classes = {count}
{heads}
dataloader = model_zoo.get_config("common/data/coco.py").dataloader
dataloader.train.dataset = L(own_coco)(
    names={train!r},
    json_file={files[0]!r},
    image_root={files[1]!r},
    classes=_classes,
)
dataloader.test.dataset = L(own_coco)(
    names={val!r},
    json_file={files[2]!r},
    image_root={files[3]!r},
    classes=_classes,
    filter_empty=False,
)
dataloader.train.mapper.image_format = "RGB"
dataloader.train.mapper.use_instance_mask = {masks}
{mask_format}dataloader.train.mapper.augmentations = [{crop}
    L(T.ResizeShortestEdge)(
        short_edge_length={short}, sample_style="choice", max_size={longest}
    ),
    L(T.RandomFlip)(horizontal=True),
]
dataloader.test.mapper.augmentations = [
    L(T.ResizeShortestEdge)(short_edge_length={short_test}, max_size={longest})
]
dataloader.train.total_batch_size = {batch}
dataloader.train.num_workers = dataloader.test.num_workers = {workers}
dataloader.evaluator.output_dir = "${{train.output_dir}}/inference"

train = model_zoo.get_config("common/train.py").train
train.output_dir = {out!r}
train.init_checkpoint = {weights!r}
train.max_iter = {steps}
train.eval_period = {period}
train.checkpointer = {{"period": {period}, "max_to_keep": 3}}
train.device = {device!r}
train.amp.enabled = {amp}  # mixed precision needs CUDA
train.ddp.fp16_compression = "${{..amp.enabled}}"  # float16 holds scaled gradients alone
{device_ids}
lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(
        values=[1.0, 0.1, 0.01], milestones={falls}, num_updates={steps}
    ),
    warmup_length={warmup} / {steps},
    warmup_factor=0.001,
)
# AdamW without weight decay on norms and positions, as published.
optimizer = model_zoo.get_config("common/optim.py").AdamW
optimizer.lr = {lr}
optimizer.weight_decay = {weight_decay}
optimizer.params.overrides = {{
    name: {{"weight_decay": 0.0}} for name in ("pos_embed", "rel_pos_h", "rel_pos_w")
}}
'''

YAML = """\
# {title}.
#
# Written by `mvitv2 data detection`; everything may be edited, here or as KEY VALUE:
#
#   DETECTRON2_ENV_MODULE=mvitv2_d2.env python tools/train_net.py --config-file {file} \\
#     --num-gpus 1 KEY VALUE ...
#
# tools/ is detectron2's. Its train_net.py builds SGD whatever a config says: these are SGD's
# values. With AdamW train the .py beside this file, or run this project's
# projects/detection/train_net.py with
#   SOLVER.BASE_LR {lr} SOLVER.WEIGHT_DECAY {weight_decay}
_BASE_: {base}
MODEL:
  WEIGHTS: {weights}
  DEVICE: {device}
  MASK_ON: {masks}
  PIXEL_MEAN: [123.675, 116.28, 103.53]
  PIXEL_STD: [58.395, 57.12, 57.375]
  ROI_HEADS:
    NUM_CLASSES: {count}
INPUT:
  FORMAT: RGB
  MASK_FORMAT: {mask_format}
DATASETS:
  TRAIN: [{train}]
  TEST: [{val}]
  OWN:
    TRAIN_JSON: {files[0]}
    TRAIN_IMAGES: {files[1]}
    VAL_JSON: {files[2]}
    VAL_IMAGES: {files[3]}
    CLASSES: {classes}
DATALOADER:
  NUM_WORKERS: {workers}
SOLVER:
  IMS_PER_BATCH: {batch}
  BASE_LR: {sgd_lr}
  WEIGHT_DECAY: 0.0001
  CLIP_GRADIENTS:
    ENABLED: True
    CLIP_TYPE: norm
    CLIP_VALUE: 1.0
  MAX_ITER: {steps}
  STEPS: {falls}
  WARMUP_ITERS: {warmup}
  CHECKPOINT_PERIOD: {period}
  AMP:
    ENABLED: {amp}
TEST:
  EVAL_PERIOD: {period}
OUTPUT_DIR: {out}
"""


def _title(plan: Plan) -> str:
    kind = "Mask R-CNN" if plan.masks else "Faster R-CNN"
    size = "a toy MViTv2" if plan.model.variant == "toy" else f"MViTv2-{plan.model.variant}"
    return f"{kind} on {size}: {plan.images} images, {len(plan.classes)} classes"


def python_config(plan: Plan, file: str) -> str:
    """The LazyConfig; ``file`` is what the text calls it."""
    toy = plan.model.variant == "toy"
    if toy:
        backbone, heads = TOY_BACKBONE, TOY_HEADS + (TOY_MASKS if plan.masks else "")
    else:
        depths, embed_dim, num_heads = VARIANTS[plan.model.variant]
        ends = tuple(sum(depths[: i + 1]) - 1 for i in range(len(depths)))
        rows = [f"embed_dim={embed_dim}", f"depth={sum(depths)}", f"num_heads={num_heads}"]
        rows += [f"last_block_indexes={ends}", *filter(None, [plan.model.extra])]
        backbone, heads = "\n    ".join(f"{row}," for row in rows), ""
    return PYTHON.format(
        title=_title(plan),
        file=file,
        backbone=backbone,
        heads=heads + ("" if plan.masks else NO_MASKS),
        crop="" if toy else CROP,
        drop_path_rate=plan.model.drop_path_rate,
        classes=pprint.pformat(list(plan.classes), width=90, compact=True),
        count=len(plan.classes),
        train=f"{plan.name}_train",
        val=f"{plan.name}_val",
        files=[str(path) for path in plan.files],
        masks=plan.masks,
        mask_format=BITMASKS if plan.bitmasks else "",
        short=plan.model.short,
        short_test=plan.model.short_test,
        longest=plan.model.longest,
        batch=plan.batch,
        workers=4 if plan.device == "cuda" else 1,
        out=str(plan.out),
        weights=plan.weights,
        steps=plan.steps,
        period=plan.period,
        device=plan.device,
        amp=plan.device == "cuda",
        device_ids="" if plan.device == "cuda" else "train.ddp.device_ids = None\n",
        falls=list(plan.falls),
        warmup=plan.warmup,
        lr=plan.lr,
        weight_decay=0.05 if toy else 0.1,
    )


def yaml_config(plan: Plan, file: str) -> str:
    """The YAML; ``file`` is what the text calls it."""
    toy = plan.model.variant == "toy"
    base = "toy_mask_rcnn_mvitv2" if toy else f"mask_rcnn_mvitv2_{plan.model.variant.lower()}_3x"

    def quoted(value: object) -> str:
        return json.dumps(value, ensure_ascii=False)  # JSON's strings are YAML's too

    return YAML.format(
        title=_title(plan),
        file=file,
        base=quoted(str(recipe_path(f"configs/COCO/{base}.yaml").resolve())),
        weights=quoted(plan.weights),
        device=plan.device,
        masks=plan.masks,
        mask_format="bitmask" if plan.bitmasks else "polygon",
        count=len(plan.classes),
        train=quoted(f"{plan.name}_train"),
        val=quoted(f"{plan.name}_val"),
        files=[quoted(str(path)) for path in plan.files],
        classes=quoted(list(plan.classes)),
        workers=4 if plan.device == "cuda" else 1,
        batch=plan.batch,
        sgd_lr=plan.sgd_lr,
        lr=plan.lr,
        weight_decay=0.05 if toy else 0.1,
        steps=plan.steps,
        falls=list(plan.falls),
        warmup=plan.warmup,
        period=plan.period,
        amp=plan.device == "cuda",
        out=quoted(f"{plan.out}_yaml"),
    )
