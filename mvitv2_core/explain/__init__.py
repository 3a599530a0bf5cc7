"""Where a model looks: attention of chosen queries, rollout over all blocks, Grad-CAM.

Put the model into evaluation mode first: dropped paths are no explanation.
"""

from .attention import AttentionMaps, BlockAttention, attention_maps
from .grad_cam import deepest_block, enlarge, grad_cam, stage_block
from .rollout import attention_rollout

__all__ = [
    "AttentionMaps",
    "BlockAttention",
    "attention_maps",
    "attention_rollout",
    "deepest_block",
    "enlarge",
    "grad_cam",
    "stage_block",
]
