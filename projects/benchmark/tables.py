"""Tables of the documents, each made from one kept result."""

from __future__ import annotations

import statistics
from typing import Any

from mvitv2_core.explain.grad_cam import METHODS
from projects.benchmark.report import speed_text

# Bytes of a row of MViTv2-S on 16 frames of 224 x 224.
SIZES = {
    "`pooled`, float32": 768 * 4,
    "`frames`, float32": 8 * 768 * 4,
    "`grid`, float16": 8 * 7 * 7 * 768 * 2,
}
Results = dict[str, Any]  # of one file under results
Lines = list[list[str]]  # of as many cells each, the head first
MACHINE = 64  # cores, of the example in docs/extract.md


def speed(results: Results, full: bool) -> Lines:
    """A line for each case and peer: speed and memory, in inference and in training."""
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
    return lines


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


def spread(values: list[float], digits: int = 1) -> str:
    """Median and range."""
    found = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return span(found, digits)


def span(found: dict[str, float], digits: int) -> str:
    """Median and range that were computed before."""
    median, low, high = (f"{found[key]:.{digits}f}" for key in ("median", "min", "max"))
    return f"{median} ({low} to {high})"


def predict_share(results: Results) -> Lines:
    """How busy ``mvitv2 predict`` keeps a model."""
    lines = [["folder", "model", "share of the bare model's throughput"]]
    for kind in ("pictures", "clips"):
        share, count = results[kind]["share"], results[kind]["rounds"][0]["inputs"]
        lines.append([f"{count:.0f} {kind}", results[kind]["name"], span(share, 3)])
    return lines


def extract(results: Results) -> Lines:
    """How busy ``mvitv2 extract`` keeps a model."""
    lines = [["inputs", "model", "rows a second", "share of the bare model's"]]
    for row in results["results"]:
        rate, part, step = row["extract rows/s"], row["ratio"], row["seconds"]
        inputs = f"video, a row every {step:.2f} s" if step else "pictures"
        lines.append([inputs, row["model"], span(rate, 2), span(part, 3)])
    return lines


def extract_hours(results: Results) -> Lines:
    """What 1000 hours of video would take: one worker, a machine full of them, ten machines."""
    videos = [row for row in results["results"] if row["seconds"]]
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
    return [list(line) for line in zip(*columns, strict=True)]


def size(count: float) -> str:
    """Bytes in words."""
    return f"{count / 1e12:.2f} TB" if count >= 1e12 else f"{count / 1e9:.1f} GB"


def explain(results: Results) -> Lines:
    """What maps of the toy pictures point at, with a class token and without."""
    kinds = ("class token", "mean")
    maps = {"top-1 of the classifier": "top1"}
    for method in ("taylor", "layer-cam", "hires-cam", "grad-cam"):
        for stage in (1, 2):
            maps[f"`{method}`, stage {stage}"] = f"{method}_stage{stage}_on_object"
    for block in range(4):
        maps[f"attention of block {block}"] = f"attention_block{block}_on_object"
    maps["rollout"] = "rollout_on_object"
    maps["chance: the box's share of the picture"] = "area_share"
    lines = [["strongest cell in the box, of 200 pictures", *kinds]]
    for shown, key in maps.items():
        cells = ([100 * run[key] for run in results["runs"][kind]] for kind in kinds)
        lines.append([shown, *(f"{spread(c)} %" for c in cells)])
    return lines


def explain_why(results: Results, two_shapes: bool) -> Lines:
    """Where gradients are, and whether they agree; or which of two shapes a map points at."""
    kinds = ("class token", "mean")
    if two_shapes:
        lines = [["strongest cell in the box of the class, of the other, %", *kinds]]
        keys = {f"`{m}`": (f"{m}_on_its_own", f"{m}_on_the_other") for m in METHODS}
    else:
        lines = [["at the end of stage 1", *kinds]]
        keys = {
            "size of the gradients that lies in the box, %": ("gradient_share_in_box",),
            "cosine of a cell's gradient in the box with the mean, %": ("cosine_with_mean_in_box",),
            "`grad-cam` in the box, %": ("grad_cam_on_object",),
            "the same by the mean over the box": ("grad_cam_by_the_mean_of_the_box_on_object",),
        }
    for shown, found in keys.items():
        cells = ([[100 * run[key] for run in results["runs"][k]] for key in found] for k in kinds)
        lines.append([shown, *(", ".join(map(spread, cell)) for cell in cells)])
    return lines


def act_checkpoint(results: Results) -> Lines:
    """Memory of a training step without and with activation checkpointing."""
    rows = {(row["work"], row["act_checkpoint"]): row["runs"] for row in results["rows"]}
    lines = [["training step", "activation checkpointing", "kept after forward, MiB", "peak, MiB"]]
    for (work, on), runs in rows.items():
        cells = (spread([run[key] for run in runs], 0) for key in ("kept_mib", "peak_mib"))
        lines.append(["" if on else work, "on" if on else "off", *cells])
    return lines


def growth(results: Results) -> Lines:
    """Peak memory, ours and the peer's, at each size of a sweep, beside one whole matrix."""
    peers = ("detectron2", "PySlowFast")
    rows = {(r["case"], r["mode"], r["who"]): r for r in results["rows"]}
    lines = [["case", "one matrix", "inference: ours, peer", "training: ours, peer"]]
    for case in dict.fromkeys(row["case"] for row in results["rows"]):
        mine = [row for row in results["rows"] if row["case"] == case]
        line = [case, f"{mine[0]['matrix_mib']:.0f} MiB"]
        for mode in ("inference", "training"):
            found = [rows.get((case, mode, who), {}) for who in ("ours", *peers)]
            peaks = [f"{row['peak_mib']:.0f} MiB" for row in found if row.get("peak_mib")]
            ratio = [f"{r['memory_of_ours']:.2f}x" for r in found[1:] if "memory_of_ours" in r]
            line.append(", ".join(peaks) + "".join(f" ({part})" for part in ratio))
        lines.append(line)
    return lines


def demo(results: Results) -> Lines:
    """What ``make demo`` reaches, and how long it takes."""
    runs = results["runs"]
    line = [spread([run[key] for run in runs]) for key in ("box_ap", "mask_ap", "minutes")]
    lines = [["box AP", "mask AP", "minutes", "runs"], [*line, str(len(runs))]]
    return lines


def video_demo(results: Results) -> Lines:
    """What ``make demo-video`` reaches."""
    count = f"top-1 of {len(results['runs'])} runs"
    lines = [[count, "validation, last epoch", "test, 2 x 3 views"]]
    named = {"scratch": "video model from scratch", "inflated": "video model from the image model"}
    for kind, title in named.items():
        cells = (
            f"{spread([run[f'{kind}_{part}'] for run in results['runs']])} %"
            for part in ("validation", "test")
        )
        lines.append([title, *cells])
    image = spread([run["image_validation"] for run in results["runs"]])
    return [*lines, ["image model, on stills", f"{image} %", ""]]
