"""Tables and plots of a benchmark run."""

from __future__ import annotations

import json
import os
from pathlib import Path


def ratios(rows: list[dict]) -> list[dict]:
    """Each row with its peer's time and memory over ours, in the same case and mode."""
    base = {(r["case"], r["mode"]): r for r in rows if r["who"] == "ours"}
    result = []
    for row in rows:
        ours = base.get((row["case"], row["mode"]))
        extra = {}
        if ours and "median" in row:
            extra["speed_of_ours"] = row["median"] / ours["median"]
            if row["peak_mib"] and ours["peak_mib"]:
                extra["memory_of_ours"] = ours["peak_mib"] / row["peak_mib"]
        result.append({**row, **extra})
    return result


def table(rows: list[dict], markdown: bool) -> str:
    """The rows as text or Markdown."""
    head = [
        "case",
        "mode",
        "model",
        "median s",
        "min-max s",
        "peak MiB",
        "ours faster",
        "our memory",
    ]
    lines = [head]
    for row in rows:
        if "error" in row:
            lines.append([row["case"], row["mode"], row["who"], row["error"][:60], "", "", "", ""])
            continue
        ours = row["who"] == "ours"
        speed = "" if ours else f"{row['speed_of_ours']:.2f}x"
        memory = "" if ours or "memory_of_ours" not in row else f"{row['memory_of_ours']:.2f}x"
        spread = f"{row['min']:.4f}-{row['max']:.4f}"
        peak = f"{row['peak_mib']:.0f}" if row["peak_mib"] else "-"
        lines.append(
            [
                row["case"],
                row["mode"],
                row["who"],
                f"{row['median']:.4f}",
                spread,
                peak,
                speed,
                memory,
            ]
        )
    if markdown:
        lines.insert(1, ["---"] * len(head))
        return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return (
        "\n".join(
            "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip()
            for line in lines
        )
        + "\n"
    )


def write(rows: list[dict], facts: dict, out: Path, scaling: bool) -> list[Path]:
    """Write table.txt, table.md, results.json and a plot into ``out``; returns their paths."""
    out.mkdir(parents=True, exist_ok=True)
    rows = ratios(rows)
    named = ", ".join(f"{key} {value}" for key, value in facts.items())
    texts = {
        "table.txt": f"{named}\n\n{table(rows, False)}",
        "table.md": f"{table(rows, True)}\nMeasured by this project: {named}.\n",
        "results.json": json.dumps({"machine": facts, "rows": rows}, indent=1) + "\n",
    }
    for name, text in texts.items():
        temporary = out / f".{name}.part"
        temporary.write_text(text)
        os.replace(temporary, out / name)
    plot = out / ("scaling.png" if scaling else "speed.png")
    (draw_scaling if scaling else draw_speed)(rows, named, plot)
    return [out / name for name in texts] + [plot]


def draw_speed(rows: list[dict], named: str, path: Path) -> None:
    """Bars: how much faster ours is than each peer, per case and mode."""
    bars = [r for r in rows if r.get("speed_of_ours") and not r["who"].startswith("ours")]
    if not bars:
        return
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(8, 0.45 * len(bars) + 1.6))
    colours = {"inference": "#3b6ea8", "training": "#d08a2e"}
    labels = [f"{r['case']}\nagainst {r['who']}" for r in bars]
    axes.barh(
        range(len(bars)),
        [r["speed_of_ours"] for r in bars],
        color=[colours[r["mode"]] for r in bars],
    )
    for index, row in enumerate(bars):
        axes.text(
            row["speed_of_ours"] + 0.02,
            index,
            f"{row['speed_of_ours']:.2f}x",
            va="center",
            fontsize=8,
        )
    axes.set_yticks(range(len(bars)), labels, fontsize=7)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.set_xlabel("speed of ours over the peer's (peer's median time / ours)")
    handles = [plt.Rectangle((0, 0), 1, 1, color=c) for c in colours.values()]
    axes.set_xlim(0, 1.12 * max(1.0, *(r["speed_of_ours"] for r in bars)))
    axes.legend(
        handles, list(colours), loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=8
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(named, fontsize=6, y=0.995)
    figure.tight_layout()
    save(figure, path)


def draw_scaling(rows: list[dict], named: str, path: Path) -> None:
    """Lines: time and peak memory against pixels and frames."""
    plt = pyplot()
    kinds = [k for k in ("detection", "video") if any(r["case"].startswith(k) for r in rows)]
    modes = sorted({r["mode"] for r in rows})
    figure, grid = plt.subplots(
        2, len(kinds) * len(modes), figsize=(4 * len(kinds) * len(modes), 6), squeeze=False
    )
    for column, (kind, mode) in enumerate((k, m) for k in kinds for m in modes):
        chosen = [
            r for r in rows if r["case"].startswith(kind) and r["mode"] == mode and "median" in r
        ]
        for who in dict.fromkeys(r["who"] for r in chosen):
            mine = [r for r in chosen if r["who"] == who]
            xs = [r["size"][0] for r in mine]
            grid[0][column].plot(xs, [r["median"] for r in mine], marker="o", label=who)
            grid[1][column].plot(
                xs, [r["peak_mib"] or float("nan") for r in mine], marker="o", label=who
            )
        for axes, title in zip(grid[:, column], ("seconds", "peak MiB"), strict=True):
            axes.set(xscale="log", yscale="log", ylabel=title, title=f"{kind}, {mode}")
            axes.set_xlabel("pixels a side" if kind == "detection" else "frames of 224 x 224")
            axes.set_xticks(sorted({r["size"][0] for r in chosen}))
            axes.xaxis.set_major_formatter(plt.ScalarFormatter())
            axes.minorticks_off()
            axes.grid(alpha=0.3)
            axes.legend(fontsize=7)
    figure.suptitle(named, fontsize=7)
    figure.tight_layout()
    save(figure, path)


def pyplot():  # type: ignore[no-untyped-def]
    """matplotlib without a display."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def save(figure: object, path: Path) -> None:
    """Write a PNG in one step."""
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=150, format="png")  # type: ignore[attr-defined]
    os.replace(temporary, path)
