"""The wheel stands alone: built from the repository, installed into an environment that has
nothing but what it declares, and used from a folder that knows nothing of the repository."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from mvitv2_core.labels import LISTS, read_labels
from mvitv2_core.model_info import OFFICIAL
from tests.media_files import frame_number, picture, write_video
from tests.tools.conftest import TINY_CLIP, loading_cfg, slowfast_run
from tests.tools.official import place_official

ROOT = Path(__file__).parents[2]
NOT_COPIED = (".*", "build", "dist", "outputs", "datasets", "*.egg-info", "__pycache__", "shared")
CONFIG = "configs/Kinetics/MViTv2_S_16x4_in1k.yaml"
Image = pytest.importorskip("PIL.Image", reason="pictures need Pillow: pip install Pillow")
pytest.importorskip("pip", reason="building and installing need pip: python -m ensurepip")
requirements = pytest.importorskip("packaging.requirements", reason="pip install packaging")
pytestmark = pytest.mark.slow


class Installed(NamedTuple):
    """An environment with the wheel, and a folder to work in."""

    python: Path
    folder: Path
    home: Path

    def __call__(self, *command: object) -> str:
        """Standard output of a program of the environment, which must succeed."""
        program, *arguments = map(str, command)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "DETECTRON2"))}
        kept |= {"TORCH_HOME": str(self.home), "MPLCONFIGDIR": str(self.folder)}
        result = subprocess.run(
            [str(self.python.parent / program), *arguments],
            capture_output=True,
            text=True,
            cwd=self.folder,
            env=kept,
            timeout=600,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    def evaluate(self, code: str, *arguments: object) -> Any:
        """What a program prints as JSON."""
        return json.loads(self("python", "-c", f"import json, sys\n{code}", *arguments))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing of an earlier build can get into it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*NOT_COPIED))
    pip("wheel", "--no-deps", "--no-build-isolation", "-w", folder, source)
    shutil.rmtree(source)
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """With torch and what the extra ``predict`` declares."""
    return install(wheel, ["predict"], [], tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module")
def with_detectron2(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """With detectron2 and the extra ``detectron2`` as well."""
    names = ["detectron2", "sal-detectron2"]  # as its repository and as PyPI call it
    found = [name for name in names if has(name)]
    if not found:
        pytest.skip("detectors need detectron2: make setup")
    return install(wheel, ["predict", "detectron2"], found, tmp_path_factory.mktemp("detectors"))


def pip(*arguments: object) -> None:
    command = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    result = subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT.anchor
    )
    assert result.returncode == 0, result.stderr


def has(name: str) -> bool:
    try:
        return bool(distribution(name))
    except PackageNotFoundError:
        return False


def install(wheel: Path, extras: list[str], also: list[str], folder: Path) -> Installed:
    """An empty environment, links to the packages that the wheel declares, and the wheel.

    Nothing is downloaded: pip finds the requirements there, or fails. Of what ``also`` names, the
    requirements are left out, as ``make setup`` leaves out detectron2's own.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    metadata = Distribution.at(unpack_metadata(wheel, folder))
    for found in (*closure(metadata.requires or [], extras), *map(distribution, also)):
        link(found, site)
    chosen = f"[{','.join(extras)}]" if extras else ""
    pip("--python", python, "install", "--no-index", f"{wheel}{chosen}")
    (folder / "work").mkdir()
    return Installed(python, folder / "work", folder / "home")


def unpack_metadata(wheel: Path, folder: Path) -> Path:
    shutil.unpack_archive(wheel, folder / "unpacked", "zip")
    (metadata,) = (folder / "unpacked").glob("*.dist-info")
    return metadata


def closure(needs: list[str], extras: list[str]) -> Iterator[Distribution]:
    """The installed distributions of requirements, and those that they require in turn."""
    todo, done = [(need, tuple(extras)) for need in needs], set()
    while todo:
        text, wanted = todo.pop()
        need = requirements.Requirement(text)
        marker = need.marker
        if marker and not any(marker.evaluate({"extra": extra}) for extra in (*wanted, "")):
            continue
        key = need.name.lower(), frozenset(need.extras)
        if key not in done:
            done.add(key)
            found = distribution(need.name)
            todo += [(inner, tuple(need.extras)) for inner in found.requires or []]
            yield found


