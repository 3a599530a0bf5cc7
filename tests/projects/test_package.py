"""What an installed copy says of itself, and what it asks for."""

from __future__ import annotations

import ast
import re
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest

import mvitv2_core

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("mvitv2_core", "mvitv2_d2", "mvitv2_slowfast", "mvitv2_tools")
# The extras that may bring what a package imports.
EXTRAS_OF = {
    "mvitv2_core": ("detectron2", "onnx", "predict", "safetensors", "slowfast"),
    "mvitv2_d2": ("detectron2", "onnx"),
    "mvitv2_slowfast": ("slowfast",),
    "mvitv2_tools": ("detectron2", "extract", "onnx", "predict", "ray", "safetensors"),
}
# Where a distribution is not called as what it holds.
CALLED = {"PIL": "pillow", "yaml": "pyyaml", "cv2": "opencv-python-headless"}
# Not on PyPI in a form to depend on: README says how to install them. PyTorch brings Triton.
FRAMEWORKS = {"detectron2", "slowfast", "vision", "triton"}
OF_TORCH = {"filelock"}  # torch needs it itself
APART = {"all", "dev", "docs", "lvis"}


@pytest.fixture(scope="module")
def project() -> dict:
    tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11 or newer to read a TOML")
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def names(requirements: list[str], extras: dict[str, list[str]]) -> set[str]:
    """Of distributions, without versions and extras of theirs; this project's extras are opened."""
    found: set[str] = set()
    for text in requirements:
        name, inside = re.match(r"([\w.-]+)(?:\[([^]]*)\])?", text).groups()  # type: ignore[union-attr]
        if name == "mvitv2":
            for extra in inside.split(","):
                found |= names(extras[extra], extras)
        else:
            found.add(name.lower())
    return found


def imported(package: str) -> dict[str, str]:
    """{module that a package imports: a file that does}, of other packages, in functions too."""
    found = {}
    for file in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module or ""]
            else:
                continue
            found |= {module.split(".")[0]: str(file.relative_to(ROOT)) for module in modules}
    assert all(any(r.startswith(name) for r in requires("torch") or ()) for name in OF_TORCH)
    known = {*sys.stdlib_module_names, *PACKAGES, *FRAMEWORKS, *OF_TORCH}
    return {module: file for module, file in found.items() if module not in known}


@pytest.mark.parametrize("package", PACKAGES)
def test_extras_bring_what_is_imported(project: dict, package: str) -> None:
    extras = project["project"]["optional-dependencies"]
    brought = names(project["project"]["dependencies"], extras)
    for extra in EXTRAS_OF[package]:
        brought |= names(extras[extra], extras)
    for module, file in imported(package).items():
        name = CALLED.get(module, module).lower()
        assert name in brought, f"{file} imports {module}: in none of {EXTRAS_OF[package]}"


def test_the_extra_all(project: dict) -> None:
    """Every extra but the developers' and ``lvis``, which brings an OpenCV that clashes."""
    extras = project["project"]["optional-dependencies"]
    (text,) = extras["all"]
    inside = re.fullmatch(r"mvitv2\[(.*)\]", text)
    assert inside is not None and set(inside[1].split(",")) == set(extras) - APART


def test_ranges_and_no_exact_pins(project: dict) -> None:
    """A pin would keep a user's own version out."""
    extras = project["project"]["optional-dependencies"]
    for requirements in (project["project"]["dependencies"], *extras.values()):
        assert not any("==" in requirement for requirement in requirements), requirements


def test_one_version(project: dict, capsys: pytest.CaptureFixture[str]) -> None:
    """In ``mvitv2_core``; said by the command, the citation and the changelog."""
    from mvitv2_core import cli

    version = mvitv2_core.__version__
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {
        "attr": "mvitv2_core.__version__"
    }
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"mvitv2 {version}\n"
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1] == version  # type: ignore[index]


def test_packages_say_that_they_are_typed(project: dict) -> None:
    data = project["tool"]["setuptools"]["package-data"]
    for package in PACKAGES:
        assert (ROOT / package / "py.typed").read_bytes() == b"" and "py.typed" in data[package]


def test_every_recipe_is_in_the_wheel(project: dict) -> None:
    folders = {f"configs/{folder.name}" for folder in (ROOT / "configs").iterdir()}
    data = project["tool"]["setuptools"]["data-files"].values()
    named = {pattern.removesuffix("/*") for patterns in data for pattern in patterns}
    assert {name for name in named if name.startswith("configs/")} == folders
