"""The toy recipe under ``tests.killing``, for detectron2's own lazyconfig_train_net.py."""

from pathlib import Path

from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig

from tests.d2.kill_hooks import ByIteration, install

install()
_path = Path(__file__).parents[2] / "projects/detection/configs/toy_mask_rcnn_mvitv2.py"
_recipe = LazyConfig.load(str(_path))
model = _recipe.model
dataloader = _recipe.dataloader
dataloader.train = L(ByIteration)(
    dataset=dataloader.train.dataset,
    mapper=dataloader.train.mapper,
    total_batch_size=2,
    num_workers=0,
)
optimizer = _recipe.optimizer
lr_multiplier = _recipe.lr_multiplier
train = _recipe.train
train.seed = 1  # a run that is killed before its first checkpoint starts from the same weights
