"""Pictures of the video demo: what was predicted for some clips, and how training went."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import matplotlib
import numpy as np
import torch

from mvitv2_core.checkpoint.files import read_file
from projects.video import files, scenes

matplotlib.use("Agg")
from matplotlib import pyplot as plt

if TYPE_CHECKING:
    from projects.video.demo import Run

SHOWN_FRAMES = 6


def read_predictions(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """What `TEST.SAVE_RESULTS_PATH` holds: (clips, classes) scores and (clips,) labels.

    Raises:
        CheckpointError: the file is damaged, or asks for something else than tensors.
    """
    _, (scores, labels) = read_file(path)
    return scores, labels


def draw_curve(path: Path, scratch: Run, inflated: Run) -> None:
    """Training loss and validation accuracy of both runs, by epoch."""
    figure, (loss, accuracy) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for run, name, colour in ((scratch, "from scratch", "C0"), (inflated, "from images", "C1")):
        loss.plot(*run.curve("train_epoch", "loss"), color=colour, label=name)
        epochs, errors = run.curve("val_epoch", "top1_err")
        accuracy.plot(
            epochs, [100 - error for error in errors], color=colour, marker=".", label=name
        )
    accuracy.axhline(100 / len(scenes.MOTIONS), color="grey", ls=":", label="chance")
    accuracy.set(xlabel="epoch", ylabel="percent", title="validation top-1", ylim=(0, 104))
    loss.set(xlabel="epoch", title="training loss", ylim=(0, None))
    accuracy.legend(loc="lower right")
    loss.legend()
    _save(figure, path)


def draw_predictions(path: Path, kinetics: Path, scratch: Run, inflated: Run) -> None:
    """One test clip of each motion: frames, true class, and the class that each run gave it."""
    rows = [line.split() for line in (kinetics / "test.csv").read_text().splitlines()]
    results = {}
    for name, run in (("from scratch", scratch), ("from images", inflated)):
        scores, labels = read_predictions(run.folder / "test_predictions.pkl")
        if labels.tolist() != [int(label) for _, label in rows]:
            raise ValueError(f"the labels in {run.folder} are not those of {kinetics / 'test.csv'}")
        results[name] = scores.argmax(dim=1).tolist()
    # The last clip of each motion: chosen before anything was predicted.
    chosen = {int(label): index for index, (_, label) in enumerate(rows)}
    figure, axes = plt.subplots(
        len(chosen), SHOWN_FRAMES + 1, figsize=(9.6, 1.12 * len(chosen)), layout="constrained"
    )
    for line, (label, index) in zip(axes, sorted(chosen.items()), strict=True):
        line[0].axis("off")
        line[0].text(0, 0.82, f"true: {scenes.MOTIONS[label]}", weight="bold", fontsize=10)
        for k, (name, predicted) in enumerate(results.items()):
            right = predicted[index] == label
            text = f"{name}: {scenes.MOTIONS[predicted[index]]}"
            colour = "#1a7f37" if right else "#c62828"
            line[0].text(0, 0.47 - 0.33 * k, text, color=colour, fontsize=9)
        for axis, frame in zip(line[1:], _some_frames(kinetics / rows[index][0]), strict=True):
            axis.imshow(frame)
            axis.set(xticks=[], yticks=[])
    figure.suptitle("Test clips over time (left to right); green is right, red is wrong")
    _save(figure, path)


def _some_frames(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as file:
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    return [frames[i] for i in np.linspace(0, len(frames) - 1, SHOWN_FRAMES).astype(int)]


def _save(figure: Any, path: Path) -> None:
    files.write_atomic(path, lambda temporary: figure.savefig(temporary, format="png", dpi=110))
    plt.close(figure)
