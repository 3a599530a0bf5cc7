"""What recipes say of themselves: links to published weights, and which weights decay."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mvitv2_core.checkpoint.hub import OFFICIAL
from tests.projects.recipe_facts import RECIPES

pytest.importorskip("detectron2", reason="install detectron2 to run: make setup")
from detectron2.config import LazyConfig

PROJECT = Path(__file__).parents[2] / "projects/detection"
README = (PROJECT / "README.md").read_text()
LINK = r"https://dl\.fbaipublicfiles\.com/[^\s)>]+"
OWN = [name for name in RECIPES if not name.startswith("ablations/")]


def row(recipe: str) -> list[str]:
    """Links to checkpoints in the README's row of a recipe."""
    line = next(line for line in README.splitlines() if f"](configs/{recipe}.py)" in line)
    return re.findall(LINK, line)


def test_every_link_is_an_official_file() -> None:
    known = {official.url for official in OFFICIAL.values()}
    found = set(re.findall(LINK, README))
    assert found <= known
    detectors = {o.url for o in OFFICIAL.values() if o.format == "detectron2"}
    assert detectors <= found, "a published detector has no row"


@pytest.mark.parametrize("recipe", OWN)
def test_recipe_names_its_checkpoints(recipe: str) -> None:
    """In its docstring, lines joined where a link is broken, as in its row of the README."""
    doc = (PROJECT / f"configs/{recipe}.py").read_text().split('"""')[1]
    links = re.findall(LINK, doc.replace("/\n", "/"))
    assert links == row(recipe)
    assert links[0].endswith(f"MViTv2_{RECIPES[recipe].weights}.pyth")
    assert len(links) == 2 or "Detector: none published." in doc
    variant = RECIPES[recipe].variant.lower()
    assert all(f"mvitv2_{variant}_" in link.lower() for link in links)


@pytest.mark.parametrize("recipe", OWN)
def test_which_positions_decay(recipe: str) -> None:
    """The official optimizers': ViTDet's exempt pos_embed alone, the paper's all positions."""
    cfg = LazyConfig.load(str(PROJECT / f"configs/{recipe}.py"))
    exempt = {"pos_embed"}
    if not recipe.startswith("vitdet/"):
        exempt |= {"rel_pos_h", "rel_pos_w"}
    assert cfg.optimizer.params.overrides == {name: {"weight_decay": 0.0} for name in exempt}
    assert (cfg.optimizer.params.weight_decay_norm, cfg.optimizer.weight_decay) == (0.0, 0.1)
