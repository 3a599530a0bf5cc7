"""What an installed copy says of itself, and what it asks for."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
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
APART = {"all", "dev", "docs"}


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
    """Every extra but the developers'."""
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
    """And files alone: setuptools stops at a folder that a pattern finds."""
    taken: list[Path] = []
    for folder, patterns in project["tool"]["setuptools"]["data-files"].items():
        found = [file for pattern in patterns for file in ROOT.glob(pattern)]
        assert found and all(file.is_file() for file in found), folder
        place = folder.removeprefix("share/mvitv2/")
        assert {file.parent.relative_to(ROOT).as_posix() for file in found} == {place}
        taken += found
    folders = ("configs", "projects/detection/configs")
    recipes = [f for folder in folders for f in (ROOT / folder).rglob("*.*") if f.is_file()]
    assert sorted(taken) == sorted(f for f in recipes if "__pycache__" not in f.parts)


def test_make_installs_nothing_into_an_environment_of_ones_own(tmp_path: Path) -> None:
    """``VENV=``: what is missing is named; ``make detectron2`` alone installs, over nothing."""
    if shutil.which("make") is None:
        pytest.skip("install make to run")
    python, calls = tmp_path / "bin/python", tmp_path / "calls"
    python.parent.mkdir()
    python.write_text(
        f'#!/bin/sh\necho "$*" >> {calls}\ncase $2 in *mkdocs*) exit 1;; esac\necho {tmp_path}\n'
    )
    python.chmod(0o755)

    def make(target: str) -> tuple[int, str]:
        calls.write_text("")
        command = ["make", "-C", str(ROOT), target, f"VENV={tmp_path}"]
        outside = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
        process = subprocess.run(command, env=outside, capture_output=True, text=True)
        return process.returncode, process.stdout

    status, said = make("docs")
    assert status and f"missing in {tmp_path}: {python} -m pip install -e '.[docs]'" in said
    assert "pip" not in calls.read_text()
    status, said = make("setup")
    assert not status and not calls.read_text()
    status, said = make("detectron2")
    assert not status and f"--target {tmp_path} -r requirements/detectron2.txt" in calls.read_text()
    (tmp_path / "tools").mkdir()
    status, said = make("detectron2")
    assert status and f"{tmp_path}/tools is there already" in said
    assert "pip" not in calls.read_text()
