"""MViTv2 for images and clips in plain PyTorch: one exact, rank-generic implementation.

To read the model as the paper has it: ``config`` (what a model is), ``model`` (trunk and
classifier), ``block`` (figure 2), ``attention``, ``rel_pos`` and ``plain`` (the arithmetic).
``ops`` is the door to ``fast``, where speed lives; ``checkpoint`` reads and writes weights.
"""

from .checkpoint import CheckpointError, LoadReport, inflate_state_dict, load_checkpoint
from .config import BlockSpec, MViTConfig
from .model import MViT, MViTClassifier
from .rows import VARIANTS

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
