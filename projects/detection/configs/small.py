"""Any Python recipe, shrunk to train on the toy shapes: RECIPE names it, relative to this folder.

    RECIPE=cascade_mask_rcnn_mvitv2_t_3x.py python .../tools/lazyconfig_train_net.py \
        --config-file projects/detection/configs/small.py
"""

import os
from pathlib import Path

from detectron2.config import LazyConfig
from detectron2.data import MetadataCatalog

from ..small import CLASSES, shrink
from ..toy_env import register_toy_shapes

register_toy_shapes()
# LVIS recipes weigh classes by their images; the toy classes are about equally frequent.
MetadataCatalog.get("toy_shapes_train").class_image_count = [
    {"id": i + 1, "image_count": 1} for i in range(CLASSES)
]
if "RECIPE" not in os.environ:
    raise ValueError("RECIPE must name a config in this folder, got none")
_recipe = LazyConfig.load(str(Path(__file__).parent / os.environ["RECIPE"]))
shrink(_recipe)
model = _recipe.model
dataloader = _recipe.dataloader
optimizer = _recipe.optimizer
lr_multiplier = _recipe.lr_multiplier
train = _recipe.train