def link(found: Distribution, site: Path) -> None:
    """Links in ``site`` to the top folders and files of a distribution."""
    for top in {file.parts[0] for file in found.files or [] if file.parts[0] != ".."}:
        target = site / top
        if top != "__pycache__" and not target.exists():
            target.symlink_to(Path(str(found.locate_file(top))).resolve())


def test_nothing_of_the_repository_is_seen(installed: Installed) -> None:
    code = (
        "from importlib.util import find_spec\n"
        "found = {name: find_spec(name) for name in sys.argv[1:]}\n"
        "print(json.dumps({name: spec and spec.origin for name, spec in found.items()}))"
    )
    packages = ("mvitv2_core", "mvitv2_d2", "mvitv2_slowfast", "mvitv2_tools")
    for path in installed.evaluate(code, *packages).values():
        assert Path(path).is_relative_to(installed.python.parents[1])
    others = ("projects", "tests", "detectron2", "torchvision", "timm", "fvcore")
    assert not any(installed.evaluate(code, *others).values())


def test_version(installed: Installed, wheel: Path) -> None:
    assert installed("mvitv2", "--version").split() == ["mvitv2", wheel.name.split("-")[1]]


def test_torch_alone(wheel: Path, tmp_path: Path) -> None:
    """Without any extra: what the other commands need is not needed for these."""
    alone = install(wheel, [], [], tmp_path)
    code = (
        "from importlib.util import find_spec\n"
        "print(json.dumps([name for name in sys.argv[1:] if find_spec(name)]))"
    )
    assert alone.evaluate(code, "numpy", "PIL", "av", "yaml", "tqdm") == []
    assert alone("mvitv2", "--version").startswith("mvitv2 ")
    assert "24.173" in alone("mvitv2", "cost", "T")
    out = alone("mvitv2", "export", "mvitv2_tiny", "tiny.pt2", "--random", "--size", 64)
    assert "of the largest output" in out


def test_data_files(installed: Installed) -> None:
    """Every list of labels and every recipe of the repository, letter by letter."""
    code = (
        "from mvitv2_core.labels import read_labels\n"
        "print(json.dumps({name: read_labels(name) for name in sys.argv[1:]}))"
    )
    assert installed.evaluate(code, *LISTS) == {name: read_labels(name) for name in LISTS}
    folders = (ROOT / "configs", ROOT / "projects" / "detection" / "configs")
    files = [f for d in folders for s in ("yaml", "opts", "py") for f in d.rglob(f"*.{s}")]
    names = [file.relative_to(ROOT).as_posix() for file in files]
    assert len(names) > 70
    code = (
        "from mvitv2_core.recipes import recipe_path\n"
        "print(json.dumps({name: recipe_path(name).read_text() for name in sys.argv[1:]}))"
    )
    expected = {name: file.read_text() for name, file in zip(names, files, strict=True)}
    assert installed.evaluate(code, *names) == expected


def test_every_detector_has_its_recipe(installed: Installed) -> None:
    names = [name for name, row in OFFICIAL.items() if row.config is None]
    code = (
        "from mvitv2_tools.detectron2_model import find_recipe\n"
        "print(json.dumps([str(find_recipe(name)) for name in sys.argv[1:]]))"
    )
    paths = installed.evaluate(code, *names)
    assert len(paths) == len(names) == 13
    assert all(Path(p).is_relative_to(installed.python.parents[1]) for p in paths)


def test_predict_pictures(installed: Installed) -> None:
    place_official("mvitv2_tiny_in1k", installed.home)
    Image.fromarray(picture(160, 120)).save(installed.folder / "a.png")
    out = installed("mvitv2", "predict", "mvitv2_tiny_in1k", "a.png", "--json", "--out", "out")
    (row,) = map(json.loads, out.splitlines())
    assert row["input"] == "a.png" and len(row["labels"]) == 5
    assert all(o["label"] == read_labels("imagenet-1k")[o["index"]] for o in row["labels"])
    assert (installed.folder / "out" / "contact_sheet.jpg").is_file()


