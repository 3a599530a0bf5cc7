"""MViTv2 for images and clips in plain PyTorch: one exact, rank-generic implementation.

To read the model as the paper has it: ``config`` (what a model is), ``model`` (trunk and
classifier), ``block`` (figure 2), ``attention``, ``rel_pos`` and ``plain`` (the arithmetic).
``ops`` and its table ``forms`` are the door to ``fast``, where speed lives; ``checkpoint`` reads
and writes weights.
"""

from .checkpoint import CheckpointError, LoadReport, inflate_state_dict, load_checkpoint
from .config import BlockSpec, MViTConfig
from .feature_maps import MViTFeatures
from .features import FeatureInfo, feature_grid, layer_decay_groups
from .labels import read_labels
from .model import MViT, MViTClassifier
from .model_info import ModelInfo
from .models import create_model, list_models
from .rows import VARIANTS
from .transforms import create_transform

__version__ = "0.2.0"

__all__ = [
    "VARIANTS",
    "BlockSpec",
    "CheckpointError",
    "FeatureInfo",
    "LoadReport",
    "MViT",
    "MViTClassifier",
    "MViTConfig",
    "MViTFeatures",
    "ModelInfo",
    "create_model",
    "create_transform",
    "feature_grid",
    "inflate_state_dict",
    "layer_decay_groups",
    "list_models",
    "load_checkpoint",
    "read_labels",
]
