"""COCO 2017 with large-scale jitter: scale 0.1 to 2, then a crop of 1024 x 1024, padded."""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L

from .data import dataloader

dataloader.train.mapper.augmentations = [
    L(T.RandomFlip)(horizontal=True),
    L(T.ResizeScale)(min_scale=0.1, max_scale=2.0, target_height=1024, target_width=1024),
    L(T.FixedSizeCrop)(crop_size=(1024, 1024)),
]
dataloader.train.mapper.recompute_boxes = True  # a crop cuts instances
