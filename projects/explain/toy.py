"""Do explanations point at the object? A small classifier of drawn shapes, and its maps.

    python -m projects.explain.toy [--out outputs/explain] [--steps 1000] [--seeds 3] [--keep]

One shape of a class and a size of its own lies anywhere in a picture of 64 x 64 pixels, among
spots of other colours. The model is trained here, then explains 200 fresh pictures. It does so
with a mean over the tokens and with a class token, each with some seeds. Writes results.json, and
weights and a picture of each.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mvitv2_core import MViTClassifier, MViTConfig
from mvitv2_core.config import lay_out
from mvitv2_core.explain import attention_maps, attention_rollout, enlarge, grad_cam, stage_block
from mvitv2_core.explain.grad_cam import METHODS
from mvitv2_core.rows import stage_rows
from projects.benchmark.kept import keep, machine, write_json
from projects.fitting import fit
from projects.video.scenes import box, draw_background, draw_look, paint

CLASSES = ("disc", "triangle", "plus", "ring")
SIZE, SPOTS, SPREAD = 64, 14, 0.28
DEPTHS, WIDTH = (2, 2), 32
KINDS = ("mean", "class token")
BATCH, RATE = 32, 2e-3


class Pictures(NamedTuple):
    """Drawn pictures.

    Args:
        images: (B, 3, SIZE, SIZE) from -1 to 1.
        labels: (B,) indices of CLASSES.
        boxes: (B, 4) squares round the shapes: x1, y1, x2, y2 from 0 to 1.
    """

    images: Tensor
    labels: Tensor
    boxes: Tensor


def draw(rng: np.random.Generator, count: int) -> Pictures:
    """Fresh pictures, a random class each."""
    images, labels, boxes = [], [], []
    for label in rng.integers(len(CLASSES), size=count):
        look = draw_look(rng, CLASSES[label], spread=SPREAD)
        canvas = draw_background(look, SIZE, SIZE)
        for _ in range(SPOTS):
            canvas = spot(canvas, rng)
        images.append(paint(canvas, look) / 127.5 - 1)
        labels.append(label)
        boxes.append(box(look, SIZE, SIZE))
    pixels = torch.from_numpy(np.stack(images)).float().permute(0, 3, 1, 2)
    return Pictures(pixels.contiguous(), torch.tensor(labels), torch.tensor(boxes))


def spot(canvas: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A soft spot of any colour, smaller than a shape."""
    x, y = rng.uniform(0, SIZE, 2)
    across = np.arange(SIZE) + 0.5
    radius = rng.uniform(0.015, 0.04) * SIZE
    along = [np.exp(-((across - centre) ** 2) / (2 * radius**2)) for centre in (y, x)]
    cover = np.outer(*along)[..., None]
    return canvas * (1 - cover) + cover * rng.uniform(0, 255, 3)


