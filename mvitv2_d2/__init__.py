"""MViTv2 as a detectron2 backbone.

Importing this package, or ``mvitv2_d2.env``, imports nothing of detectron2 unless its hook is
exported: the hook module is loaded while detectron2 itself is being imported. Names resolve on
first use.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if os.environ.get("DETECTRON2_ENV_MODULE"):
    # It runs the hook, which imports our modules: before one of them is itself half imported.
    import detectron2  # noqa: F401

if TYPE_CHECKING:
    from .backbone import (
        MViT,
        build_mvitv2_backbone,
        build_mvitv2_fpn_backbone,
        build_retinanet_mvitv2_fpn_backbone,
    )
    from .config import add_mvitv2_config

__all__ = [
    "MViT",
    "add_mvitv2_config",
    "build_mvitv2_backbone",
    "build_mvitv2_fpn_backbone",
    "build_retinanet_mvitv2_fpn_backbone",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import backbone, config

    return getattr(config if name == "add_mvitv2_config" else backbone, name)
