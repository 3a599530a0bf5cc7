"""What a model costs: parameters and multiply-adds of every block, from shapes alone.

Nothing is built and nothing runs, so it takes no time for any size. Imports no torch.

Counted as fvcore counts, which is how the published figures were made: one per multiply-add of
convolutions, linears and matrix products, five per element of a LayerNorm, nothing else. A
multiply-add is two floating-point operations; the papers' "GFLOPs" are multiply-adds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from .config import BlockSpec, MViTConfig


@dataclass(frozen=True)
class Cost:
    """One row of the account.

    Args:
        name: as in the state dict: "patch_embed", "blocks.0", ..., "head".
        thw_in, thw_out: live token grids before and after, without class token; for
            "patch_embed" the input in frames and pixels.
        parameters: of the row, with norms that have weight and bias.
        terms: multiply-adds per image or clip, by kind of work: "convolutions", "linears",
            "pools", "attention" (both products with the logits), "positions", "norms".
        logits: elements of the whole queries x keys matrix, all heads, if it were written out.
    """

    name: str
    thw_in: tuple[int, ...]
    thw_out: tuple[int, ...]
    parameters: int
    terms: dict[str, int]
    logits: int = 0

    @property
    def flops(self) -> int:
        """Multiply-adds per image or clip, norms counted as fvcore does."""
        return sum(self.terms.values())


def conv_grid(
    sizes: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> tuple[int, ...]:
    """Grid that a convolution gives, one size per axis."""
    axes = zip(sizes, kernel, stride, padding, strict=True)
    return tuple((n + 2 * p - k) // s + 1 for n, k, s, p in axes)


def pooled_grid(
    thw: Sequence[int], kernel: Sequence[int] | None, stride: Sequence[int]
) -> tuple[int, ...]:
    """Live grid after a pool with padding kernel // 2; the same where there is no pool."""
    return (
        tuple(thw) if kernel is None else conv_grid(thw, kernel, stride, [k // 2 for k in kernel])
    )


def attended(
    spec: BlockSpec, q_thw: Sequence[int], k_thw: Sequence[int]
) -> tuple[int, tuple[int, ...]]:
    """How many queries attend on live pooled grids, and the grid of keys that each of them sees.

    With windows, queries with those that fill the last windows, and one window of keys.
    """
    if spec.windows is None:
        return prod(q_thw), tuple(k_thw)
    q_window, k_window = spec.windows
    return prod(-(-n // w) * w for n, w in zip(q_thw, q_window, strict=True)), k_window


def block_cost(name: str, spec: BlockSpec, config: MViTConfig, thw: Sequence[int]) -> Cost:
    """The row of one block on the live grid ``thw`` of its input."""
    q_thw = pooled_grid(thw, spec.kernel_q, spec.stride_q)
    k_thw = pooled_grid(thw, spec.kernel_kv, spec.stride_kv)
    cls, width, hidden = int(config.cls_token), spec.dim_att, int(spec.dim_att * config.mlp_ratio)
    tokens, queries, keys = (prod(grid) + cls for grid in (thw, q_thw, k_thw))
    rows, columns = attended(spec, q_thw, k_thw)
    axes = sum(n for n, used in zip(columns, config.rel_pos, strict=True) if used)
    logits = (rows + cls) * (prod(columns) + cls)
    pools = [(q_thw, queries, spec.kernel_q, spec.stride_q)]
    pools += [(k_thw, keys, spec.kernel_kv, spec.stride_kv)] * 2
    parameters = Counter(
        norms=2 * (spec.dim + width),
        qkv=3 * width * (spec.dim + config.qkv_bias),
        proj=width * (width + 1),
        mlp=hidden * (width + 1) + spec.dim_out * (hidden + 1),
        positions=sum(
            spec.table_length(axis) * spec.head_dim for axis, on in enumerate(config.rel_pos) if on
        ),
    )
    terms = Counter(
        linears=tokens * spec.dim * 3 * width
        + queries * (width * width + width * hidden + hidden * spec.dim_out),
        pools=0,
        attention=2 * logits * width,
        positions=rows * axes * width,
        norms=5 * (tokens * spec.dim + queries * width),
    )
    for grid, count, kernel, stride in pools:
        if kernel is not None and max(*kernel, *stride) > 1:  # else neither pool nor norm
            parameters["pools"] += spec.head_dim * (prod(kernel) + 2)
            terms["pools"] += prod(grid) * width * prod(kernel)
            terms["norms"] += 5 * count * width
    if spec.dim != spec.dim_out:
        parameters["shortcut"] = spec.dim_out * (spec.dim + 1)
        terms["linears"] += (tokens if spec.dim != width else queries) * spec.dim * spec.dim_out
    return Cost(name, tuple(thw), q_thw, parameters.total(), dict(terms), logits * spec.num_heads)


def trunk_cost(config: MViTConfig, input_size: Sequence[int] | None = None) -> list[Cost]:
    """Rows of a trunk without last norm and head: the patch embedding and positions, the blocks.

    Args:
        config: of the model.
        input_size: live (H, W) or (T, H, W) in pixels and frames; by default the nominal one.
            With a two-axis patch embedding under a three-axis grid (stills), its two axes.

    Raises:
        ValueError: ``input_size`` has the wrong number of axes.
    """
    kernel, dim = config.patch_kernel, config.blocks[0].dim
    sizes = tuple(config.input_size if input_size is None else input_size)[-len(kernel) :]
    if input_size is not None and len(input_size) != len(kernel):
        raise ValueError(f"input_size must hold {len(kernel)} sizes, got {tuple(input_size)}")
    grid = conv_grid(sizes, kernel, config.patch_stride, config.patch_padding)
    thw = (1,) * (config.rank - len(grid)) + grid
    weights = dim * config.in_chans * prod(kernel)
    nominal = config.abs_pos_thw or config.blocks[0].thw
    tables = {"none": 0, "joint": prod(nominal), "separate": nominal[0] + prod(nominal[1:])}
    table = tables[config.abs_pos] + (config.has_cls_row and config.abs_pos != "none")
    parameters = weights + dim * (1 + config.cls_token + table)
    rows = [Cost("patch_embed", sizes, thw, parameters, {"convolutions": prod(thw) * weights})]
    for index, spec in enumerate(config.blocks):
        rows.append(block_cost(f"blocks.{index}", spec, config, thw))
        thw = rows[-1].thw_out
    return rows


def classifier_cost(config: MViTConfig, input_size: Sequence[int] | None = None) -> list[Cost]:
    """Rows of an ``MViTClassifier``: its trunk, and norm and projection as "head".

    Arguments and errors are those of ``trunk_cost``.
    """
    rows, dim = trunk_cost(config, input_size), config.blocks[-1].dim_out
    thw = rows[-1].thw_out
    # The class token alone is normed, or the mean; or else every token before the mean.
    normed = 1 if config.cls_token or config.mean_pooling else prod(thw)
    parameters = 2 * dim + (dim + 1) * config.num_classes
    terms = {"linears": dim * config.num_classes, "norms": 5 * normed * dim}
    return [*rows, Cost("head", thw, (), parameters, terms)]


def show_cost(rows: Sequence[Cost]) -> str:
    """The rows and their sum as text: millions of parameters, billions of multiply-adds."""
    kinds = list(dict.fromkeys(kind for row in rows for kind in row.terms))
    lines = [["", "grid in", "grid out", "params (M)", "GFLOPs", *kinds]]
    total: Counter[str] = Counter()
    for row in rows:
        total.update(row.terms)
        grids = ["x".join(map(str, grid)) or "-" for grid in (row.thw_in, row.thw_out)]
        lines.append([row.name, *grids, *_figures(row.parameters, row.terms, kinds)])
    lines.append(["all", "", "", *_figures(sum(row.parameters for row in rows), total, kinds)])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def _figures(parameters: int, terms: Mapping[str, int], kinds: Sequence[str]) -> list[str]:
    flops = [sum(terms.values()), *(terms.get(kind, 0) for kind in kinds)]
    return [f"{parameters / 1e6:.3f}", *(f"{value / 1e9:.3f}" for value in flops)]
