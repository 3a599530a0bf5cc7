"""COCO 2017 as ViTDet reads it: jitter without padding, tests at a longest edge of 1024.

The model itself pads to squares (``square_pad``).
"""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L

from .data_lsj import dataloader

dataloader.train.mapper.augmentations[-1].pad = False
dataloader.test.mapper.augmentations = [
    L(T.ResizeShortestEdge)(short_edge_length=1024, max_size=1024)
]
