"""Folders of trainings that a demo starts, which another run of it begins anew."""

from __future__ import annotations

import shutil
from pathlib import Path

MARK = ".made-by-a-demo"


def new_run(folder: Path) -> None:
    """Make ``folder``, with nothing in it but a mark; one that has the mark is removed before.

    Raises:
        ValueError: something is there that no demo made.
    """
    mine = not folder.exists() or (folder / MARK).is_file()
    if not mine and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(
            f"{folder} must be new, empty or made by a demo, got something else: move it away, or "
            "choose another folder"
        )
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / MARK).touch()
