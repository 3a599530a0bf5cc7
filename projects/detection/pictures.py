"""The demo's pictures, drawn from the files that a trainer leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import to_rgb
from pycocotools import mask as coco_mask

from mvitv2_core.checkpoint.files import whole_file

COLOURS = ("#ffd400", "#00e5ff", "#ff5cf4", "#7dff4f")  # one per class
MIN_SCORE = 0.7


def draw_predictions(data: Path, results: Path, output: Path, images: int = 8) -> None:
    """Validation images in pairs: truth left, predictions right.

    Args:
        data: the toy data's folder.
        results: detectron2's coco_instances_results.json.
        output: picture to write.
        images: how many; the first ones with at least three shapes.
    """
    truth = json.loads((data / "val.json").read_text())
    names = {category["id"]: category["name"] for category in truth["categories"]}
    chosen = [i for i in truth["images"] if len(of_image(truth["annotations"], i)) >= 3][:images]
    predictions = [p for p in json.loads(results.read_text()) if p["score"] >= MIN_SCORE]
    rows = (len(chosen) + 1) // 2
    figure, axes = plt.subplots(rows, 4, figsize=(13, 2.75 * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for index, image in enumerate(chosen):
        pixels = cv2.imread(str(data / "val" / image["file_name"]))[..., ::-1]
        left, right = axes[index // 2, index % 2 * 2 : index % 2 * 2 + 2]
        panel(left, pixels, of_image(truth["annotations"], image), names)
        left.set_title(f"{image['file_name']}: truth", fontsize=10)
        found = of_image(predictions, image)
        panel(right, pixels, found, names)
        right.set_title("prediction", fontsize=10)
    figure.suptitle(
        f"The first validation images with three shapes or more; predictions that score "
        f"{MIN_SCORE:.0%} or more"
    )
    figure.tight_layout(h_pad=1.5)
    save(figure, output)


def of_image(entries: list[dict], image: dict) -> list[dict]:
    """Annotations or predictions of one image."""
    return [entry for entry in entries if entry["image_id"] == image["id"]]


def panel(axis: Any, pixels: np.ndarray, entries: list[dict], names: dict[int, str]) -> None:
    """One image under its masks, boxes, class names and, where there are any, scores."""
    height, width = pixels.shape[:2]
    canvas = pixels / 255.0
    for entry in entries:
        mask = to_mask(entry["segmentation"], height, width)[..., None]
        tint = np.array(to_rgb(COLOURS[entry["category_id"] - 1]))
        canvas = np.where(mask, 0.55 * canvas + 0.45 * tint, canvas)
    axis.imshow(canvas, extent=(0, width, height, 0))
    for entry in entries:
        tint = COLOURS[entry["category_id"] - 1]
        x, y, w, h = entry["bbox"]
        axis.add_patch(plt.Rectangle((x, y), w, h, fill=False, edgecolor=tint, linewidth=1.5))
        text = names[entry["category_id"]]
        if "score" in entry:
            text += f" {100 * entry['score']:.0f}%"
        if entry.get("iscrowd"):
            text += " crowd"
        axis.text(
            min(max(x, 0), width - 4),
            max(y, 12),
            text,
            fontsize=7.5,
            va="bottom",
            clip_on=True,
            bbox={"facecolor": tint, "edgecolor": "none", "pad": 1.0, "alpha": 0.85},
        )
    axis.set(xlim=(0, width), ylim=(height, 0))


def to_mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    """(H, W) boolean mask of COCO polygons or RLE."""
    if isinstance(segmentation, list):
        rle = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        rle = coco_mask.frPyObjects(segmentation, height, width)
    else:
        rle = segmentation
    return coco_mask.decode(rle).astype(bool)


def draw_curve(metrics: list[dict], output: Path) -> None:
    """Training losses and validation AP over iterations, from the rows of metrics.json."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    names = ("total_loss", "loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc")
    steps = [row for row in metrics if "total_loss" in row]
    for name in names:
        left.plot(
            [row["iteration"] + 1 for row in steps],
            [row[name] for row in steps],
            label=name.removeprefix("loss_").replace("_", " "),
            linewidth=2 if name == "total_loss" else 1,
        )
    left.set(title="training loss", xlabel="iteration", ylabel="loss", yscale="log")
    evaluations = [row for row in metrics if "bbox/AP" in row]
    for key, label in (("bbox/AP", "box AP"), ("segm/AP", "mask AP"), ("bbox/AP50", "box AP50")):
        x = [row["iteration"] + 1 for row in evaluations]
        right.plot(x, [row[key] for row in evaluations], marker="o", label=label)
    right.set(title="validation", xlabel="iteration", ylabel="average precision", ylim=(0, 100))
    right.set_xlim(left=0)
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.tight_layout()
    save(figure, output)


def save(figure: Any, output: Path) -> None:
    """Write the picture whole or not at all, in 256 colours: a third of the size."""
    from PIL import Image

    figure.canvas.draw()
    image = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3].copy())
    plt.close(figure)
    with whole_file(output) as temporary:
        image.quantize(256, dither=Image.Dither.NONE).save(temporary, format="PNG", optimize=True)
