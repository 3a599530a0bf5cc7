"""Which layer a parameter belongs to, and learning rates that fall from layer to layer.

Layer 0 is the patch embedding with the class token and absolute positions, block i is layer
i + 1, and all that stands behind the last block is the layer after it: norms, heads, necks. This
is how PySlowFast (``SOLVER.LAYER_DECAY``) and detectron2's ViTDet count; the idea is BEiT's
(arXiv 2106.08254, appendix).
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn
from torch.optim import Optimizer

from .checks import check_whole, refuse
from .model import MViT

FIRST = re.compile(r"(patch_embed|pos_embed|cls_token)")
BLOCK = re.compile(r"blocks\.(\d+)\.")


def layer_of(name: str, depth: int) -> int:
    """The layer, 0 to ``depth + 1``, of a parameter by its name.

    Args:
        name: as ``MViT.named_parameters`` has it, without what a detector puts in front.
        depth: blocks of the model.

    Raises:
        ValueError: a depth that is none, or a block that a model of this depth does not have.
    """
    check_whole("depth", depth)
    if FIRST.match(name):
        return 0
    if not (block := BLOCK.match(name)):
        return depth + 1
    if int(block[1]) >= depth:
        refuse("depth", f"more than {block[1]}, the block of {name!r}", depth)
    return int(block[1]) + 1


def layer_scale(name: str, depth: int, decay: float) -> float:
    """``decay ** (depth + 1 - layer)``: 1 for heads, least for the patch embedding.

    Args:
        name, depth: as for ``layer_of``.
        decay: factor from one layer to the one before, in (0, 1].
    """
    check_decay("decay", decay)
    return decay ** (depth + 1 - layer_of(name, depth))


def check_decay(name: str, value: object) -> None:
    """ValueError unless ``value`` is a number in (0, 1]."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 < value <= 1:  # type: ignore[operator]
        refuse(name, "in (0, 1]", value)


def scale_layers(optimizer: Optimizer, model: nn.Module, decay: float) -> None:
    """Multiply every parameter's learning rate by its ``layer_scale``.

    The groups of the optimizer are divided by layer, and keep what else they say, such as weight
    decay. To be called before a learning-rate schedule is made, and before the first step.

    Args:
        optimizer: any of PyTorch's; its ``param_groups`` change.
        model: holds at least one ``MViT``, at any depth; parameters outside of it keep their rate.
        decay: as for ``layer_scale``.

    Raises:
        ValueError: no ``MViT`` in the model, or a decay out of range.
    """
    check_decay("decay", decay)
    trunks = [module for module in model.modules() if isinstance(module, MViT)]
    if not trunks:
        refuse("model", "one that holds an MViT", type(model).__name__)
    scales = {
        parameter: layer_scale(name, len(trunk.blocks), decay)
        for trunk in trunks
        for name, parameter in trunk.named_parameters()
    }
    groups: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        by_scale: dict[float, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            by_scale.setdefault(scales.get(parameter, 1.0), []).append(parameter)
        groups += [{**group, "params": p, "lr": group["lr"] * s} for s, p in by_scale.items()]
    optimizer.param_groups[:] = groups
