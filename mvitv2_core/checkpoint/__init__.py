"""Checkpoints: read without running anything, converted, fitted, loaded and accounted for.

The only place that edits state dicts.
"""

from .load import inflate_state_dict, load_checkpoint
from .reading import Checkpoint, read_checkpoint
from .report import CheckpointError, Entry, LoadReport

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Entry",
    "LoadReport",
    "inflate_state_dict",
    "load_checkpoint",
    "read_checkpoint",
]
