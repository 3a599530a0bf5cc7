"""Checkpoints: read without running anything, converted, fitted, loaded and accounted for.

The only place that edits state dicts.
"""

from .convert import convert_state_dict
from .load import fit_checkpoint, inflate_state_dict, load_checkpoint
from .reading import Checkpoint, read_checkpoint, read_content
from .report import CheckpointError, Entry, LoadReport

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Entry",
    "LoadReport",
    "convert_state_dict",
    "fit_checkpoint",
    "inflate_state_dict",
    "load_checkpoint",
    "read_checkpoint",
    "read_content",
]
