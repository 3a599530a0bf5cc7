"""A small MViTv2 image classifier, trained here on drawn pictures: what the others start from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import trange

from mvitv2_core import MViTClassifier, MViTConfig
from mvitv2_core.checkpoint.files import whole_file
from mvitv2_core.config import lay_out
from mvitv2_core.rows import stage_rows
from projects.fitting import fit
from projects.learning.data import PICTURE, draw_pictures
from projects.video.scenes import SHAPES

DEPTHS, WIDTH = (1, 1, 2, 1), 24  # as in detection.yaml and video.yaml
MEAN, STD = 114.75, 57.375  # of 0 to 255, as in both
BATCH, RATE, WEIGHT_DECAY = 64, 2e-3, 0.05


def build() -> MViTClassifier:
    """The classifier, before training: a grid of 8 x 8 tokens, four stages."""
    config = MViTConfig.variant("T", (PICTURE, PICTURE), num_classes=len(SHAPES))
    rows = stage_rows(DEPTHS, WIDTH, 1, (4, 4))
    return MViTClassifier(replace(config, blocks=lay_out(rows, WIDTH, (PICTURE // 4,) * 2)))


def to_pixels(images: np.ndarray) -> Tensor:
    """(B, H, W, 3) of 0 to 255 -> (B, 3, H, W), normalised."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    return (pixels - MEAN) / STD


def pretrain(path: Path, pictures: int, steps: int, seed: int = 0) -> float:
    """Train, and write the weights to ``path``.

    Args:
        path: of the checkpoint, ``.pyth``.
        pictures: that are drawn; an eighth as many others are for validation.
        steps: of BATCH pictures, each turned over at random.
        seed: of the weights, the pictures and their order.

    Returns:
        Top-1 accuracy on the validation pictures, percent.
    """
    images, labels = draw_pictures(pictures, 2 * seed)
    held_out = draw_pictures(max(pictures // 8, len(SHAPES)), 2 * seed + 1)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = build()

    def batch() -> tuple[Tensor, Tensor]:
        chosen = rng.integers(pictures, size=BATCH)
        return to_pixels(turned(images[chosen], rng)), torch.from_numpy(labels[chosen])

    bar = trange(steps, desc="image model", unit="step", disable=None)
    fit(model, batch, bar, RATE, WEIGHT_DECAY)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        torch.save({"model_state": model.state_dict()}, temporary)
    return top1(model, *held_out)


def turned(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(B, H, W, 3) pictures, each mirrored or not along both axes: no class changes."""
    signs = rng.choice((-1, 1), size=(len(images), 2))
    pairs = zip(images, signs, strict=True)
    return np.stack([image[::down, ::across] for image, (down, across) in pairs])


@torch.no_grad()
def top1(model: MViTClassifier, images: np.ndarray, labels: np.ndarray) -> float:
    """Accuracy on uint8 pictures, percent."""
    scores = torch.cat([model(to_pixels(part)) for part in np.array_split(images, 8)])
    return 100 * (scores.argmax(dim=1) == torch.from_numpy(labels)).double().mean().item()
