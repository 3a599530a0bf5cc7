"""Recipes by name: beside a checkout, and installed with the wheel."""

from __future__ import annotations

from pathlib import Path

import pytest

from mvitv2_core import recipes
from mvitv2_core.recipes import recipe_path

ROOT = Path(__file__).parents[2]
NAME = "Kinetics/MViTv2_S_16x4.yaml"


LAZY = "projects/detection/configs/mask_rcnn_mvitv2_t_3x.py"


@pytest.mark.parametrize("name", [NAME, f"configs/{NAME}", LAZY])
def test_beside_a_checkout(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From any folder; a file of that name there wins."""
    monkeypatch.chdir(tmp_path)
    assert recipe_path(name) == ROOT / (LAZY if name == LAZY else f"configs/{NAME}")
    own = tmp_path / name
    own.parent.mkdir(parents=True)
    own.write_text("")
    assert recipe_path(name).resolve() == own


def test_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(recipes, "__file__", str(tmp_path / "site-packages/mvitv2_core/recipes.py"))
    monkeypatch.setattr("sysconfig.get_path", lambda *_: str(tmp_path / "prefix"))
    with pytest.raises(ValueError, match=r"MViTv2_S_16x4\.yaml: no such file, nor a recipe in"):
        recipe_path(NAME)
    file = tmp_path / "prefix/share/mvitv2/configs" / NAME
    file.parent.mkdir(parents=True)
    file.write_text("")
    assert recipe_path(f"configs/{NAME}") == file
    lazy = tmp_path / "prefix/share/mvitv2" / LAZY
    lazy.parent.mkdir(parents=True)
    lazy.write_text("")
    assert recipe_path(LAZY) == lazy
