"""Figures of the documents: every one comes from a kept result."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from projects.benchmark import figures

# A ratio, as tables of speed and memory have them.
RATIO = re.compile(r"\b\d+\.\d+x")


@pytest.mark.parametrize(
    "name", ["README.md", "docs/predict.md", "docs/speed.md", "projects/benchmark/README.md"]
)
def test_tables_are_those_of_the_results(name: str) -> None:
    text = (figures.ROOT / name).read_text()
    assert figures.BLOCK.search(text), "no figures between the marks"
    assert figures.with_figures(text) == text, "run `make figures`"


def test_no_other_ratio_in_the_readme() -> None:
    text = (figures.ROOT / "README.md").read_text()
    assert not RATIO.findall(figures.BLOCK.sub("", text))


def test_the_picture_is_that_of_the_results() -> None:
    image = pytest.importorskip("PIL.Image", reason="install Pillow to run: make setup")
    with image.open(figures.SPEED_PICTURE) as picture:
        assert picture.text["Source"] == figures.source_of("cpu"), "run `make figures`"


def test_results_say_where_they_come_from() -> None:
    """At least five runs, on a machine that is named; every row is one of them or says why not."""
    results = figures.kept("cpu")
    assert {"cpu", "threads", "torch", "dtype", "runs"} <= results["machine"].keys()
    assert results["machine"]["runs"] >= 5
    for row in results["rows"]:
        assert "error" in row or len(row["runs"]) >= 5, row["case"]
    turns = figures.kept("turns")
    assert {"cpu", "threads", "torch", "dtype"} <= turns["machine"].keys()
    assert all(len(row["seconds"]["new"]) >= 5 for row in turns["rows"].values())


def test_a_changed_figure_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    row = {"case": "x", "mode": "inference", "runs": [1.0] * 5, "over_limit": 1.5}
    ours = {**row, "who": "ours", "peak_mib": 5.0}
    peer = {**row, "who": "peer", "speed_of_ours": 1.25, "speed_range": [1.0, 1.5]}
    peer |= {"memory_of_ours": 0.5}
    results = {"machine": {"cpu": "c"}, "notes": [], "rows": [ours, peer]}
    (tmp_path / "cpu.json").write_text(json.dumps(results))
    monkeypatch.setattr(figures, "RESULTS", tmp_path)
    page = "a\n<!-- figures: speed_full -->\nold\n<!-- /figures -->\nb\n"
    made = figures.with_figures(page)
    assert "| x | peer | 1.25x (1.00 to 1.50), 0.50x, 1.50x (1.50x) over the limit |" in made
    assert made.startswith("a\n<!--") and made.endswith("<!-- /figures -->\nb\n")
    assert figures.with_figures(made) == made
    peer["speed_of_ours"] = 1.3
    (tmp_path / "cpu.json").write_text(json.dumps(results))
    assert figures.with_figures(made) != made
