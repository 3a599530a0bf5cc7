"""Checkpoints: read without running anything, converted, fitted, loaded and accounted for.

The only place that edits state dicts. Seven rooms: ``formats`` (where ecosystems keep weights and
what they call tensors), ``files`` (reading; ``_unpickle`` is what it trusts pickles to), ``write``,
``fit`` (tensors to a model's shapes), ``hub`` (official weights), ``load`` (where they come
together) and ``describe`` (for people). ``report`` says what became of every tensor.
"""

from .files import Checkpoint, read_checkpoint, read_content
from .load import convert_state_dict, inflate_state_dict, load_checkpoint
from .report import CheckpointError, Entry, LoadReport

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Entry",
    "LoadReport",
    "convert_state_dict",
    "inflate_state_dict",
    "load_checkpoint",
    "read_checkpoint",
    "read_content",
]
