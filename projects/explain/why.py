"""Why gradients point at an object or do not, on classifiers that ``projects.explain.toy`` trained.

    python -m projects.explain.why outputs/explain [--keep]    # --keep: for docs/explain.md

Of the end of stage 1: where its gradients are large, whether they agree, and which of two shapes
in a picture each method points at.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mvitv2_core import MViTClassifier
from mvitv2_core.checkpoint.files import read_checkpoint
from mvitv2_core.explain import grad_cam, stage_block
from mvitv2_core.explain.grad_cam import METHODS
from mvitv2_core.features import feature_grid
from projects.benchmark.kept import keep, machine
from projects.video.scenes import box, draw_background, draw_look, paint

from .toy import CLASSES, KINDS, SIZE, SPOTS, SPREAD, build, draw, in_boxes, on_object, spot


def read(path: str) -> MViTClassifier:
    """A model that the toy wrote."""
    state = read_checkpoint(path).state
    model = build("class token" if "cls_token" in state else "mean")
    model.load_state_dict(state)
    return model.eval()


def slopes(
    model: MViTClassifier, images: Tensor, labels: Tensor, block: int
) -> tuple[Tensor, Tensor]:
    """(B, C, h, w) tokens that leave a block, and the gradients of the labels' logits there."""
    kept: list[Any] = []
    handle = model.blocks[block].register_forward_hook(lambda *call: kept.append(call[-1]))
    score = model(images).gather(1, labels[:, None]).sum()
    handle.remove()
    tokens, thw = kept[0]
    (gradient,) = torch.autograd.grad(score, tokens)
    return feature_grid(tokens.detach(), thw), feature_grid(gradient, thw)


def agreement(model: MViTClassifier, count: int = 200, seed: int = 2_000_000) -> dict[str, float]:
    """What Grad-CAM's mean over cells, and HiResCAM's product, have to go by."""
    images, labels, boxes = draw(np.random.default_rng(seed), count)
    tokens, gradient = slopes(model, images, labels, stage_block(model, 0))
    cells = tokens.shape[-1]
    inside = in_boxes(boxes, torch.arange(cells) / cells + 0.5 / SIZE).float()
    mean = gradient.mean(dim=(-2, -1), keepdim=True)
    of_box = (gradient * inside[:, None]).sum(dim=(-2, -1), keepdim=True)
    sizes, parts = gradient.abs().sum(dim=1), tokens * gradient
    cosine = torch.cosine_similarity(gradient, mean.expand_as(gradient), dim=1)
    cancelled = parts.sum(dim=1).abs() / parts.abs().sum(dim=1)
    return {
        "gradient_share_in_box": ((sizes * inside).sum() / sizes.sum()).item(),
        "cosine_with_mean_in_box": ((cosine * inside).sum() / inside.sum()).item(),
        "grad_cam_on_object": on_object((tokens * mean).sum(dim=1), boxes),
        "grad_cam_by_the_mean_of_the_box_on_object": on_object((tokens * of_box).sum(dim=1), boxes),
        "product_to_its_parts": cancelled.mean().item(),
    }


def two_shapes(model: MViTClassifier, count: int = 200, seed: int = 3_000_000) -> dict[str, float]:
    """Pictures of two shapes of different classes: which one does the first one's map point at?"""
    rng = np.random.default_rng(seed)
    pictures: list[np.ndarray] = []
    labels: list[int] = []
    boxes: list[tuple[Any, Any]] = []
    while len(pictures) < count:
        pair = rng.choice(len(CLASSES), 2, replace=False)
        looks = [draw_look(rng, CLASSES[label], spread=SPREAD) for label in pair]
        one, other = (box(look, SIZE, SIZE) for look in looks)
        apart = any(a[i + 2] < b[i] for a, b in ((one, other), (other, one)) for i in (0, 1))
        if not apart:
            continue
        canvas = draw_background(looks[0], SIZE, SIZE)
        for _ in range(SPOTS):
            canvas = spot(canvas, rng)
        pictures.append(paint(paint(canvas, looks[0]), looks[1]) / 127.5 - 1)
        labels.append(int(pair[0]))
        boxes.append((one, other))
    images = torch.from_numpy(np.stack(pictures)).float().permute(0, 3, 1, 2).contiguous()
    ones, others = torch.tensor(boxes).unbind(1)
    results = {}
    for method in METHODS:
        maps = grad_cam(model, images, torch.tensor(labels), stage_block(model, 0), method)
        results[f"{method}_on_its_own"] = on_object(maps, ones)
        results[f"{method}_on_the_other"] = on_object(maps, others)
    return results


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where projects.explain.toy wrote its models")
    parser.add_argument("--keep", action="store_true", help="for docs/explain.md")
    args = parser.parse_args()
    runs: dict[str, list[dict[str, float]]] = {}
    for kind in KINDS:
        files = sorted(args.folder.glob(f"{kind.replace(' ', '_')}_*.pyth"))
        if not files:
            sys.exit(
                f"no models in {args.folder}: python -m projects.explain.toy --out {args.folder}"
            )
        for path in files:
            model = read(path)
            runs.setdefault(kind, []).append({**agreement(model), **two_shapes(model)})
            print(json.dumps({path.name: runs[kind][-1]}, indent=1), flush=True)
    if args.keep:
        keep("explain_why", {"machine": machine(runs=len(runs[KINDS[0]])), "runs": runs})


if __name__ == "__main__":
    main()
