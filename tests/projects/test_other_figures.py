"""Figures of the documents that stand outside of the tables made from kept results.

``ORIGINS`` says of each where it comes from: text of a file that must change with it. A measured
figure has no place here: keep the result, and make a table of it (projects/benchmark/figures.py).
docs/earlier.md is the one page without: it says of itself that nothing holds its figures.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from projects.benchmark import figures

ROOT = figures.ROOT
PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "MODEL_ZOO.md"))]
PAGES += [path for path in sorted((ROOT / "docs").rglob("*.md")) if path.name != "earlier.md"]
PAGES += [*sorted(ROOT.glob("projects/*/README.md")), ROOT / "tests/README.md"]
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\([^)]*\)")
UNITS = r"%|[kKMG]i?B|ms|s|seconds?|minutes?|hours?|GFLOPs?|GFLOP/s|AP|times"
FIGURE = re.compile(rf"(?<![\w.])\d[\d,]*(?:\.\d+)?(?:x\b(?! )|[\s-]?(?:{UNITS})(?!\w))")

COST = "tests/projects/test_cost.py"
HOURS = ("projects/benchmark/tables.py", "rows = 1000 * 3600 / step")
ORIGINS: dict[tuple[str, str], tuple[str, str]] = {
    # A rule of this project, said there and nowhere else.
    ("CONTRIBUTING.md", "5 %"): ("CONTRIBUTING.md", "gains 5 % of a whole step"),
    ("CONTRIBUTING.md", "10 %"): ("CONTRIBUTING.md", "10 % of its memory"),
    ("docs/explain.md", "16 MiB"): ("mvitv2_core/explain/attention.py", "CHUNK = 2**22 "),
    # Two of each of eight motions, 48 frames at 30 a second.
    ("docs/extract.md", "25.6 s"): ("projects/video/toy_kinetics.py", "FRAMES = 100, 80, 48"),
    ("docs/extract.md", "64 MiB"): ("mvitv2_tools/extract/work.py", "PART_BYTES = 256, 64 << 20"),
    ("docs/extract.md", "32 MiB"): ("tests/tools/test_extract_memory.py", "peaks[0] + 32"),
    ("docs/extract.md", "1000 hours"): HOURS,
    ("docs/extract.md", "3600 seconds"): HOURS,
    ("docs/extract.md", "30 s"): ("docs/extract.md", "64 / 30 s"),  # 64 frames of 30 a second
    ("docs/learning.md", "16.7 %"): ("projects/learning/plots.py", "axhline(100 / 6"),  # chance
    ("docs/machines.md", "2.9 GB"): (
        "projects/detection/README.md",
        "| 718.2 |",
    ),  # M, 4 bytes each
    ("docs/predict.md", "900 s"): ("mvitv2_tools/data/ava_boxes.py", "frame 0 is second 900"),
    ("docs/predict.md", "10 seconds"): ("mvitv2_tools/classify.py", "WINDOW = 10.0"),
    ("docs/predict.md", "5 seconds"): ("projects/benchmark/predict_speed.py", ", 30, 150"),
    ("docs/robustness.md", "64 MiB"): ("mvitv2_core/fast/memory.py", "LIMIT = 64 * 2**20"),
    ("docs/training.md", "2 ms"): ("projects/benchmark/act_checkpoint.py", "EVERY = 0.002"),
    ("projects/benchmark/README.md", "180 seconds"): ("projects/benchmark/bench.py", "=180.0"),
    ("projects/detection/README.md", "0.3 %"): ("tests/projects/test_recipes.py", " - 1) < 0.003"),
    ("projects/detection/README.md", "3.4 %"): ("projects/detection/README.md", "ours are 288.6"),
    ("projects/detection/README.md", "5.0 GB"): (
        "projects/detection/README.md",
        "The paper's speed",
    ),
    ("projects/detection/README.md", "83.6 %"): ("MODEL_ZOO.md", "top-1 83.6"),  # published
    ("projects/detection/README.md", "1 %"): (COST, "/ kept - 1) < 0.01"),
}


def text_of(page: Path) -> str:
    """Without code, links' addresses, and the tables of kept results."""
    return LINK.sub("]", FENCE.sub("", figures.BLOCK.sub("", page.read_text())))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_figures_have_an_origin(page: Path) -> None:
    name = str(page.relative_to(ROOT))
    known = {figure for place, figure in ORIGINS if place == name}
    found = {re.sub(r"\s", " ", figure) for figure in FIGURE.findall(text_of(page))}
    assert found == known, f"without origin: {found - known}; no longer there: {known - found}"


@pytest.mark.parametrize(("file", "text"), sorted(set(ORIGINS.values())))
def test_origins_are_there(file: str, text: str) -> None:
    assert text in (ROOT / file).read_text()
