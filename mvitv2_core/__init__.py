"""MViTv2 for images and clips in plain PyTorch: one exact, rank-generic implementation."""

from .checkpoint import CheckpointError, LoadReport, inflate_state_dict, load_checkpoint
from .config import VARIANTS, MViTConfig
from .model import MViT, MViTClassifier
from .spec import BlockSpec

__all__ = [
    "VARIANTS",
    "BlockSpec",
    "CheckpointError",
    "LoadReport",
    "MViT",
    "MViTClassifier",
    "MViTConfig",
    "inflate_state_dict",
    "load_checkpoint",
]