def test_predict_videos(installed: Installed) -> None:
    """A run of PySlowFast, by the config in its checkpoint; labels over time are drawn."""
    slowfast_run(installed.folder / "run", loading_cfg(TINY_CLIP))
    write_video(installed.folder / "a.mp4", frame_number(60, 64, 48))
    out = installed(
        *("mvitv2", "predict", "run", "a.mp4", "--json", "--window", 1, "--out", "clips")
    )
    assert [json.loads(line)["seconds"] for line in out.splitlines()] == [[0, 1], [1, 2]]
    names = {path.name for path in (installed.folder / "clips").iterdir()}
    assert names == {"a.mp4", "a_labels.png", "contact_sheet.jpg"}


def test_inspect_convert_and_inflate(installed: Installed) -> None:
    """By an official name, and by the name of a recipe."""
    for name in ("mvitv2_tiny_in1k", "mvitv2_small_in1k"):
        place_official(name, installed.home)
    facts = json.loads(installed("mvitv2", "inspect", "mvitv2_tiny_in1k", "--json"))
    assert facts["variant"] == "T"
    installed("mvitv2", "convert", "mvitv2_tiny_in1k", "backbone.pth", "--to", "detectron2")
    state = torch.load(installed.folder / "backbone.pth", weights_only=True)
    state = state.get("model", state)
    assert any(name.endswith("blocks.0.attn.qkv.weight") for name in state)
    installed("mvitv2", "inflate", "mvitv2_small_in1k", "clips.pyth", "--config", CONFIG)
    state = torch.load(installed.folder / "clips.pyth", weights_only=True)["model_state"]
    assert state["patch_embed.proj.weight"].shape == (96, 3, 3, 7, 7)
    assert state["blocks.0.attn.rel_pos_t"].shape == (15, 96)


def test_cost(installed: Installed) -> None:
    """34.5 M parameters and 64 G multiply-adds, as published (paper, Table 5)."""
    out = installed("mvitv2", "cost", "S", "--frames", 16, "--classes", 400)
    assert "34.5" in out and "64." in out


def test_predict_with_a_detector(with_detectron2: Installed) -> None:
    """An official name: its LazyConfig is the wheel's."""
    name = "mask_rcnn_mvitv2_t_3x"
    place_official(name, with_detectron2.home)
    Image.fromarray(picture(160, 120)).save(with_detectron2.folder / "a.png")
    arguments = ("a.png", "--json", "--score", 0.01, "--out", "out")
    (row,) = map(json.loads, with_detectron2("mvitv2", "predict", name, *arguments).splitlines())
    assert row["objects"] and {o["label"] for o in row["objects"]} <= set(read_labels("coco"))
    assert (with_detectron2.folder / "out" / "a.jpg").is_file()
    recipe = f"configs/COCO/{name}.yaml"  # the same model as YAML
    out = with_detectron2("mvitv2", "predict", recipe, "--weights", name, *arguments[:4])
    (same,) = map(json.loads, out.splitlines())
    assert [o["index"] for o in same["objects"]] == [o["index"] for o in row["objects"]]
    scores = [o["score"] for o in row["objects"]]
    assert [o["score"] for o in same["objects"]] == pytest.approx(scores, abs=1e-4)


def test_train_from_a_recipe(with_detectron2: Installed) -> None:
    """detectron2 reads the wheel's YAML recipes and LazyConfigs, with what they are based on."""
    names = [
        p.relative_to(ROOT).as_posix()
        for p in (ROOT / "configs" / "COCO").glob("*.yaml")
        if not p.name.startswith("Base")
    ]
    code = (
        "from detectron2.config import get_cfg\n"
        "from mvitv2_core.recipes import recipe_path\n"
        "from mvitv2_d2.env import setup_environment\n"
        "setup_environment()\n"
        "for name in sys.argv[1:]:\n"
        "    cfg = get_cfg()\n"
        "    cfg.merge_from_file(str(recipe_path(name)))\n"
        "print(json.dumps(cfg.MODEL.META_ARCHITECTURE))"
    )
    assert with_detectron2.evaluate(code, *names)
