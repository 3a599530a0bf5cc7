"""A detector's weights: which ones, and all of them into its model."""

from __future__ import annotations

from pathlib import Path

import torch

from mvitv2_core.checkpoint import CheckpointError, read_checkpoint
from mvitv2_core.checkpoint.load import weights_path
from mvitv2_core.checkpoint.report import listing
from mvitv2_core.model_info import OFFICIAL
from mvitv2_core.path_manager import PREFIX
from mvitv2_core.training import EMA_KEY

# Constants that the config sets and old files hold as well.
CONSTANTS = ("pixel_mean", "pixel_std", "cell_anchors.")


def check_weights(config: Path, weights: str) -> None:
    """Raise ValueError for weights, of a config or asked for, that no detector has here: none, an
    image or clip model's official ones, or a URL."""
    if not weights:
        raise ValueError(f"{config}: --weights must name its weights")
    name = weights.removeprefix(PREFIX)
    trunk = name in OFFICIAL and OFFICIAL[name].config is not None
    if trunk or "://" in name:
        raise ValueError(
            f"{config}: {weights} is what training starts from, or a URL: give --weights FILE"
        )


def load_detector(model: torch.nn.Module, weights: str) -> str:
    """Load a detector's weights, all of them, through this project's reader.

    Of a training with an average of the weights it takes that, as the trainer's evaluation does;
    returns words that say so.
    """
    path = weights_path(weights)
    checkpoint, which = read_checkpoint(path, check=False), ""
    if checkpoint.ema == EMA_KEY:
        which = " (their average)"
        checkpoint = read_checkpoint(path, check=False, ema=True)
    state = checkpoint.state
    held = model.state_dict()
    wrong = [n for n, v in state.items() if n in held and held[n].shape != v.shape]
    missing = [name for name in held if name not in state]
    extra = [n for n in state if n not in held and not any(c in n for c in CONSTANTS)]
    causes = [
        f"{text} ({len(names)}): {listing(names)}"
        for text, names in (
            ("of another shape", wrong),
            ("missing in the file", missing),
            ("without a place in the model", extra),
        )
        if names
    ]
    if causes:
        raise CheckpointError(f"{path}: does not fit the config's detector: {'; '.join(causes)}")
    model.load_state_dict({name: state[name] for name in held})
    return which
