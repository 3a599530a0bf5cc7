"""The documents as a whole: links, the site's plan, its reference, its figures."""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").rglob("*.md"),
    *ROOT.glob("projects/*/README.md"),
    *(ROOT / "tests").rglob("*.md"),
]
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)\s]+)\)")
# What a user imports by name. mvitv2_tools is a command.
PUBLIC = (
    "mvitv2_core",
    "mvitv2_core.checkpoint",
    "mvitv2_core.explain",
    "mvitv2_d2",
    "mvitv2_slowfast",
)


def anchors(page: Path) -> set[str]:
    """Of the headings, as code hosts and the site make them."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    # Links count as their text; letters and digits stay, spaces become hyphens.
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title).lower() for title in titles]
    return {re.sub(r"[^\w\- ]", "", title).strip().replace(" ", "-") for title in plain}


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """To a file of the repository, and to a heading of it where one is named."""
    for link in LINK.findall(FENCE.sub("", page.read_text())):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists() and target.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_has_its_place() -> None:
    """In the navigation of mkdocs.yml, once."""
    plan = (ROOT / "mkdocs.yml").read_text().split("\nnav:\n")[1]
    pages = re.findall(r"([\w/-]+\.md)$", re.sub(r" *#.*", "", plan), re.MULTILINE)
    written = {page.relative_to(ROOT / "docs").as_posix() for page in ROOT.glob("docs/**/*.md")}
    hooks = (ROOT / "docs/site_hooks.py").read_text().split("PAGES = {")[1].split("}")[0]
    elsewhere = dict(re.findall(r'"([^"]+)": "([^"]+)"', hooks))
    assert all((ROOT / file).exists() for file in elsewhere)
    assert sorted(pages) == sorted([*written, *elsewhere.values()])


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_in_the_reference(name: str) -> None:
    if name == "mvitv2_d2":
        pytest.importorskip("detectron2", reason="install detectron2 to run: make setup")
    elif name == "mvitv2_slowfast":
        pytest.importorskip("yacs", reason="install what PySlowFast needs to run: make setup")
    pages = "".join(page.read_text() for page in (ROOT / "docs/api").glob("*.md"))
    shown = set(re.findall(r"^::: (?:[\w.]+\.)?(\w+)$", pages, re.MULTILINE))
    shown |= set(re.findall(r"^## `(\w+)`$", pages, re.MULTILINE))
    public = importlib.import_module(name).__all__
    assert set(public) <= shown, sorted(set(public) - shown)


def test_the_reference_names_what_there_is() -> None:
    """Each entry of docs/api can be imported: the site is built in the slow tests only."""
    pytest.importorskip("detectron2", reason="install detectron2 to run: make setup")
    entries = "".join(page.read_text() for page in (ROOT / "docs/api").glob("*.md"))
    for name in re.findall(r"^::: ([\w.]+)$", entries, re.MULTILINE):
        pkgutil.resolve_name(name)


def test_every_command_is_in_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    from mvitv2_core import cli

    entries = (ROOT / "pyproject.toml").read_text()
    lines = entries.split('"mvitv2.commands"]\n')[1].split("\n\n")[0].splitlines()
    added = {line.split(" = ")[0] for line in lines}
    monkeypatch.setattr(cli, "entry_points", lambda group: [])
    parser = cli._parser()
    actions = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    page = (ROOT / "docs/api/commands.md").read_text()
    told = set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    assert told == {*actions[0].choices, *added}


def key_rows(page: str) -> list[tuple[str, str]]:
    """Keys and defaults of a page's tables."""
    text = (ROOT / "docs/api" / page).read_text()
    return re.findall(r"^\| `([\w.]+)` \| `(.*?)` \|", text, re.MULTILINE)


def test_every_detectron2_key_is_in_the_reference() -> None:
    """With its default."""
    pytest.importorskip("detectron2", reason="install detectron2 to run: make setup")
    from detectron2.config import get_cfg

    from mvitv2_d2 import add_mvitv2_config

    cfg = get_cfg()
    add_mvitv2_config(cfg)
    keys = [*cfg.MODEL.MVITV2.items(), *cfg.DATASETS.OWN.items()]
    assert sorted(key_rows("d2.md")) == sorted((key, repr(value)) for key, value in keys)


def test_every_slowfast_key_is_in_the_reference() -> None:
    pytest.importorskip("yacs", reason="install what PySlowFast needs to run: make setup")
    from mvitv2_slowfast.plugin import KEYS

    keys = [(f"MVITV2.{key}", repr(value)) for key, value in KEYS.items()]
    assert sorted(key_rows("slowfast.md")) == sorted(keys)


def test_figures_are_drawn_from_the_code() -> None:
    """Every arrow of the house goes down or to the side, and the figures can be drawn."""
    pytest.importorskip("matplotlib", reason="install matplotlib to run: make setup")
    from docs import figures

    arrows = figures.without_detours(figures.edges())
    assert ("model", "block") in arrows and ("ops", "forms") in arrows
    for room, other in arrows:
        assert figures.PLACES[room][1] >= figures.PLACES[other][1], (room, other)
    shapes, stride = figures.shapes_of_block(1)
    assert shapes["x"] == (3136, 96) and shapes["out"] == (784, 192) and stride == (2, 2)
    for draw in (figures.draw_house, figures.draw_block, figures.draw_windows):
        assert draw().axes
    assert len(figures.draw_inflation().axes) == 10


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocstrings", reason="install the extra docs to run: make docs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    made = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr[-4000:]
    assert "WARNING" not in made.stderr
    # No page asks another machine for anything: what it shows is in the folder.
    for page in tmp_path.rglob("*.html"):
        for asked in re.findall(r'<(?:script|img|iframe)[^>]* src="([^"]+)"', page.read_text()):
            assert not asked.startswith(("http:", "https:", "//")), (page.name, asked)
        assert "| ---" not in page.read_text(), f"{page.name}: a table that is not one"
    shown = (tmp_path / "api/models.html").read_text()
    assert "mvitv2_core.create_model" in shown and "Raises:" in shown
