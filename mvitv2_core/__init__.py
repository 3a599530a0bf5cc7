"""MViTv2 for images and clips in plain PyTorch: one exact, rank-generic implementation."""

from .config import VARIANTS, BlockSpec, MViTConfig
from .model import MViT, MViTClassifier

__all__ = ["VARIANTS", "BlockSpec", "MViT", "MViTClassifier", "MViTConfig"]
