"""Pictures of a benchmark run."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill
from typing import Any

from mvitv2_core.checkpoint.files import whole_file

COLOURS = {"inference": "#3b6ea8", "training": "#d08a2e"}
# One colour per model in every picture.
MODELS = {"ours": "#3b6ea8", "ours, checkpointing": "#7fb0dd", "detectron2": "#d08a2e"}
MODELS |= {"timm": "#d08a2e", "torchvision": "#d08a2e", "PySlowFast": "#9a5a9a"}
LIMIT = "matmul limit"


def draw_speed(rows: list[dict], named: str, path: Path, source: str | None = None) -> None:
    """Bars: how much faster ours is than each peer, per case and mode; marks: at the limit."""
    bars = [r for r in rows if r.get("speed_of_ours") and not r["who"].startswith("ours")]
    if not bars:
        return
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(8, 0.45 * len(bars) + 1.6))
    labels = [f"{r['case']}\nagainst {r['who']}" for r in bars]
    speeds = [r["speed_of_ours"] for r in bars]
    below = [r["speed_of_ours"] - r["speed_range"][0] for r in bars]
    above = [r["speed_range"][1] - r["speed_of_ours"] for r in bars]
    axes.barh(
        range(len(bars)),
        speeds,
        color=[COLOURS[r["mode"]] for r in bars],
        xerr=[below, above],
        error_kw={"linewidth": 1, "ecolor": "#555555", "capsize": 2},
    )
    for index, row in enumerate(bars):
        speed, high = row["speed_of_ours"], row["speed_range"][1]
        axes.text(high + 0.03, index, f"{speed:.2f}x", va="center", fontsize=8)
    limits = [r["over_limit"] for r in bars]  # what a model as fast as the limit would reach
    axes.scatter(limits, range(len(bars)), marker="|", s=160, color="black", zorder=3)
    axes.set_yticks(range(len(bars)), labels, fontsize=7)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.set_xlabel("speed over the peer's (peer's time / ours): median and range over the runs")
    handles = [plt.Rectangle((0, 0), 1, 1, color=c) for c in COLOURS.values()]
    handles.append(plt.Line2D([], [], color="black", marker="|", markersize=11, linestyle=""))
    axes.set_xlim(0, 1.12 * max(1.0, *(row["speed_range"][1] for row in bars), *limits))
    names = [*COLOURS, f"{LIMIT}: its FLOPs as one big product"]
    axes.legend(handles, names, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(fill(named, 110), fontsize=5.5, y=0.995)
    figure.tight_layout()
    save(figure, path, source)


def draw_scaling(rows: list[dict], named: str, path: Path, source: str | None = None) -> None:
    """Lines: time, if measured, and peak memory against pixels and frames, with their bounds."""
    plt = pyplot()
    rows = [r for r in rows if r["windows"]]
    columns = list(dict.fromkeys((r["kind"], r["mode"]) for r in rows))
    if not columns:
        return
    wanted = ["peak_mib"] if not any("median" in row for row in rows) else ["median", "peak_mib"]
    size = (4 * len(columns), 3.4 * len(wanted))
    figure, grid = plt.subplots(len(wanted), len(columns), figsize=size, squeeze=False)
    for column, (kind, mode) in zip(grid.T, columns, strict=True):
        chosen = [r for r in rows if (r["kind"], r["mode"]) == (kind, mode)]
        for who in dict.fromkeys(r["who"] for r in chosen):
            mine = [r for r in chosen if r["who"] == who]
            style = {"marker": "o", "label": who, "color": MODELS.get(who)}
            for axes, key in zip(column, wanted, strict=True):
                found = [(r["size"][0], r[key]) for r in mine if r.get(key)]
                axes.plot([x for x, _ in found], [y for _, y in found], **style)
        ours = [r for r in chosen if r["who"] == "ours"]
        sides = [r["size"][0] for r in ours]
        bound = {"color": "black", "linestyle": "--", "linewidth": 1, "marker": "."}
        matrix = {**bound, "linestyle": ":", "label": "one queries x keys matrix"}
        bounds = {
            "median": ("limit", {**bound, "label": LIMIT}),
            "peak_mib": ("matrix_mib", matrix),
        }
        for axes, key in zip(column, wanted, strict=True):
            axes.plot(sides, [r[bounds[key][0]] for r in ours], **bounds[key][1])
            title = {"median": "seconds", "peak_mib": "peak MiB"}[key]
            axes.set(xscale="log", yscale="log", ylabel=title, title=f"{kind}, {mode}")
            axes.set_xlabel("pixels a side" if kind == "detection" else "frames of 224 x 224")
            axes.set_xticks(sides, [str(side) for side in sides])
            axes.minorticks_off()
            axes.yaxis.set_major_locator(plt.LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(plt.FuncFormatter(lambda y, _: f"{y:g}"))
            axes.grid(alpha=0.3)
            axes.legend(fontsize=7)
    figure.suptitle(fill(named, 110), fontsize=7)
    figure.tight_layout()
    save(figure, path, source)


def pyplot() -> Any:
    """matplotlib without a display."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def save(figure: Any, path: Path, source: str | None = None) -> None:
    """Write a PNG in one step; ``source`` says in it what it was made from."""
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png", metadata={"Source": source})
    pyplot().close(figure)
