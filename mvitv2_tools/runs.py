"""The newest weights in or below a folder, as trainers leave them."""

from __future__ import annotations

from pathlib import Path

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


def run_of(path: Path) -> Path:
    """The folder of the run that weights belong to."""
    return path.parent.parent if path.parent.name == "checkpoints" else path.parent
