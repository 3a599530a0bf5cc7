"""Train from YAML with the paper's optimizer, where detectron2's tools/train_net.py has SGD only.

AdamW (betas 0.9 and 0.999) on ``SOLVER.BASE_LR`` and ``SOLVER.WEIGHT_DECAY``; norms decay by
``SOLVER.WEIGHT_DECAY_NORM`` (0), relative and absolute positions not at all: the groups of the
official LazyConfigs (there as here, the "LN" of an FPN does not count as a norm). Gradients are
clipped as ``SOLVER.CLIP_GRADIENTS`` says, mixed precision is ``SOLVER.AMP.ENABLED`` (CUDA only).
The command line is detectron2's: ``--config-file``, ``--resume``, ``--eval-only``, ``--num-gpus``,
and ``KEY VALUE`` pairs.

    python projects/detection/train_net.py --config-file FILE.yaml [--num-gpus 8] [KEY VALUE ...]
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import DefaultTrainer, default_argument_parser, default_setup, launch
from detectron2.evaluation import COCOEvaluator, verify_results
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from detectron2.utils import comm

import mvitv2_d2.backbone  # noqa: F401  registers the backbones
from mvitv2_d2 import add_mvitv2_config

POSITIONS = ("pos_embed", "rel_pos_h", "rel_pos_w")


class Trainer(DefaultTrainer):
    """detectron2's trainer with AdamW and COCO evaluation."""

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
        return adamw(params, lr=solver.BASE_LR, weight_decay=solver.WEIGHT_DECAY)

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None
    ) -> COCOEvaluator:
        """Box and mask AP; detections go to ``OUTPUT_DIR/inference``."""
        return COCOEvaluator(
            dataset_name, output_dir=output_folder or f"{cfg.OUTPUT_DIR}/inference"
        )


def setup(args: Any) -> CfgNode:
    """The frozen config of a command line."""
    cfg = get_cfg()
    add_mvitv2_config(cfg)
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    cfg.freeze()
    default_setup(cfg, args)
    return cfg


def main(args: Any) -> Any:
    """Train, or evaluate with ``--eval-only``; returns the results."""
    cfg = setup(args)
    if args.eval_only:
        model = Trainer.build_model(cfg)
        checkpointer = DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR)
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        results = Trainer.test(cfg, model)
        if comm.is_main_process():
            verify_results(cfg, results)
        return results
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
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
