"""Draws the documents' figures of the model from the code itself: ``make figures``.

Shapes come from a forward pass, windows from the layout of blocks, kernels from
``inflate_state_dict``, arrows of the house from the imports; nothing is typed in.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from mvitv2_core import MViTClassifier, MViTConfig, inflate_state_dict
from mvitv2_core.checkpoint.files import whole_file
from mvitv2_core.config import lay_out
from mvitv2_core.rows import VARIANTS
from mvitv2_d2.stages import layout_rows

ROOT = Path(__file__).resolve().parents[1]
BLUE, ORANGE, GREY, PALE = "#3b6ea8", "#d08a2e", "#6b6b6b", "#eef3f9"
# What one box of the house holds, in the order of reading.
TEXTS = {
    "projects": "projects/\nwhat a person runs",
    "mvitv2_d2": "mvitv2_d2\ndetectron2's Backbone",
    "mvitv2_slowfast": "mvitv2_slowfast\nPySlowFast's model, launcher",
    "mvitv2_tools": "mvitv2_tools\nanswers from files",
    "models": "models.py\nmodels by name",
    "cli": "cli.py\nthe command",
    "path_manager": "path_manager.py\nmvitv2:// paths",
    "explain": "explain/\nwhere a model looks",
    "features": "features.py\nbetween the stages",
    "checkpoint": "checkpoint/\nfiles, names, weights",
    "cost": "cost.py\nparameters, FLOPs",
    "model": "model.py\nMViT, MViTClassifier",
    "block": "block.py",
    "attention": "attention.py",
    "ops": "ops.py\nthe door",
    "forms": "forms.py\nthe table",
    "fast": "fast/\na file a form",
    "plain": "plain.py\nthe definitions",
    "rel_pos": "rel_pos.py\npositions",
    "config": "config.py\nBlockSpec, MViTConfig",
    "rows": "rows.py\npublished sizes",
    "checks": "checks.py",
}
CORE = ROOT / "mvitv2_core"
ROOMS = {
    room: text
    for room, text in TEXTS.items()
    if (CORE / room).exists() or (CORE / f"{room}.py").exists() or (ROOT / room).exists()
}
# (x, y) of each room's middle, in the house's own units.
PLACES = {
    **{"projects": (2.6, 9.2), "mvitv2_tools": (6.6, 9.2)},
    **{"mvitv2_d2": (1.5, 8), "mvitv2_slowfast": (4.1, 8)},
    **{"path_manager": (2.6, 6.7), "models": (6.9, 6.7), "cli": (9.1, 6.7)},
    **{"checkpoint": (2.6, 5.7), "explain": (4.9, 5.7), "cost": (9.1, 5.7), "features": (5.2, 4.6)},
    **{"model": (2.6, 4.6), "block": (2.6, 3.7), "attention": (2.6, 2.8)},
    **{"ops": (2.6, 1.7), "forms": (2.6, 0.8), "fast": (2.6, -0.1)},
    **{"plain": (5.6, -0.1), "rel_pos": (2.6, -1.0)},
    **{"config": (6.6, 2.8), "rows": (6.6, 1.7), "checks": (6.6, 0.8)},
}


def box(axes: Axes, x: float, y: float, text: str, colour: str = PALE, width: float = 2.0) -> None:
    shape = FancyBboxPatch(
        (x - width / 2, y - 0.3), width, 0.6, boxstyle="round,pad=0.02,rounding_size=0.08",
        facecolor=colour, edgecolor=BLUE, linewidth=1,
    )  # fmt: skip
    axes.add_patch(shape)
    axes.text(x, y, text, ha="center", va="center", fontsize=8)


def arrow(axes: Axes, a: tuple[float, float], b: tuple[float, float], bend: float = 0.0) -> None:
    style = {"arrowstyle": "-|>", "color": GREY, "shrinkA": 0, "shrinkB": 0, "linewidth": 0.9}
    style["connectionstyle"] = f"arc3,rad={bend}"
    axes.annotate("", b, a, arrowprops=style)


def blank(size: tuple[float, float], x: tuple[float, float], y: tuple[float, float]) -> Axes:
    axes = Figure(figsize=size, layout="constrained").add_subplot()
    axes.set_xlim(*x)
    axes.set_ylim(*y)
    axes.axis("off")
    return axes


def save(figure: Figure, name: str) -> None:
    with whole_file(ROOT / "docs/images" / name) as file:
        # Without the version of matplotlib in it, the same figure has the same bytes.
        figure.savefig(file, format="png", dpi=150, metadata={"Software": None})
    print(f"docs/images/{name}")


# The house


def room_of(module: str) -> str:
    """The box that a module stands in."""
    parts = module.split(".")
    return parts[1] if parts[0] == "mvitv2_core" and len(parts) > 1 else parts[0]


def edges() -> set[tuple[str, str]]:
    """(room, room that it imports) of all files, without what is only for type checkers."""
    return {
        (room_of(module), room_of(target))
        for folder in ("mvitv2_core", "mvitv2_d2", "mvitv2_slowfast", "mvitv2_tools", "projects")
        for file in (ROOT / folder).rglob("*.py")
        for module in [".".join(file.relative_to(ROOT).with_suffix("").parts)]
        for target in imports(file, module)
        if may_draw(room_of(module), room_of(target))
    }


def may_draw(room: str, target: str) -> bool:
    """Whether both are boxes. What a person runs may import all: only its adapters are drawn."""
    adapters = room != "projects" or target.startswith("mvitv2_")
    return {room, target} <= set(ROOMS) and room != target and adapters


def imports(file: Path, module: str) -> Iterator[str]:
    package = module.split(".")[:-1]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            parent = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{parent}.{alias.name}" for alias in node.names)


def without_detours(found: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """The arrows that no longer way over other rooms says already."""
    after = {room: {b for a, b in found if a == room} for room in ROOMS}

    def reach(room: str) -> set[str]:
        return after[room].union(*(reach(other) for other in after[room]))

    return {(a, b) for a, b in found if not any(b in reach(other) for other in after[a] - {b})}


def draw_house() -> Figure:
    axes = blank((8.4, 8.2), (0.1, 10.5), (-1.6, 9.7))
    axes.add_patch(Rectangle((0.3, -1.5), 10.1, 8.75, facecolor="#f7f7f7", edgecolor="#cccccc"))
    axes.text(10.25, 0.2, "mvitv2_core: torch alone", ha="right", fontsize=9, color=GREY)
    for a, b in sorted(without_detours(edges())):
        (ax, ay), (bx, by) = PLACES[a], PLACES[b]
        if ay == by:  # from side to side
            half = (1.02 if ay < 7.2 else 1.22) * (1 if bx > ax else -1)
            arrow(axes, (ax + half, ay), (bx - half, by))
        else:
            reach = 0.35 if bx > ax else -0.35 if bx < ax else 0
            arrow(axes, (ax + reach, ay - 0.32), (bx - reach, by + 0.32))
    for room, text in ROOMS.items():
        core = PLACES[room][1] < 7.2
        box(axes, *PLACES[room], text, PALE if core else "#fdf3e4", 2.0 if core else 2.4)
    return axes.figure


# A block


def shapes_of_block(index: int) -> tuple[dict[str, tuple[int, ...]], tuple[int, ...]]:
    """{part: shape of its output, without the batch} of MViTv2-T's block at 224, from a pass."""
    model = MViTClassifier(MViTConfig.variant("T")).eval()
    block, shapes = model.blocks[index], {}

    def keep(name: str):
        def hook(_: object, given: tuple, out: object) -> None:
            shapes[name] = tuple((out[0] if isinstance(out, tuple) else out).shape[1:])  # type: ignore[index,attr-defined]

        return hook

    for name in ("norm1", "attn.qkv", "attn", "proj", "norm2", "mlp.fc1", "mlp"):
        block.get_submodule(name).register_forward_hook(keep(name))
    block.register_forward_hook(keep("out"))
    block.register_forward_pre_hook(lambda _, given: shapes.update(x=tuple(given[0].shape[1:])))
    for name in ("q", "k", "v"):
        block.get_submodule(f"attn.norm_{name}").register_forward_hook(keep(name))
    with torch.no_grad():
        model(torch.zeros(1, 3, 224, 224))
    return shapes, block.stride_q


