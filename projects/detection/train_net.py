"""Train from YAML with the paper's optimizer, where detectron2's tools/train_net.py has SGD only.

AdamW (betas 0.9 and 0.999) on ``SOLVER.BASE_LR`` and ``SOLVER.WEIGHT_DECAY``; norms decay by
``SOLVER.WEIGHT_DECAY_NORM`` (0), relative and absolute positions not at all: the groups of the
official LazyConfigs (there as here, the "LN" of an FPN does not count as a norm). Gradients are
clipped as ``SOLVER.CLIP_GRADIENTS`` says, mixed precision is ``SOLVER.AMP.ENABLED`` (CUDA only).
The command line is detectron2's: ``--config-file``, ``--resume``, ``--eval-only``, ``--num-gpus``,
and ``KEY VALUE`` pairs. Each data set is evaluated by the kind in its metadata, and once more on
several sizes of each image with ``TEST.AUG.ENABLED``.

    python projects/detection/train_net.py --config-file FILE.yaml [--num-gpus 8] [KEY VALUE ...]

A LazyConfig with ``train.sharded=True`` trains with its weights divided over the GPUs
(``mvitv2_d2.sharded``); without, detectron2's tools/lazyconfig_train_net.py trains it.

    python projects/detection/train_net.py --config-file FILE.py --num-gpus 8 train.sharded=True
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, LazyConfig, get_cfg
from detectron2.data import MetadataCatalog
from detectron2.engine import (
    DefaultTrainer,
    default_argument_parser,
    default_setup,
    hooks,
    launch,
)
from detectron2.evaluation import (
    CityscapesInstanceEvaluator,
    CityscapesSemSegEvaluator,
    COCOEvaluator,
    COCOPanopticEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    LVISEvaluator,
    PascalVOCDetectionEvaluator,
    SemSegEvaluator,
    verify_results,
)
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from detectron2.utils import comm

import mvitv2_d2.backbone  # noqa: F401  registers the backbones
from mvitv2_core.training import average_of
from mvitv2_d2 import add_mvitv2_config
from mvitv2_d2.training import prepare_from_cfg

POSITIONS = ("pos_embed", "rel_pos_h", "rel_pos_w")
# By a data set's ``evaluator_type``, as in detectron2's tools/train_net.py: from the name of the
# data set and the folder for what was predicted.
EVALUATORS: dict[str, list[Callable[[str, str], DatasetEvaluator]]] = {
    "coco": [lambda name, out: COCOEvaluator(name, output_dir=out)],
    "lvis": [lambda name, out: LVISEvaluator(name, output_dir=out)],
    "sem_seg": [lambda name, out: SemSegEvaluator(name, output_dir=out)],
    "coco_panoptic_seg": [
        lambda name, out: SemSegEvaluator(name, output_dir=out),
        lambda name, out: COCOEvaluator(name, output_dir=out),
        lambda name, out: COCOPanopticEvaluator(name, out),
    ],
    "cityscapes_instance": [lambda name, _: CityscapesInstanceEvaluator(name)],
    "cityscapes_sem_seg": [lambda name, _: CityscapesSemSegEvaluator(name)],
    "pascal_voc": [lambda name, _: PascalVOCDetectionEvaluator(name)],
}


class Trainer(DefaultTrainer):
    """detectron2's trainer with AdamW and the evaluation of each data set's own kind."""

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
        """AdamW with the groups described above.

        Raises:
            ValueError: keys of SGD are set, which AdamW would ignore.
        """
        solver, defaults = cfg.SOLVER, get_cfg().SOLVER
        for key in ("MOMENTUM", "NESTEROV"):
            if solver[key] != defaults[key]:
                raise ValueError(
                    f"SOLVER.{key} must be left at {defaults[key]} with AdamW, got {solver[key]}"
                )
        params = get_default_optimizer_params(
            model,
            base_lr=solver.BASE_LR,
            weight_decay_norm=solver.WEIGHT_DECAY_NORM,
            bias_lr_factor=solver.BIAS_LR_FACTOR,
            weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
            overrides={name: {"weight_decay": 0.0} for name in POSITIONS},
        )
        adamw = maybe_add_gradient_clipping(cfg, torch.optim.AdamW)
        optimizer = adamw(params, lr=solver.BASE_LR, weight_decay=solver.WEIGHT_DECAY)
        return prepare_from_cfg(cfg, model, optimizer)

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None
    ) -> DatasetEvaluator:
        """What measures ``dataset_name``; predictions go to ``OUTPUT_DIR/inference``.

        Raises:
            ValueError: the data set has no ``evaluator_type`` of ``EVALUATORS``.
        """
        kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
        if kind not in EVALUATORS:
            raise ValueError(
                f"evaluator_type of {dataset_name} must be one of {', '.join(EVALUATORS)}, "
                f"got {kind!r}"
            )
        folder = output_folder or f"{cfg.OUTPUT_DIR}/inference"
        made = [make(dataset_name, folder) for make in EVALUATORS[kind]]
        return made[0] if len(made) == 1 else DatasetEvaluators(made)

    @classmethod
    def test_augmented(cls, cfg: CfgNode, model: torch.nn.Module) -> dict[str, Any]:
        """Evaluate on the sizes of ``TEST.AUG``, mirrored too, as detectron2's tool does.

        Predictions go to ``OUTPUT_DIR/inference_TTA``; names of results end with ``_TTA``.
        """
        average = average_of(model)
        if average is not None and average.started:
            # detectron2 calls `inference` here, not `forward`, which would go to the average.
            model = average.current()
        folder = f"{cfg.OUTPUT_DIR}/inference_TTA"
        evaluators = [cls.build_evaluator(cfg, name, folder) for name in cfg.DATASETS.TEST]
        results = cls.test(cfg, GeneralizedRCNNWithTTA(cfg, model), evaluators)
        return {f"{name}_TTA": value for name, value in results.items()}


def setup(args: Any) -> CfgNode:
    """The frozen config of a command line.

    Raises:
        ValueError: ``TEST.AUG.ENABLED`` with a detector that detectron2 does not augment.
    """
    cfg = get_cfg()
    add_mvitv2_config(cfg)
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    cfg.freeze()
    kind, keypoints = cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.KEYPOINT_ON
    if cfg.TEST.AUG.ENABLED and (kind != "GeneralizedRCNN" or keypoints):
        raise ValueError(
            "TEST.AUG.ENABLED must be False but for a GeneralizedRCNN without keypoints, got "
            f"MODEL.META_ARCHITECTURE {kind} and MODEL.KEYPOINT_ON {keypoints}"
        )
    default_setup(cfg, args)
    return cfg


def train_lazy(args: Any) -> None:
    """Train a LazyConfig sharded.

    Raises:
        ValueError: ``train.sharded`` is off, or ``--eval-only`` is given: detectron2's own tool
            serves both; or see ``sharded.check``.
    """
    from mvitv2_d2 import sharded

    cfg = LazyConfig.apply_overrides(LazyConfig.load(args.config_file), args.opts)
    if args.eval_only or not cfg.train.get("sharded", False):
        raise ValueError(
            "train_net.py takes a LazyConfig with train.sharded=True and without --eval-only: "
            "detectron2's tools/lazyconfig_train_net.py does the rest, also with model_final.pth "
            "of a sharded run"
        )
    default_setup(cfg, args)
    sharded.train(cfg, resume=args.resume)


def main(args: Any) -> Any:
    """Train, or evaluate with ``--eval-only``; returns the results."""
    if args.config_file.endswith(".py"):
        return train_lazy(args)
    cfg = setup(args)
    if args.eval_only:
        model = Trainer.build_model(cfg)
        checkpointer = DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR)
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        results = Trainer.test(cfg, model)
        if cfg.TEST.AUG.ENABLED:
            results.update(Trainer.test_augmented(cfg, model))
        if comm.is_main_process():
            verify_results(cfg, results)
        return results
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    if cfg.TEST.AUG.ENABLED:
        augmented = partial(Trainer.test_augmented, cfg, trainer.model)
        trainer.register_hooks([hooks.EvalHook(0, augmented)])
    return trainer.train()


if __name__ == "__main__":
    arguments = default_argument_parser().parse_args()
    launch(
        main,
        arguments.num_gpus,
        num_machines=arguments.num_machines,
        machine_rank=arguments.machine_rank,
        dist_url=arguments.dist_url,
        args=(arguments,),
    )
