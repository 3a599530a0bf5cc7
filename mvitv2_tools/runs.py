"""What lies in a trainer's folder: the newest weights, and names of classes beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mvitv2_core.labels import read_labels

LABEL_FILES = ("labels.txt", "labels.json", "classes.txt")
DEPTH = 3  # of folders below the one named


def newest_runs(folder: Path) -> list[Path]:
    """Each run's last weights in or below a folder, the newest run first."""
    runs: dict[Path, Path] = {}
    patterns = ("model_final.pth", "model_[0-9]*.pth", "checkpoint_epoch_*.pyth")
    for depth in range(DEPTH + 1):
        for pattern in patterns:
            for path in sorted(folder.glob("*/" * depth + pattern)):
                run = run_of(path)
                if path.suffix == ".pth" and not (run / "config.yaml").is_file():
                    continue
                if path.name == "model_final.pth" or run not in runs:
                    runs[run] = path
                elif runs[run].name != "model_final.pth":
                    runs[run] = max(runs[run], path, key=lambda p: p.name)
    return sorted(runs.values(), key=lambda path: path.stat().st_mtime, reverse=True)


def find_weights(folder: Path, weights: str | None) -> tuple[Path, str]:
    """Weights of a run in or below a folder, and what else there is to say of them.

    Args:
        folder: a trainer's output, or one that holds several.
        weights: a file of one of its runs; None for the newest run's last.

    Raises:
        ValueError: there is no run, or ``weights`` is of none.
    """
    found = newest_runs(folder)
    if not found:
        raise ValueError(
            f"{folder}: holds no trainer's output: neither detectron2's config.yaml and "
            f"model_final.pth nor PySlowFast's checkpoints/checkpoint_epoch_*.pyth"
        )
    if weights is not None:
        file = Path(weights)
        if not file.is_file() or run_of(file.resolve()) not in {run_of(p.resolve()) for p in found}:
            raise ValueError(
                f"--weights {weights} must be a checkpoint of a run in {folder}, as {found[0]} is"
            )
        return file, ""
    others = sorted({str(run_of(path)) for path in found} - {str(run_of(found[0]))})
    several = f"; the newest of several (the others: {', '.join(others)})" if others else ""
    return found[0], several


def run_of(path: Path) -> Path:
    """The folder of the run that weights belong to."""
    return path.parent.parent if path.parent.name == "checkpoints" else path.parent


def find_labels(source: str | None, beside: Sequence[Path]) -> list[str] | None:
    """The labels named, else those of ``labels.txt``, ``labels.json`` or ``classes.txt`` beside."""
    if source is not None:
        return read_labels(source)
    for folder in beside:
        for name in LABEL_FILES:
            if (folder / name).is_file():
                return read_labels(folder / name)
    return None