def draw_block() -> Figure:
    index = 1  # the first of stage 2: all that a block can do happens here
    shapes, stride = shapes_of_block(index)
    spec = MViTConfig.variant("T").blocks[index]
    said = {name: " x ".join(map(str, shape)) for name, shape in shapes.items()}
    keys = " x ".join(map(str, (len_of(spec.thw, spec.stride_kv), *spec_heads(spec))))
    queries = " x ".join(map(str, (len_of(spec.thw, spec.stride_q), *spec_heads(spec))))
    axes = blank((6.4, 8.2), (0, 8.4), (-0.5, 11.6))

    def at(x: float, y: float, text: str, width: float = 2.0, colour: str = PALE) -> None:
        box(axes, x, y, text, colour, width)

    at(4, 11, f"tokens\n{said['x']}", colour="#fdf3e4")
    at(4, 9.9, f"norm1\n{said['norm1']}")
    at(4, 8.8, f"qkv\n{said['attn.qkv']}")
    at(1.6, 7.5, f"pool_q, stride {stride}\n{queries}", 2.4)
    at(4.2, 7.5, f"pool_k, stride {spec.stride_kv}\n{keys}", 2.4)
    at(6.8, 7.5, f"pool_v, stride {spec.stride_kv}\n{keys}", 2.4)
    at(4, 6.2, "softmax(q kᵀ / √d + positions) v + q", 4.4)
    at(4, 5.1, f"proj\n{said['attn']}")
    at(1.2, 5.1, f"proj, max-pooled\n{said['attn']}", 2.2)
    at(4, 4.0, "sum", 1.0)
    at(4, 2.9, f"norm2\n{said['norm2']}")
    at(4, 1.8, f"MLP, {shapes['mlp.fc1'][-1]} wide inside\n{said['mlp']}", 2.6)
    at(4, 0.7, "sum", 1.0)
    at(4, -0.15, f"tokens\n{said['out']}", colour="#fdf3e4")
    straight = [(11, 9.9), (9.9, 8.8), (6.2, 5.1), (5.1, 4.0), (4.0, 2.9), (2.9, 1.8), (1.8, 0.7)]
    for a, b in straight:
        arrow(axes, (4, a - 0.32), (4, b + 0.32))
    arrow(axes, (4, 0.38), (4, 0.17))
    for x in (1.6, 4.2, 6.8):
        arrow(axes, (4, 8.48), (x, 7.82))
        arrow(axes, (x, 7.18), (4 + (x - 4) * 0.5, 6.52))
    for path in (
        [(3.0, 9.9), (0.2, 9.9), (0.2, 5.6), (1.0, 5.6), (1.0, 5.42)],
        [(1.2, 4.78), (1.2, 4.0), (3.48, 4.0)],
        [(4.52, 4.0), (6.0, 4.0), (6.0, 0.7), (4.52, 0.7)],
        [(0.45, 7.18), (0.45, 6.2), (1.78, 6.2)],
    ):
        axes.plot(*zip(*path[:-1], strict=True), color=GREY, linewidth=0.9)
        arrow(axes, path[-2], path[-1])
    axes.text(0.5, 6.72, "residual\npooling", fontsize=7, color=GREY, va="center")
    axes.text(0.3, 8.8, "shortcut", fontsize=7, color=GREY)
    axes.text(6.1, 2.3, "shortcut", fontsize=7, color=GREY)
    return axes.figure