def build(kind: str) -> MViTClassifier:
    """Two stages of two blocks, grids of 16 x 16 and 8 x 8; ``kind`` is one of KINDS."""
    rows = stage_rows(DEPTHS, WIDTH, 1, (4, 4))
    config = MViTConfig.variant(
        "T", (SIZE, SIZE), num_classes=len(CLASSES), cls_token=kind == "class token"
    )
    return MViTClassifier(replace(config, blocks=lay_out(rows, WIDTH, (SIZE // 4,) * 2)))


def train(kind: str, steps: int, seed: int = 0, quiet: bool = False) -> MViTClassifier:
    """Train on fresh pictures at every step."""
    from tqdm import trange

    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = build(kind)
    bar = trange(steps, disable=True if quiet else None, desc=kind)
    fit(model, lambda: draw(rng, BATCH)[:2], bar, RATE, weight_decay=0.05)
    return model


def on_object(maps: Tensor, boxes: Tensor) -> float:
    """In what share of (B, h, w) maps the strongest cell's centre lies in the object's box.

    The centre of what the kernels of patch embedding and pools see, as in ``enlarge``.
    """
    height, width = maps.shape[1:]
    best = maps.flatten(1).argmax(dim=1)
    x, y = (best % width) / width + 0.5 / SIZE, (best // width) / height + 0.5 / SIZE
    x1, y1, x2, y2 = boxes.unbind(1)
    return ((x > x1) & (x < x2) & (y > y1) & (y < y2)).double().mean().item()


def in_boxes(boxes: Tensor, centres: Tensor) -> Tensor:
    """(B, n, n) whether places of a grid, at ``centres`` along either axis, lie in (B, 4) boxes."""
    x1, y1, x2, y2 = (side[:, None] for side in boxes.unbind(1))
    across, down = (centres > x1) & (centres < x2), (centres > y1) & (centres < y2)
    return down[:, :, None] & across[:, None]


def share(maps: Tensor, boxes: Tensor) -> tuple[float, float]:
    """Mean share of (B, h, w) maps, enlarged, inside the boxes, and that of the boxes' area."""
    fine = enlarge(maps, (SIZE, SIZE))
    inside = in_boxes(boxes, (torch.arange(SIZE) + 0.5) / SIZE).double()
    held = (fine * inside).sum(dim=(1, 2)) / fine.sum(dim=(1, 2)).clamp_min(1e-12)
    return held.mean().item(), inside.mean().item()


def measure(model: MViTClassifier, count: int = 200, seed: int = 1_000_000) -> dict[str, float]:
    """What the maps of fresh pictures point at."""
    pictures = draw(np.random.default_rng(seed), count)
    images, labels, boxes = pictures
    with torch.no_grad():
        correct = (model(images).argmax(dim=1) == labels).double().mean().item()
    results: dict[str, float] = {"pictures": count, "top1": correct}
    for stage in range(len(DEPTHS)):
        block = stage_block(model, stage)
        for method in METHODS:
            cams = grad_cam(model, images, labels, block, method)
            name = f"{method}_stage{stage + 1}"
            results[f"{name}_on_object"] = on_object(cams, boxes)
            results[f"{name}_share"], _ = share(cams, boxes)
    query = "cls" if model.config.cls_token else "mean"
    for block in range(len(model.blocks)):
        maps = attention_maps(model, images, block, [query]).grid[:, 0].mean(dim=1)
        held, area = share(maps, boxes)
        results[f"attention_block{block}_share"] = held
        results[f"attention_block{block}_on_object"] = on_object(maps, boxes)
    maps = attention_rollout(model, images)
    results["rollout_share"], results["area_share"] = share(maps, boxes)
    results["rollout_on_object"] = on_object(maps, boxes)
    # Chance: a map that is the same everywhere holds the area's share; so does a random cell.
    assert results["area_share"] == area
    return results


def picture(model: MViTClassifier, target: Path, seed: int = 7, count: int = 6) -> None:
    """Rows of pictures, of two gradient methods at stage 1, attention of block 2, rollout."""
    from matplotlib.figure import Figure

    images, labels, _ = draw(np.random.default_rng(seed), count)
    query = "cls" if model.config.cls_token else "mean"
    block = stage_block(model, 0)
    rows = {
        "Taylor": grad_cam(model, images, labels, block, "taylor"),
        "Grad-CAM": grad_cam(model, images, labels, block),
        "attention": attention_maps(model, images, 2, [query]).grid[:, 0].mean(dim=1),
        "rollout": attention_rollout(model, images),
    }
    figure = Figure(figsize=(1.6 * count, 8.2), layout="constrained")
    axes = figure.subplots(5, count)
    for column in range(count):
        pixels = ((images[column] + 1) / 2).clamp(0, 1).permute(1, 2, 0).numpy()
        axes[0][column].imshow(pixels)
        axes[0][column].set_title(CLASSES[labels[column]])
        for axis, (title, maps) in zip(axes[1:, column], rows.items(), strict=True):
            axis.imshow(pixels)
            axis.imshow(enlarge(maps, (SIZE, SIZE))[column].numpy(), "inferno", alpha=0.6)
            axis.set_ylabel(title if column == 0 else "")
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    figure.savefig(target, dpi=80)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("outputs/explain"))
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--keep", action="store_true", help="for docs/explain.md")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    runs: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for seed in range(options.seeds):
        for kind in KINDS:
            model = train(kind, options.steps, seed)
            runs[kind].append(measure(model, seed=1_000_000 + seed))
            print(json.dumps({kind: runs[kind][-1], "seed": seed}, indent=2), flush=True)
            name = f"{kind.replace(' ', '_')}_{seed}"
            torch.save({"model_state": model.state_dict()}, options.out / f"{name}.pyth")
            picture(model, options.out / f"{name}.png")
    facts = machine(runs=options.seeds, steps=options.steps, batch=BATCH)
    results = {"machine": facts, "runs": runs}
    write_json(options.out / "results.json", results)
    if options.keep:
        keep("explain", results)


if __name__ == "__main__":
    main()
