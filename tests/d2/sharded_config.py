"""A small recipe whose steps are the same whether one process or several ranks take them.

For lazyconfig_train_net.py and train_net.py. ``$RECIPE`` names the recipe. All that is random or
that is averaged otherwise is off, as in tests/projects/test_recipes_run.py: drop path, subsampling
of anchors and proposals, flips; box losses are means over proposals, of which every image has 32;
there is no mask head. Adam's eps is raised, or it would blow up the rounding of small gradients.
"""

from pathlib import Path

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig

from mvitv2_d2.sample import sample
from tests.d2.machine_hooks import RankByIteration, install

install()
_path = Path(__file__).parents[2] / "projects/detection/configs/small.py"
_recipe = LazyConfig.load(str(_path))
model, optimizer, lr_multiplier = _recipe.model, _recipe.optimizer, _recipe.lr_multiplier
model.backbone.bottom_up.update(drop_path_rate=0.0)
model.proposal_generator.update(
    batch_size_per_image=100000,
    positive_fraction=1.0,
    nms_thresh=1.0,
    post_nms_topk=[32, 32],
)
model.roi_heads.update(
    batch_size_per_image=100000,
    positive_fraction=1.0,
    proposal_append_gt=False,
    mask_in_features=None,
    mask_head=None,
    mask_pooler=None,
)
for _predictor in model.roi_heads.get("box_predictors") or [model.roi_heads.box_predictor]:
    _predictor.test_score_thresh = 0.0  # or there is nothing to evaluate after a few steps
optimizer.update(lr=0.001, eps=0.01)
dataloader = _recipe.dataloader
_mapper = dataloader.train.mapper
_mapper.augmentations = [L(T.Resize)(shape=[96, 96])]
dataloader.train = L(RankByIteration)(
    dataset=dataloader.train.dataset, mapper=_mapper, total_batch_size=2
)
dataloader.test.dataset.names = sample("toy_shapes_val", 5)  # two ranks have 3 and 2 images
dataloader.evaluator.dataset_name = dataloader.test.dataset.names
dataloader.evaluator.output_dir = "${train.output_dir}/inference"
train = _recipe.train
train.update(seed=1, max_iter=8, eval_period=8, log_period=1)
train.checkpointer.update(period=2, max_to_keep=2)
