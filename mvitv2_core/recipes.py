"""Where this project's recipes lie: beside a checkout, or where the wheel put them."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

FOLDERS = ("configs", "projects")  # of a checkout, and of the wheel's share/mvitv2


def recipe_path(name: str | os.PathLike[str]) -> Path:
    """The file of a recipe, or the file ``name`` itself where there is one.

    Args:
        name: a path, or a recipe of this project: ``configs/Kinetics/MViTv2_S_16x4.yaml``, with or
            without ``configs/``, or a LazyConfig such as
            ``projects/detection/configs/mask_rcnn_mvitv2_t_3x.py``.

    Raises:
        ValueError: there is neither; names where it was looked for.
    """
    given = Path(name)
    if given.is_file():
        return given
    inside = given if given.parts and given.parts[0] in FOLDERS else Path("configs") / given
    homes = [Path(__file__).resolve().parents[1]]
    homes += [Path(sysconfig.get_path("data", scheme)) / "share/mvitv2" for scheme in _schemes()]
    for home in homes:
        if not given.is_absolute() and (home / inside).is_file():
            return home / inside
    looked = ", ".join(str(home / inside.parts[0]) for home in homes)
    raise ValueError(f"{name}: no such file, nor a recipe in {looked}")


def _schemes() -> list[str]:
    """Where pip installs: the environment, and a user's own folder."""
    return [sysconfig.get_preferred_scheme(kind) for kind in ("prefix", "user")]
