"""MViTv2 for images and clips in plain PyTorch: one exact, rank-generic implementation."""

from .checkpoint import CheckpointError, LoadReport, inflate_state_dict, load_checkpoint
from .config import VARIANTS, MViTConfig
from .labels import read_labels
from .model import MViT, MViTClassifier
from .model_info import ModelInfo
from .models import create_model, list_models
from .spec import BlockSpec
from .transforms import create_transform

__all__ = [
    "VARIANTS",
    "BlockSpec",
    "CheckpointError",
    "LoadReport",
    "MViT",
    "MViTClassifier",
    "MViTConfig",
    "ModelInfo",
    "create_model",
    "create_transform",
    "inflate_state_dict",
    "list_models",
    "load_checkpoint",
    "read_labels",
]
