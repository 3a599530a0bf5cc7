"""Recipes by name: beside a checkout, and installed with the wheel."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from mvitv2_core import recipes
from mvitv2_core.recipes import recipe_path

ROOT = Path(__file__).parents[2]
NAME = "Kinetics/MViTv2_S_16x4.yaml"


@pytest.mark.parametrize("name", [NAME, f"configs/{NAME}"])
def test_beside_a_checkout(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From any folder; a file of that name there wins."""
    monkeypatch.chdir(tmp_path)
    assert recipe_path(name) == ROOT / "configs" / NAME
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


@pytest.mark.slow
def test_the_wheel_holds_every_recipe(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "-w", str(tmp_path), str(ROOT)], check=True, timeout=600)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    (data,) = {name.split("/")[0] for name in names if ".data/" in name}
    for file in (ROOT / "configs").rglob("*.yaml"):
        assert f"{data}/data/share/mvitv2/{file.relative_to(ROOT).as_posix()}" in names
