"""Tables of a benchmark run, and what writes them and the plots."""

from __future__ import annotations

import json
import statistics
from math import prod
from pathlib import Path

from mvitv2_core.checkpoint.files import whole_file
from projects.benchmark.plots import draw_scaling, draw_speed

HEAD = ["case", "mode", "model", "median s", "min-max s", "peak MiB"]
HEAD += ["ours faster", "our memory", "over limit"]


def ratios(rows: list[dict]) -> list[dict]:
    """Each row with its peer's time over ours, run by run, and our memory over the peer's.

    ``speed_of_ours`` is the median over the runs, ``speed_range`` the least and the largest.
    """
    base = {(r["case"], r["mode"]): r for r in rows if r["who"] == "ours"}
    result = []
    for row in rows:
        ours = base.get((row["case"], row["mode"]), {})
        extra = {}
        if "median" in row:
            extra["over_limit"] = row["median"] / row["limit"]
            if "median" in ours:
                pairs = zip(row["runs"], ours["runs"], strict=True)
                speeds = [theirs / mine for theirs, mine in pairs]
                extra["speed_of_ours"] = statistics.median(speeds)
                extra["speed_range"] = [min(speeds), max(speeds)]
        if row["peak_mib"] and ours.get("peak_mib"):
            extra["memory_of_ours"] = ours["peak_mib"] / row["peak_mib"]
        result.append({**row, **extra})
    return result


def cells(row: dict) -> list[str]:
    """One line of the table."""
    ours = row["who"] == "ours"
    peak = f"{row['peak_mib']:.0f}" if row["peak_mib"] else "-"
    memory = f"{row['memory_of_ours']:.2f}x" if "memory_of_ours" in row and not ours else ""
    start = [row["case"], row["mode"], row["who"]]
    if "error" in row:
        return [*start, row["error"][:60], "", peak, "", memory, ""]
    if "median" not in row:
        return [*start, "-", "-", peak, "", memory, ""]
    speed = "" if ours or "speed_of_ours" not in row else speed_text(row)
    spread = f"{row['min']:.4f}-{row['max']:.4f}"
    return [
        *start,
        f"{row['median']:.4f}",
        spread,
        peak,
        speed,
        memory,
        f"{row['over_limit']:.2f}x",
    ]


def speed_text(row: dict) -> str:
    """A speed over a peer's with its range over the runs: "1.52x (1.40 to 1.60)"."""
    low, high = row["speed_range"]
    spread = f" ({low:.2f} to {high:.2f})" if len(row["runs"]) > 1 else ""
    return f"{row['speed_of_ours']:.2f}x{spread}"


def layout(lines: list[list[str]], markdown: bool) -> str:
    """Lines of equally many cells, the first of them the head, as text or Markdown."""
    if markdown:
        lines = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rows = (zip(line, widths, strict=True) for line in lines)
    return "\n".join("  ".join(c.ljust(w) for c, w in row).rstrip() for row in rows) + "\n"


def growth(rows: list[dict]) -> list[list[str]]:
    """How time, memory and FLOPs grow per pixel from the first to the last size of a sweep.

    From 512 pixels a side on where that was measured: below, fixed costs weigh.
    """
    lines = [["sweep", "mode", "model", "from", "to", "time", "peak memory", "FLOPs", "matrix"]]
    windowed = [r for r in rows if r["windows"]]
    for key in dict.fromkeys((r["kind"], r["mode"], r["who"]) for r in windowed):
        mine = [r for r in windowed if (r["kind"], r["mode"], r["who"]) == key]
        mine = [r for r in mine if "median" in r and r["peak_mib"]]
        large = [r for r in mine if key[0] == "detection" and r["size"][0] >= 512]
        mine = large if len(large) > 1 else mine
        if len(mine) < 2:
            continue
        first, last = mine[0], mine[-1]
        pixels = prod(last["size"]) / prod(first["size"])
        factors = [
            last[k] / first[k] / pixels for k in ("median", "peak_mib", "flops", "matrix_mib")
        ]
        sizes = ["x".join(map(str, r["size"])) for r in (first, last)]
        lines.append([*key, *sizes, *(f"{f:.2f}x" for f in factors)])
    return lines


