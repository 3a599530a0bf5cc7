"""Layer decay, an average of the weights, accumulation and bfloat16 under detectron2's trainers.

``tools/train_net.py`` reads keys in ``MODEL.MVITV2`` under the hook ``mvitv2_d2.env``;
``tools/lazyconfig_train_net.py`` takes an optimizer from ``with_training`` and a ``LayerDecay``.
docs/training.md has all of them. detectron2's checkpointer saves and resumes the average (see
``checkpoint``).
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import MethodType
from typing import Any

from detectron2.engine import DefaultTrainer
from detectron2.solver.build import get_default_optimizer_params
from detectron2.utils.events import get_event_storage, has_event_storage
from detectron2.utils.registry import _convert_target_to_string, locate
from torch import Tensor, nn
from torch.optim import Optimizer

from mvitv2_core.checks import check_flag, check_rate, check_whole, refuse
from mvitv2_core.layer_groups import check_decay, layer_scale
from mvitv2_core.training import (
    Accumulation,
    Average,
    scale_layers,
    train_deterministically,
)
from mvitv2_core.training import bfloat16 as autocast

from .backbone import MViT
from .checkpoint import install as install_checkpointer
from .sample import sample

install_checkpointer()  # it saves and resumes the average
CHECKS: dict[str, Callable[[str, object], None]] = {
    "LAYER_DECAY": check_decay,
    "EMA_DECAY": check_rate,
    "ACCUMULATE": check_whole,
    "BFLOAT16": check_flag,
    "DETERMINISTIC": check_flag,
    "VAL_SAMPLE": partial(check_whole, least=0),
}


@dataclass(frozen=True)
class LayerDecay:
    """``lr_factor_func`` of detectron2's ``get_default_optimizer_params``, as ViTDet's configs.

    Args:
        decay: factor of the learning rate from one block to the one before, in (0, 1].
        depth: blocks of the backbone; "${model.backbone.bottom_up.depth}" in a LazyConfig.

    Raises:
        ValueError: a value out of range; a block that a backbone of this depth does not have.
    """

    decay: float
    depth: int

    def __post_init__(self) -> None:
        check_decay("decay", self.decay)
        check_whole("depth", self.depth)

    def __call__(self, name: str) -> float:
        """The factor of a parameter of the detector; 1 outside of its backbone's blocks."""
        if not name.startswith("backbone."):
            return 1.0
        name = name.removeprefix("backbone.").removeprefix("bottom_up.")
        return layer_scale(name, self.depth, self.decay)


def prepare(
    model: nn.Module,
    optimizer: Optimizer,
    ema_decay: float = 0.0,
    accumulate: int = 1,
    bfloat16: bool = False,
    deterministic: bool = False,
) -> Optimizer:
    """The optimizer, with what its training needs put onto it and onto the model.

    Args:
        model: the detector, before DistributedDataParallel.
        ema_decay: of ``Average``; 0 for none.
        accumulate: batches to an optimizer step (``Accumulation``).
        bfloat16: ``train_in_bfloat16``.
        deterministic: ``train_deterministically``.
    """
    if ema_decay:
        Average(model, optimizer, ema_decay)
    if accumulate > 1:
        Accumulation(optimizer, accumulate)
    if bfloat16:
        train_in_bfloat16(model)
    if deterministic:
        train_deterministically()
    return optimizer


def train_in_bfloat16(model: nn.Module) -> None:
    """Let the ``MViT`` of a detector run under bfloat16 autocast in training; no more than that.

    Its features go on in float32, and neck, heads and losses are as without: detectron2 rounds
    boxes to the features' dtype, which has steps of 2 pixels from 256 on, and its naiveSyncBN
    takes variances as differences, widening float16 alone. Evaluation is as without.

    Args:
        model: its trunks' ``forward`` are replaced; calls in training raise RuntimeError under
            another autocast, which would take part of the arithmetic.

    Raises:
        ValueError: no ``MViT`` in the model.
    """
    trunks = [module for module in model.modules() if isinstance(module, MViT)]
    if not trunks:
        refuse("model", "one that holds an MViT with bfloat16", type(model).__name__)
    for trunk in trunks:
        # A method, which a copy of the model has of the copy.
        trunk.forward = MethodType(_forward_in_bfloat16, trunk)  # type: ignore[method-assign]


def _forward_in_bfloat16(trunk: MViT, x: Tensor) -> dict[str, Tensor]:
    forward = type(trunk).forward
    if not trunk.training:
        return forward(trunk, x)
    with autocast(x.device):
        features = forward(trunk, x)
    dtype = next(trunk.parameters()).dtype
    return {name: feature.to(dtype) for name, feature in features.items()}


