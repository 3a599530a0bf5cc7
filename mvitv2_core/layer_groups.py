"""Which layer a parameter belongs to by its name, and what layer decay makes of its rate.

Layer 0 is the patch embedding with the class token and absolute positions, block i is layer
i + 1, and all that stands behind the last block is the layer after it: norms, heads, necks. This
is how PySlowFast (``SOLVER.LAYER_DECAY``) and detectron2's ViTDet count; the idea is BEiT's
(arXiv 2106.08254, appendix).
"""

from __future__ import annotations

import re

from .checks import check_whole, refuse

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