def len_of(thw: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """Tokens of a grid that was pooled."""
    tokens = 1
    for size, step in zip(thw, stride, strict=True):
        tokens *= -(-size // step)
    return tokens


def spec_heads(spec) -> tuple[int, int]:
    return spec.num_heads, spec.head_dim


# Hybrid window attention


def draw_windows(side: int = 1024) -> Figure:
    """What one query of each block of MViTv2-T's detector attends to, on a square image."""
    variant = VARIANTS["T"]
    ends = tuple(sum(variant.depths[: stage + 1]) - 1 for stage in range(len(variant.depths)))
    rows = layout_rows(ends, variant.embed_dim, variant.num_heads, (3, 3), 4, 56, True)
    specs = lay_out(rows, variant.embed_dim, (side // 4, side // 4), 0.0, True)
    figure = Figure(figsize=(8.4, 4.7), layout="constrained")
    panels = figure.subplots(2, 5).flat
    for index, (axes, spec) in enumerate(zip(panels, specs, strict=True)):
        size, window = spec.thw[0], spec.window_size
        axes.set_xlim(0, size)
        axes.set_ylim(size, 0)
        axes.set_aspect("equal")
        axes.set_xticks([])
        axes.set_yticks([])
        query = 0.35 * size
        start = query // window * window if window else 0
        reach = window or size
        axes.add_patch(Rectangle((start, start), reach, reach, facecolor="#a9c6e6"))
        for line in range(window, size, window) if window else ():
            axes.axhline(line, color=BLUE, linewidth=0.6)
            axes.axvline(line, color=BLUE, linewidth=0.6)
        axes.plot(query, query, "o", color=ORANGE, markersize=5)
        where = f"windows of {window} x {window}" if window else "global"
        axes.set_title(f"block {index}: {size} x {size}\n{where}", fontsize=8)
        axes.set_xlabel(f"q stride {spec.stride_q[0]}, kv stride {spec.stride_kv[0]}", fontsize=7)
    return figure


# Inflation


def draw_inflation() -> Figure:
    """Tensors of an image model and what they become in a clip model."""
    torch.manual_seed(0)
    image = MViTClassifier(MViTConfig.variant("T")).state_dict()
    name = "patch_embed.proj.weight"
    across = torch.linspace(-1, 1, 7)
    edge = torch.sin(3 * across)[:, None] * torch.exp(-2 * (across**2 + across[:, None] ** 2))
    image[name][0] = edge.expand(3, 7, 7)  # random kernels look like nothing
    image["blocks.4.attn.rel_pos_h"].copy_(torch.sin(torch.linspace(0, 9, 27))[:, None])
    image["blocks.4.attn.rel_pos_w"].copy_(torch.cos(torch.linspace(0, 5, 27))[:, None])
    clip, _ = inflate_state_dict(image, MViTConfig.variant("T", (16, 224, 224), cls_token=False))
    figure = Figure(figsize=(8.4, 3.9), layout="constrained")
    grid = figure.add_gridspec(2, 5)
    kernels = [image[name][0, 0], *clip[name][0, 0]]
    titles = ["image: 7 x 7", *(f"clip: frame {t} of 3" for t in range(3))]
    columns = (0, 2, 3, 4)
    for column, kernel, title in zip(columns, kernels, titles, strict=True):
        axes = figure.add_subplot(grid[0, column])
        show(axes, kernel, title)
    tables = {"rel_pos_h": image, "rel_pos_h ": clip, "rel_pos_w ": clip, "rel_pos_t": clip}
    for column, (table, state) in zip(columns, tables.items(), strict=True):
        values = state[f"blocks.4.attn.{table.strip()}"]
        where = "image" if state is image else "clip"
        axes = figure.add_subplot(grid[1, column])
        show(axes, values[:, :24], f"{where}: {table.strip()}\n{tuple(values.shape)}")
    for row in (0, 1):
        axes = figure.add_subplot(grid[row, 1])
        axes.axis("off")
        axes.text(0.5, 0.5, "→", fontsize=26, ha="center", va="center", color=GREY)
    return figure


def show(axes: Axes, values: torch.Tensor, title: str) -> None:
    axes.imshow(values, cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
    axes.set_title(title, fontsize=8)
    axes.set_xticks([])
    axes.set_yticks([])


if __name__ == "__main__":
    save(draw_house(), "house.png")
    save(draw_block(), "block.png")
    save(draw_windows(), "windows.png")
    save(draw_inflation(), "inflation.png")
