"""LVIS v1 instead of COCO: 1203 classes, rare ones repeated, federated loss with sigmoids."""

from functools import partial

from detectron2.config import LazyCall as L
from detectron2.data.detection_utils import get_fed_loss_cls_weights
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.evaluation import LVISEvaluator


def lvis(model, dataloader):
    """Turn a Cascade Mask R-CNN on COCO into one on LVIS, in place (ViTDet's settings)."""
    dataloader.train.dataset.names = "lvis_v1_train"
    dataloader.test.dataset.names = "lvis_v1_val"
    dataloader.train.sampler = L(RepeatFactorTrainingSampler)(
        repeat_factors=L(RepeatFactorTrainingSampler.repeat_factors_from_category_frequency)(
            dataset_dicts="${dataloader.train.dataset}", repeat_thresh=0.001
        )
    )
    dataloader.evaluator = L(LVISEvaluator)(
        dataset_name="${..test.dataset.names}", max_dets_per_image=300
    )
    model.roi_heads.num_classes = 1203
    for predictor in model.roi_heads.box_predictors:
        predictor.update(
            test_score_thresh=0.02,
            test_topk_per_image=300,
            use_sigmoid_ce=True,
            use_fed_loss=True,
            get_fed_loss_cls_weights=partial(get_fed_loss_cls_weights, "lvis_v1_train", 0.5),
        )
