"""The figures of the documents, made from the results under ``projects/benchmark/results``.

    python -m projects.benchmark.figures            # writes tables and pictures
    python -m projects.benchmark.figures --check    # exit code 1 where a document has others

A table stands in a document between ``<!-- figures: NAME -->`` and ``<!-- /figures -->``.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mvitv2_core.checkpoint.files import whole_file
from projects.benchmark import kept as results_kept
from projects.benchmark.export_speed import table
from projects.benchmark.kept import kept, measured
from projects.benchmark.plots import draw_speed
from projects.benchmark.report import layout, speed_text
from projects.learning import plots as learning_plots

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = ("README.md", "projects/benchmark/README.md", "docs/*.md")
BLOCK = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- /figures -->)", re.DOTALL)
UNMEASURED = "Not measured yet.\n"
# Bytes of a row of MViTv2-S on 16 frames of 224 x 224.
SIZES = {
    "`pooled`, float32": 768 * 4,
    "`frames`, float32": 8 * 768 * 4,
    "`grid`, float16": 8 * 7 * 7 * 768 * 2,
}
MACHINE = 64  # cores, of the example in docs/extract.md
SPEED_PICTURE = ROOT / "docs/images/benchmark_speed.png"


def measured_on(facts: dict) -> str:
    """One line: how often and on what."""
    named = ", ".join(f"{key} {value}" for key, value in facts.items())
    return f"Measured by this project: medians and ranges over separate runs; {named}.\n"


def speed(full: bool, name: str = "cpu") -> str:
    """A line for each case and peer: speed and memory, in inference and in training."""
    if not measured(name):
        return UNMEASURED
    results = kept(name)
    rows = {(r["case"], r["who"], r["mode"]): r for r in results["rows"]}
    lines = [["case", "against", "inference: speed, memory", "training: speed, memory"]]
    for case, who in dict.fromkeys((r["case"], r["who"]) for r in results["rows"]):
        if who == "ours":
            continue
        line = [case, who]
        for mode in ("inference", "training"):
            row = rows.get((case, who, mode))
            line.append(speed_cell(row, rows[case, "ours", mode], full) if row else "")
        lines.append(line)
    return f"{layout(lines, markdown=True)}\n{measured_on(results['machine'])}"


def speed_cell(row: dict, ours: dict, full: bool) -> str:
    """Speed over a peer, our memory over its and, where asked, the distance of both to the limit.

    A row of our own (with checkpointing, compiled) says what it is against ours as it comes.
    """
    if "error" in row:
        return row["error"]
    memory = f"{row['memory_of_ours']:.2f}x" if "memory_of_ours" in row else "not measured"
    text = f"{speed_text(row)}, {memory}"
    if full:
        text += f", {ours['over_limit']:.2f}x ({row['over_limit']:.2f}x) over the limit"
    return text


def turns() -> str:
    """Time and memory of this version over the one before, run by run."""
    results = kept("turns")
    lines = [["step", "time", "peak memory"]]
    for name, row in results["rows"].items():
        times, peaks = (
            [new / old for old, new in zip(row[key]["old"], row[key]["new"], strict=True)]
            for key in ("seconds", "peak_mib")
        )
        cells = [
            f"{statistics.median(part):.2f}x ({min(part):.2f} to {max(part):.2f})"
            for part in (times, peaks)
        ]
        lines.append([name, *cells])
    counts = [len(row["peak_mib"]["new"]) for row in results["rows"].values()]
    runs = f"Memory in {min(counts)} to {max(counts)} of the runs.\n"
    return f"{layout(lines, markdown=True)}\n{measured_on(results['machine'])}{runs}"


def predict_share() -> str:
    """How busy ``mvitv2 predict`` keeps a model."""
    results = kept("predict_speed")
    lines = [["folder", "model", "share of the bare model's throughput"]]
    for kind in ("pictures", "clips"):
        share, count = results[kind]["share"], results[kind]["rounds"][0]["inputs"]
        spread = f"{share['median']:.3f} ({share['min']:.3f} to {share['max']:.3f})"
        lines.append([f"{count:.0f} {kind}", results[kind]["name"], spread])
    return f"{layout(lines, markdown=True)}\n{measured_on(results['machine'])}"


def extract() -> str:
    """How busy ``mvitv2 extract`` keeps a model."""
    if not measured("extract_speed"):
        return UNMEASURED
    results = kept("extract_speed")
    lines = [["inputs", "model", "rows a second", "share of the bare model's"]]
    for row in results["results"]:
        rate, part, step = row["extract rows/s"], row["ratio"], row["seconds"]
        inputs = f"video, a row every {step:.2f} s" if step else "pictures"
        spreads = (
            f"{r['median']:.{d}f} ({r['min']:.{d}f} to {r['max']:.{d}f})"
            for r, d in ((rate, 2), (part, 3))
        )
        lines.append([inputs, row["model"], *spreads])
    return f"{layout(lines, markdown=True)}\n{measured_on(results['machine'])}"


def extract_hours() -> str:
    """What 1000 hours of video would take: one worker, a machine full of them, ten machines."""
    if not measured("extract_speed"):
        return UNMEASURED
    videos = [row for row in kept("extract_speed")["results"] if row["seconds"]]
    threads = videos[0]["threads"]
    full = MACHINE // threads
    counts = {
        f"hours of 1 worker of {threads} threads": 1,
        f"of {full}, on {MACHINE} cores": full,
        f"of {10 * full}, on 10 x {MACHINE} cores": 10 * full,
    }
    columns = [
        ["", "rows", *SIZES, "r: rows a second of a worker", *counts, "seconds of video read"]
    ]
    for row in videos:
        step, rate = row["seconds"], row["extract rows/s"]["median"]
        rows = 1000 * 3600 / step
        column = [f"a row every {step:.2f} s", f"{rows:,.0f}"]
        column += [size(rows * bytes_of_row) for bytes_of_row in SIZES.values()]
        column += [f"{rate:.2f}", *(f"{rows / rate / n / 3600:,.1f}" for n in counts.values())]
        columns.append([*column, f"{rate * step:.2f} a second and worker"])
    return layout([list(line) for line in zip(*columns, strict=True)], markdown=True)


def size(count: float) -> str:
    """Bytes in words."""
    return f"{count / 1e12:.2f} TB" if count >= 1e12 else f"{count / 1e9:.1f} GB"


def explain() -> str:
    """What maps of the toy pictures point at, with a class token and without."""
    results = kept("explain")
    kinds = ("class token", "mean")
    maps = {"top-1 of the classifier": "top1"}
    for method in ("taylor", "layer-cam", "hires-cam", "grad-cam"):
        for stage in (1, 2):
            maps[f"`{method}`, stage {stage}"] = f"{method}_stage{stage}_on_object"
    for block in range(4):
        maps[f"attention of block {block}"] = f"attention_block{block}_on_object"
    maps["rollout"] = "rollout_on_object"
    lines = [["strongest cell in the box, of 200 pictures", "class token", "mean"]]
    for shown, key in maps.items():
        cells = ([100 * run[key] for run in results["runs"][kind]] for kind in kinds)
        spreads = (f"{statistics.median(c):.1f} ({min(c):.1f} to {max(c):.1f}) %" for c in cells)
        lines.append([shown, *spreads])
    return f"{layout(lines, markdown=True)}\n{measured_on(results['machine'])}"


def export() -> str:
    """Exported files' size and speed beside eager."""
    return table(kept("export_speed")) if measured("export_speed") else UNMEASURED


