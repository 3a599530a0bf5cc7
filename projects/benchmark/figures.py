"""The figures of the documents, made from the results under ``projects/benchmark/results``.

    python -m projects.benchmark.figures            # writes tables and pictures
    python -m projects.benchmark.figures --check    # exit code 1 where a document has others

A table stands in a document between ``<!-- figures: NAME -->`` and ``<!-- /figures -->``.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mvitv2_core.checkpoint.files import whole_file
from projects.benchmark import export_speed, kept, matrix, robustness, tables
from projects.benchmark.plots import draw_scaling, draw_speed
from projects.benchmark.report import in_words, layout
from projects.learning import plots as learning_plots

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = ("README.md", "projects/benchmark/README.md", "docs/*.md")
BLOCK = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- /figures -->)", re.DOTALL)
UNMEASURED = "Not measured yet.\n"
# Of results that are no medians over runs: what they are.
KINDS = {
    "checked": "Counted by this project",
    "growth": "Measured by this project, each once",
    "matrix": "Run by this project, without a GPU",
}
SPEED_PICTURE = ROOT / "docs/images/benchmark_speed.png"
GROWTH_PICTURE = ROOT / "docs/images/benchmark_growth.png"


# Of each table: the results that it is made from, and how.
TABLES: dict[str, tuple[str, Callable[[tables.Results], tables.Lines]]] = {
    "speed": ("cpu", partial(tables.speed, full=False)),
    "speed_full": ("cpu", partial(tables.speed, full=True)),
    "speed_compiled": ("cpu_compiled", partial(tables.speed, full=False)),
    "growth": ("growth", tables.growth),
    "predict_share": ("predict_speed", tables.predict_share),
    "explain": ("explain", tables.explain),
    "explain_why": ("explain_why", partial(tables.explain_why, two_shapes=False)),
    "explain_two_shapes": ("explain_why", partial(tables.explain_why, two_shapes=True)),
    "act_checkpoint": ("act_checkpoint", tables.act_checkpoint),
    "extract": ("extract_speed", tables.extract),
    "extract_hours": ("extract_speed", tables.extract_hours),
    "export": ("export_speed", export_speed.table),
    "learning": ("learning", learning_plots.table),
    "demo": ("demo", tables.demo),
    "video_demo": ("video_demo", tables.video_demo),
    "robustness": ("checked", robustness.table),
    "matrix": ("matrix", matrix.table),
}


def table(name: str) -> str:
    """The table that stands behind ``<!-- figures: NAME -->``."""
    source, make = TABLES[name]
    if not kept.measured(source):
        return UNMEASURED
    results = kept.kept(source)
    kind = KINDS.get(source, "Measured by this project: medians and ranges over separate runs")
    facts = {**results["machine"], "commit": results["commit"]}
    if all("commit" in row for row in results.get("rows", [{}])):  # each row says its own
        facts = {"cpu": facts["cpu"]}
    return f"{layout(make(results), markdown=True)}\n{kind}; {in_words(facts)}.\n"


def with_figures(text: str) -> str:
    """A document with its tables made anew."""
    return BLOCK.sub(lambda m: f"{m[1]}{table(m[2])}{m[3]}", text)


def source_of(name: str) -> str:
    """What a picture says it was made from: the results' file and its sha256."""
    path = kept.RESULTS / f"{name}.json"
    return f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}"


def pages() -> list[Path]:
    """The documents that may hold tables."""
    return sorted(path for pattern in DOCUMENTS for path in ROOT.glob(pattern))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing")
    args = parser.parse_args()
    stale = []
    for path in pages():
        text = path.read_text()
        new = with_figures(text)
        if new == text:
            continue
        stale.append(str(path.relative_to(ROOT)))
        if not args.check:
            with whole_file(path) as temporary:
                Path(temporary).write_text(new)
    if not args.check:
        for name, draw, path in (
            ("cpu", draw_speed, SPEED_PICTURE),
            ("growth", draw_scaling, GROWTH_PICTURE),
        ):
            results = kept.kept(name)
            draw(results["rows"], in_words(results["machine"]), path, source_of(name))
        learning_plots.draw_curves(
            kept.kept("learning"), learning_plots.CURVES, source_of("learning")
        )
        learning_plots.draw_world(learning_plots.WORLD)
    print("\n".join(stale) or "nothing to change")
    return int(args.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