def matrices(rows: list[dict]) -> list[list[str]]:
    """Our peak memory beside the size that one queries x keys matrix would have."""
    lines = [["case", "mode", "our peak MiB", "one matrix, MiB"]]
    for row in rows:
        if row["who"] == "ours" and row["peak_mib"]:
            figures = [f"{row['peak_mib']:.0f}", f"{row['matrix_mib']:.0f}"]
            lines.append([row["case"], row["mode"], *figures])
    return lines


def write(rows: list[dict], facts: dict, notes: list[str], out: Path, scaling: bool) -> str:
    """Write table.txt, table.md, results.json and a plot into ``out``; returns the text."""
    rows = ratios(rows)
    named = in_words(facts)
    tables = [[HEAD, *map(cells, rows)]]
    titles = [""]
    if scaling:
        tables += [growth(rows), matrices(rows)]
        titles += ["Growth per pixel of all frames:", "No queries x keys matrix:"]
    text, page = (
        "\n".join(
            (f"{title}\n\n" if title else "") + layout(table, markdown)
            for title, table in zip(titles, tables, strict=True)
        )
        for markdown in (False, True)
    )
    missing = "".join(f"{note}\n" for note in notes)
    save_texts(
        out,
        {
            "table.txt": f"{named}\n\n{text}{missing}",
            "table.md": f"{page}\nMeasured by this project: {named}.\n{missing}",
            "results.json": json.dumps({"machine": facts, "notes": notes, "rows": rows}, indent=1)
            + "\n",
        },
    )
    if scaling:
        draw_scaling(rows, named, out / "scaling.png")
    else:
        draw_speed(rows, named, out / "speed.png")
    return text + missing


def write_profile(rows: list[dict], facts: dict, out: Path) -> str:
    """Write profile.txt, profile.md and profile.json into ``out``; returns the text."""
    named = in_words(facts)
    texts = []
    for markdown in (False, True):
        parts = []
        for case, mode in dict.fromkeys((row["case"], row["mode"]) for row in rows):
            chosen = [row for row in rows if (row["case"], row["mode"]) == (case, mode)]
            parts.append(f"{case}, {mode}\n\n" + layout(profile_lines(chosen), markdown))
        texts.append("\n".join(parts))
    text, page = texts
    save_texts(
        out,
        {
            "profile.txt": f"{named}\n\n{text}",
            "profile.md": f"{page}\nMeasured by this project with torch.profiler: {named}.\n",
            "profile.json": json.dumps({"machine": facts, "rows": rows}, indent=1) + "\n",
        },
    )
    return text


def profile_lines(rows: list[dict]) -> list[list[str]]:
    """One line per kind of work, one column per model: seconds and share."""
    good = [row for row in rows if "error" not in row["kinds"]]
    lines = [["kind of work", *(row["who"] for row in rows)]]
    totals = {row["who"]: sum(row["kinds"].values()) for row in good}
    for kind in good[0]["kinds"] if good else ():
        line = [kind]
        for row in rows:
            if row not in good:
                line.append(row["kinds"]["error"][:40])
                continue
            seconds = row["kinds"][kind]
            line.append(f"{seconds:.4f} s, {seconds / max(totals[row['who']], 1e-12):.0%}")
        lines.append(line)
    sums = [f"{totals[row['who']]:.4f} s" if row in good else "" for row in rows]
    return [*lines, ["all", *sums], ["limit", *(f"{row['limit']:.4f} s" for row in rows)]]


def in_words(facts: dict) -> str:
    """What a machine is, as one line: "cpu NAME, threads 2, ..."."""
    return ", ".join(f"{key} {value}" for key, value in facts.items())


def save_texts(out: Path, texts: dict[str, str]) -> None:
    """Write each text in one step."""
    out.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        with whole_file(out / name) as temporary:
            Path(temporary).write_text(text)