def learning() -> str:
    """What pre-training gave: a line for each arm."""
    results = kept("learning")
    named = ", ".join(f"{key} {value}" for key, value in results["machine"].items())
    where = f"Measured by this project: median and range over the seeds; {named}.\n"
    return f"{layout(learning_plots.table(results), markdown=True)}\n{where}"


def demo() -> str:
    """What ``make demo`` reaches, and how long it takes."""
    if not measured("demo"):
        return UNMEASURED
    results = kept("demo")
    runs = results["runs"]
    line = []
    for key in ("box_ap", "mask_ap", "minutes"):
        values = [run[key] for run in runs]
        line.append(f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})")
    lines = [["box AP", "mask AP", "minutes", "runs"], [*line, str(len(runs))]]
    return f"{layout(lines, markdown=True)}\n{measured_on(results['machine'])}"


TABLES: dict[str, Callable[[], str]] = {
    "speed": lambda: speed(full=False),
    "speed_full": lambda: speed(full=True),
    "speed_compiled": lambda: speed(full=False, name="cpu_compiled"),
    "turns": turns,
    "predict_share": predict_share,
    "explain": explain,
    "extract": extract,
    "extract_hours": extract_hours,
    "export": export,
    "learning": learning,
    "demo": demo,
}


def with_figures(text: str) -> str:
    """A document with its tables made anew."""
    return BLOCK.sub(lambda m: f"{m[1]}{TABLES[m[2]]()}{m[3]}", text)


def source_of(name: str) -> str:
    """What a picture says it was made from: the results' file and its sha256."""
    path = results_kept.RESULTS / f"{name}.json"
    return f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing")
    args = parser.parse_args()
    stale = []
    for path in sorted(path for pattern in DOCUMENTS for path in ROOT.glob(pattern)):
        text = path.read_text()
        new = with_figures(text)
        if new == text:
            continue
        stale.append(str(path.relative_to(ROOT)))
        if not args.check:
            with whole_file(path) as temporary:
                Path(temporary).write_text(new)
    if not args.check:
        results = kept("cpu")
        named = ", ".join(f"{key} {value}" for key, value in results["machine"].items())
        draw_speed(results["rows"], named, SPEED_PICTURE, source_of("cpu"))
        learning_plots.draw_curves(kept("learning"), learning_plots.CURVES, source_of("learning"))
        learning_plots.draw_world(learning_plots.WORLD)
    print("\n".join(stale) or "nothing to change")
    return int(args.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