def prepare_from_cfg(cfg: Any, model: nn.Module, optimizer: Optimizer) -> Optimizer:
    """``prepare`` and layer decay as ``MODEL.MVITV2`` says.

    Raises:
        ValueError: a value out of range, BFLOAT16 beside ``SOLVER.AMP.ENABLED``, or VAL_SAMPLE
            without evaluations in training or on data that are not COCO's.
    """
    node = cfg.MODEL.MVITV2
    for key, check in CHECKS.items():
        check(f"MODEL.MVITV2.{key}", node[key])
    if node.BFLOAT16 and cfg.SOLVER.AMP.ENABLED:
        refuse("SOLVER.AMP.ENABLED (float16)", "False with MODEL.MVITV2.BFLOAT16", True)
    if node.VAL_SAMPLE:
        if cfg.TEST.EVAL_PERIOD <= 0:
            refuse(
                "TEST.EVAL_PERIOD", "positive with MODEL.MVITV2.VAL_SAMPLE", cfg.TEST.EVAL_PERIOD
            )
        for name in cfg.DATASETS.TEST:
            sample(name, node.VAL_SAMPLE)  # refuses data sets that have none
    if node.LAYER_DECAY < 1:
        scale_layers(optimizer, model, node.LAYER_DECAY)
    names = ("EMA_DECAY", "ACCUMULATE", "BFLOAT16", "DETERMINISTIC")
    return prepare(model, optimizer, **{name.lower(): node[name] for name in names})


def install() -> None:
    """Let ``DefaultTrainer`` read the keys of ``MODEL.MVITV2``; doing it again changes nothing."""
    original = DefaultTrainer.build_optimizer.__func__
    if hasattr(original, "_mvitv2"):
        return

    @functools.wraps(original)
    def build_optimizer(cls: Any, cfg: Any, model: nn.Module) -> Optimizer:
        optimizer = original(cls, cfg, model)
        return prepare_from_cfg(cfg, model, optimizer) if "MVITV2" in cfg.MODEL else optimizer

    test = DefaultTrainer.test.__func__

    @functools.wraps(test)
    def test_on_sample(cls: Any, cfg: Any, model: nn.Module, evaluators: Any = None) -> Any:
        if evaluators is None and "MVITV2" in cfg.MODEL and _is_early(cfg):
            cfg = cfg.clone()
            cfg.defrost()
            cfg.DATASETS.TEST = tuple(
                sample(name, cfg.MODEL.MVITV2.VAL_SAMPLE) for name in cfg.DATASETS.TEST
            )
        return test(cls, cfg, model, evaluators)

    build_optimizer._mvitv2 = True  # type: ignore[attr-defined]
    DefaultTrainer.build_optimizer = classmethod(build_optimizer)
    DefaultTrainer.test = classmethod(test_on_sample)


def _is_early(cfg: Any) -> bool:
    """Whether a sample is to be evaluated: during training, but for its end."""
    if not cfg.MODEL.MVITV2.VAL_SAMPLE or not has_event_storage():
        return False
    return get_event_storage().iter + 1 < cfg.SOLVER.MAX_ITER


class Groups(list):
    """Parameter groups that remember their model: a LazyConfig trainer tells it them alone."""

    def __init__(self, model: nn.Module, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups)
        self.model = model


def make_groups(
    model: nn.Module,
    groups: str | Callable[..., Any] = get_default_optimizer_params,
    **kwargs: Any,
) -> Groups:
    """``groups(model, **kwargs)`` for ``make_optimizer``.

    Args:
        groups: a function, or its name with dots.

    Raises:
        ValueError: a ``LayerDecay`` of another depth than the backbone's.
    """
    factor = kwargs.get("lr_factor_func")
    for module in model.modules():
        if not isinstance(factor, LayerDecay) or not isinstance(module, MViT):
            continue
        if factor.depth != len(module.blocks):
            refuse("depth of LayerDecay", f"the backbone's {len(module.blocks)}", factor.depth)
    return Groups(model, _located(groups)(model=model, **kwargs))


def make_optimizer(
    params: Groups,
    optimizer: str | Callable[..., Optimizer] = "torch.optim.AdamW",
    ema_decay: float = 0.0,
    accumulate: int = 1,
    bfloat16: bool = False,
    deterministic: bool = False,
    **kwargs: Any,
) -> Optimizer:
    """An optimizer for ``tools/lazyconfig_train_net.py`` with what training needs.

    Args:
        params: from ``make_groups``.
        optimizer: a class, or its name with dots; ``kwargs`` are its own.
        ema_decay, accumulate, bfloat16, deterministic: as for ``prepare``.

    Raises:
        ValueError: values out of range, or ``params`` of another maker.
    """
    options: dict[str, Any] = {"ema_decay": ema_decay, "accumulate": accumulate}
    options |= {"bfloat16": bfloat16, "deterministic": deterministic}
    for name, value in options.items():
        CHECKS[name.upper()](f"optimizer.{name}", value)
    if not isinstance(params, Groups):
        refuse("optimizer.params._target_", "mvitv2_d2.training.make_groups", type(params).__name__)
    return prepare(params.model, _located(optimizer)(params=params, **kwargs), **options)


def with_training(optimizer: Any, **options: Any) -> Any:
    """A LazyConfig's optimizer, made by ``make_optimizer``.

    Args:
        optimizer: such as ``model_zoo.get_config("common/optim.py").AdamW``; it is not changed.
        options: arguments of ``prepare``. They become keys, to override on the command line.
    """
    lazy = copy.deepcopy(optimizer)
    lazy.params.groups = _convert_target_to_string(_located(lazy.params._target_))
    lazy.optimizer = _convert_target_to_string(_located(lazy._target_))
    lazy.params._target_, lazy._target_ = make_groups, make_optimizer
    for name, value in options.items():
        lazy[name] = value
    return lazy


def _located(target: Any) -> Any:
    return locate(target) if isinstance(target, str) else target
