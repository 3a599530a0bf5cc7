"""The paper's image initialisation inside PySlowFast's trainer: ``MVITV2.IMAGE_CHECKPOINT``."""

from __future__ import annotations

from typing import Any

from torch import nn


def load_image_weights(model: nn.Module, cfg: Any) -> None:
    """Nothing yet: the key is not known."""
