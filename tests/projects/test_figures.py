"""Figures of the documents: every one comes from a kept result."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from projects.benchmark import figures, kept, robustness

# A ratio, as tables of speed and memory have them.
RATIO = re.compile(r"\b\d+\.\d+x")


PAGES = {str(page.relative_to(figures.ROOT)): page.read_text() for page in figures.pages()}


@pytest.mark.parametrize("name", [name for name, text in PAGES.items() if "<!-- figures" in text])
def test_tables_are_those_of_the_results(name: str) -> None:
    assert PAGES[name].count("<!-- figures") == len(figures.BLOCK.findall(PAGES[name]))
    assert figures.with_figures(PAGES[name]) == PAGES[name], "run `make figures`"


def test_every_table_is_shown_somewhere() -> None:
    shown = {mark[1] for text in PAGES.values() for mark in figures.BLOCK.findall(text)}
    assert shown == set(figures.TABLES)


def test_robustness_counts_what_tests_count() -> None:
    """Each claim of the table is one that some test names; numbers and kinds may be filled in."""
    tests = "".join(path.read_text() for path in (figures.ROOT / "tests").rglob("*.py"))
    tests = tests.replace("{STEPS}", "20")
    for claim in (claim for row in robustness.ROWS for claim in row.claims):
        forms = (claim, re.sub("of (clip|still)s", "of {model}s", claim))
        assert any(f'"{form}"' in tests for form in forms), claim


def test_no_other_ratio_in_the_readme() -> None:
    text = (figures.ROOT / "README.md").read_text()
    assert not RATIO.findall(figures.BLOCK.sub("", text))


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (figures.SPEED_PICTURE, "cpu"),
        (figures.GROWTH_PICTURE, "growth"),
        (figures.learning_plots.CURVES, "learning"),
    ],
)
def test_the_picture_is_that_of_the_results(path: Path, name: str) -> None:
    image = pytest.importorskip("PIL.Image", reason="install Pillow to run: make setup")
    with image.open(path) as picture:
        assert picture.text["Source"] == figures.source_of(name), "run `make figures`"


def test_results_say_where_they_come_from() -> None:
    """At least five runs, on a machine that is named; every row is one of them or says why not."""
    results = kept.kept("cpu")
    assert {"cpu", "threads", "torch", "dtype", "runs"} <= results["machine"].keys()
    assert results["machine"]["runs"] >= 5
    for row in results["rows"]:
        assert "error" in row or len(row["runs"]) >= 5, row["case"]


@pytest.mark.parametrize("file", sorted(kept.RESULTS.glob("*.json")), ids=lambda f: f.stem)
def test_every_result_says_where_it_comes_from(file: Path) -> None:
    results = json.loads(file.read_text())
    assert {"cpu", "threads", "torch"} <= results["machine"].keys()
    assert results["command"].startswith("python ") and results["commit"] not in ("", "unknown")
    assert file.stem in {source for source, _ in figures.TABLES.values()}, "shown nowhere"


def test_export_says_where_it_comes_from() -> None:
    if not (kept.RESULTS / "export_speed.json").exists():
        pytest.skip("not measured: python projects/benchmark/export_speed.py --keep")
    results = kept.kept("export_speed")
    assert {"cpu", "threads", "torch", "onnxruntime", "processes"} <= results["machine"].keys()
    assert all(len(row["seconds"]) >= 5 for row in results["rows"])


def test_export_is_shown_from_what_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(kept, "RESULTS", tmp_path)
    page = "<!-- figures: export -->\nold\n<!-- /figures -->\n"
    assert "Not measured yet.\n" in figures.with_figures(page)
    eager = {"model": "m", "route": "eager", "seconds": [0.2, 0.3, 0.4], "mib": 0}
    file = {"model": "m", "route": ".pt2", "seconds": [0.1, 0.2, 0.15], "mib": 12.5}
    results = {"commit": "abc", "machine": {"cpu": "c"}, "rows": [eager, file]}
    (tmp_path / "export_speed.json").write_text(json.dumps(results))
    shown = figures.with_figures(page)
    assert "| m | .pt2 | 0.1500 | 0.1000-0.2000 | 2.00x as fast | 12.5 |" in shown.replace("  ", "")


def test_the_demo_is_shown_from_its_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(kept, "RESULTS", tmp_path)
    assert figures.table("demo") == "Not measured yet.\n"
    runs = [{"box_ap": ap, "mask_ap": ap - 5, "minutes": 4.0} for ap in (81.0, 80.0, 84.0)]
    (tmp_path / "demo.json").write_text(
        json.dumps({"commit": "abc", "machine": {"cpu": "c"}, "runs": runs})
    )
    line = "| 81.0 (80.0 to 84.0) | 76.0 (75.0 to 79.0) | 4.0 (4.0 to 4.0) | 3 |"
    assert line in figures.table("demo") and "; cpu c, commit abc." in figures.table("demo")


def test_a_changed_figure_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    row = {"case": "x", "mode": "inference", "runs": [1.0] * 5, "over_limit": 1.5}
    ours = {**row, "who": "ours", "peak_mib": 5.0}
    peer = {**row, "who": "peer", "speed_of_ours": 1.25, "speed_range": [1.0, 1.5]}
    peer |= {"memory_of_ours": 0.5}
    results = {"commit": "abc", "machine": {"cpu": "c"}, "notes": [], "rows": [ours, peer]}
    (tmp_path / "cpu.json").write_text(json.dumps(results))
    monkeypatch.setattr(kept, "RESULTS", tmp_path)
    page = "a\n<!-- figures: speed_full -->\nold\n<!-- /figures -->\nb\n"
    made = figures.with_figures(page)
    assert "| x | peer | 1.25x (1.00 to 1.50), 0.50x, 1.50x (1.50x) over the limit |" in made
    assert made.startswith("a\n<!--") and made.endswith("<!-- /figures -->\nb\n")
    assert figures.with_figures(made) == made
    peer["speed_of_ours"] = 1.3
    (tmp_path / "cpu.json").write_text(json.dumps(results))
    assert figures.with_figures(made) != made


def test_a_thousand_hours_follow_from_the_rate(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(kept, "RESULTS", tmp_path)
    page = "<!-- figures: extract_hours -->\n<!-- /figures -->\n"
    assert "Not measured yet" in figures.with_figures(page)
    rate, share = ({"median": m, "min": m, "max": m} for m in (0.5, 0.9))
    row = {"model": "S", "seconds": 2.0, "threads": 4, "extract rows/s": rate, "ratio": share}
    results = {"commit": "abc", "machine": {"cpu": "c"}, "results": [{**row, "seconds": 0}, row]}
    (tmp_path / "extract_speed.json").write_text(json.dumps(results))
    assert "| pictures | S | 0.50 (0.50 to 0.50) | 0.900 (0.900 to 0.900) |" in figures.table(
        "extract"
    )
    made = figures.with_figures(page)
    for line in (
        "| rows | 1,800,000 |",
        "| hours of 1 worker of 4 threads | 1,000.0 |",  # 1.8 million rows, 0.5 a second
        "| of 16, on 64 cores | 62.5 |",
        "| of 160, on 10 x 64 cores | 6.2 |",
        "| seconds of video read | 1.00 a second and worker |",
    ):
        assert line in made
    rate["median"] = 1.0
    (tmp_path / "extract_speed.json").write_text(json.dumps(results))
    assert "| hours of 1 worker of 4 threads | 500.0 |" in figures.with_figures(made)
