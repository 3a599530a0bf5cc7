"""docs/learning.md's table and pictures: ``make figures`` makes them from the kept results."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import numpy as np

from projects.benchmark.plots import pyplot, save

ROOT = Path(__file__).resolve().parents[2]
CURVES = ROOT / "docs/images/learning_curves.png"
WORLD = ROOT / "docs/images/learning_data.png"
COLOURS = {"from scratch": "#9a5a9a", "from images": "#3b6ea8"}
COLOURS |= {"from images, layer decay": "#d08a2e"}
MEASURES = {"detection": "box AP", "video": "top-1, percent"}


def table(results: dict[str, Any]) -> list[list[str]]:
    """A line for each arm: the median over the seeds, and their range; the head first."""
    lines = [["what", "from", "in the middle", "in the end", "seeds"]]
    for what, measure in MEASURES.items():
        for arm, curves in results.get(what, {}).items():
            ends = [curve[-1][1] for curve in curves]
            halves = [curve[(len(curve) - 1) // 2][1] for curve in curves]
            cells = [spread(halves), spread(ends), str(len(curves))]
            lines.append([f"{what}: {measure}", arm.removeprefix("from "), *cells])
    return lines


def spread(values: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def draw_curves(results: dict[str, Any], path: Path, source: str | None = None) -> None:
    """A thin line for each seed, a thick one for the median of an arm."""
    plt = pyplot()
    found = [what for what in MEASURES if what in results]
    figure, axes = plt.subplots(1, len(found), figsize=(5.2 * len(found), 3.8), squeeze=False)
    for axis, what in zip(axes[0], found, strict=True):
        for arm, curves in results[what].items():
            x = [step for step, _ in curves[0]]
            y = np.array([[value for _, value in curve] for curve in curves])
            axis.plot(x, y.T, color=COLOURS[arm], linewidth=0.7, alpha=0.6)
            axis.plot(x, np.median(y, axis=0), color=COLOURS[arm], linewidth=2.2, label=arm)
        xlabel = "steps of four images" if what == "detection" else "epochs"
        axis.set(title=f"{what}, validation", xlabel=xlabel, ylabel=MEASURES[what], xlim=(0, None))
        if what == "video":
            axis.axhline(100 / 6, color="grey", linestyle=":", label="chance")
            axis.set_ylim(10, 102)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.tight_layout()
    save(figure, path, source)


def draw_world(path: Path) -> None:
    """What is drawn: pictures, images with boxes, and every other frame of a clip of each class."""
    from projects.learning import data

    plt = pyplot()
    figure = plt.figure(figsize=(9.6, 7.6), layout="constrained")
    top, middle, bottom = figure.subfigures(3, 1, height_ratios=(1.1, 2.5, 5))
    for index, axis in enumerate(top.subplots(1, 12)):
        picture, label = data.draw_picture(0, index)
        show(axis, picture, data.SHAPES[label])
    for index, axis in enumerate(middle.subplots(1, 4)):
        image, found = data.draw_image("train", index)
        show(axis, image, "")
        for label, look in found:
            x, y, width, height = data.tight_box(look)
            edge = {"fill": False, "edgecolor": "white", "linewidth": 0.7}
            axis.add_patch(plt.Rectangle((x - 0.5, y - 0.5), width, height, **edge))
            axis.text(x, y - 2, data.SHAPES[label], color="white", fontsize=6, clip_on=True)
    for index, row in enumerate(bottom.subplots(6, 13)):
        frames, label = data.draw_clip("train", index)
        row[0].set_ylabel(data.GAITS[label], rotation=0, ha="right", va="center", fontsize=8)
        for axis, frame in zip(row, frames[::2], strict=True):
            show(axis, frame, "")
    save(figure, path)


def show(axis: Any, image: np.ndarray, title: str) -> None:
    axis.imshow(np.rint(image).astype(np.uint8))
    axis.set(xticks=[], yticks=[])
    axis.set_title(title, fontsize=8)
