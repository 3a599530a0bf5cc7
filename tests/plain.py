"""The plain arithmetic of every part, one operation after another, without any fast path.

Reads weights by their names on disk and shapes from the specs, and calls no forward of the
packages, so that whatever they do for speed is held against this.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvitv2_core import BlockSpec, MViT, MViTConfig

CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
MAX_POOLS = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
Grid = tuple[int, ...]


def rel_pos(table: Tensor, q_size: int, k_size: int) -> Tensor:
    """(L, head_dim) table -> the row of each query and key cell: (q_size, k_size, head_dim)."""
    rows = 2 * max(q_size, k_size) - 1
    if table.shape[0] != rows:
        table = F.interpolate(table.t()[None], size=rows, mode="linear")[0].t()
    q = torch.arange(q_size)[:, None] * max(k_size / q_size, 1.0)
    k = torch.arange(k_size)[None, :] * max(q_size / k_size, 1.0)
    return table[(q - k + (k_size - 1) * max(q_size / k_size, 1.0)).long()]


def cells(grid: Sequence[int]) -> list[Tensor]:
    """For each axis, the cell that each token of a grid stands in."""
    return list(torch.tensor(list(itertools.product(*map(range, grid)))).unbind(1))


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tables: Sequence[Tensor | None],
    q_thw: Sequence[int],
    k_thw: Sequence[int],
    cls_token: bool = False,
) -> Tensor:
    """(B, N, heads, head_dim) tokens: softmax(q k^T / sqrt(head_dim) + positions) v."""
    first = int(cls_token)
    logits = torch.einsum("bnhd,bmhd->bhnm", q * q.shape[-1] ** -0.5, k)
    for axis, table in enumerate(tables):
        if table is not None:
            rows = rel_pos(table, q_thw[axis], k_thw[axis])[cells(q_thw)[axis]]
            # (B, Nq, heads, head_dim), (Nq, k_size, head_dim) -> (B, heads, Nq, Nk)
            term = torch.einsum("bnhd,nkd->bhnk", q[:, first:], rows)[..., cells(k_thw)[axis]]
            logits = logits + F.pad(term, (first, 0, first, 0))
    return torch.einsum("bhnm,bmhd->bnhd", logits.softmax(dim=-1), v)


def windows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tables: Sequence[Tensor | None],
    q_thw: Grid,
    k_thw: Grid,
    q_window: Grid,
    k_window: Grid,
) -> Tensor:
    """One window after another, each filled up with zeros that take part in the softmax."""
    q, k, v = (x.unflatten(1, thw) for x, thw in ((q, q_thw), (k, k_thw), (v, k_thw)))

    def cut(x: Tensor, window: Grid, place: Grid) -> Tensor:
        part = x
        for axis, (n, w) in enumerate(zip(place, window, strict=True), 1):
            part = part.narrow(axis, n * w, max(min(w, x.shape[axis] - n * w), 0))
        full = part.new_zeros(x.shape[0], *window, *x.shape[-2:])
        full[(slice(None), *map(slice, part.shape[1:-2]))] = part
        return full.flatten(1, -3)

    out = torch.empty_like(q)
    counts = [range(-(-n // w)) for n, w in zip(q_thw, q_window, strict=True)]
    for place in itertools.product(*counts):
        parts = (cut(q, q_window, place), *(cut(x, k_window, place) for x in (k, v)))
        found = attention(*parts, tables, q_window, k_window).unflatten(1, q_window)
        corner = [slice(n * w, (n + 1) * w) for n, w in zip(place, q_window, strict=True)]
        target = out[(slice(None), *corner)]
        target.copy_(found[tuple(map(slice, target.shape))])
    return out.flatten(1, -3)


def pool(x: Tensor, weight: Tensor, stride: Sequence[int]) -> Tensor:
    """(B, *grid, heads * head_dim): every head by itself through one depthwise convolution."""
    head_dim = weight.shape[0]
    batch, heads = x.shape[0], x.shape[-1] // head_dim
    # (B, *grid, heads * head_dim) -> (B * heads, head_dim, *grid)
    x = x.unflatten(-1, (heads, head_dim)).movedim((-2, -1), (1, 2)).flatten(0, 1).contiguous()
    padding = tuple(n // 2 for n in weight.shape[2:])
    convolve = CONVOLUTIONS[weight.ndim - 3]
    # PyTorch's own bfloat16 gradient of a depthwise weight can hold uninitialised memory on a CPU.
    wide = torch.promote_types(x.dtype, torch.float32)
    out = convolve(x.to(wide), weight.to(wide), None, tuple(stride), padding, groups=head_dim)
    x = out.to(x.dtype)
    return x.unflatten(0, (batch, heads)).movedim((1, 2), (-2, -1)).flatten(-2)


def norm(module: nn.Module, x: Tensor) -> Tensor:
    assert isinstance(module, nn.LayerNorm)
    return F.layer_norm(x, module.normalized_shape, module.weight, module.bias, module.eps)


def linear(module: nn.Module, x: Tensor) -> Tensor:
    assert isinstance(module, nn.Linear)
    return F.linear(x, module.weight, module.bias)


def mlp(module: nn.Module, x: Tensor) -> Tensor:
    return linear(module.fc2, F.gelu(linear(module.fc1, x)))


def pool_tokens(
    attn: nn.Module, spec: BlockSpec, cls_token: bool, x: Tensor, thw: Grid, name: str
) -> tuple[Tensor, Grid]:
    """(B, N, dim_att) -> (B, N', heads, head_dim), pooled and normed where the block pools."""
    stride = spec.stride_q if name == "q" else spec.stride_kv
    kernel = spec.kernel_q if name == "q" else spec.kernel_kv
    if kernel is not None and max(*kernel, *stride) > 1:
        first = int(cls_token)
        grid = pool(x[:, first:].unflatten(1, thw), getattr(attn, f"pool_{name}").weight, stride)
        thw = tuple(grid.shape[1:-1])
        x = torch.cat([x[:, :first], grid.flatten(1, -2)], dim=1)
        x = x.unflatten(-1, (spec.num_heads, spec.head_dim))
        return norm(getattr(attn, f"norm_{name}"), x), thw
    return x.unflatten(-1, (spec.num_heads, spec.head_dim)), thw


def pooling_attention(
    attn: nn.Module, spec: BlockSpec, config: MViTConfig, x: Tensor, thw: Grid
) -> tuple[Tensor, Grid]:
    qkv = linear(attn.qkv, x).chunk(3, dim=-1)
    pooled = [
        pool_tokens(attn, spec, config.cls_token, part, thw, name)
        for part, name in zip(qkv, "qkv", strict=True)
    ]
    (q, q_thw), (k, k_thw), (v, _) = pooled
    tables = [getattr(attn, f"rel_pos_{axis}") for axis in config.axes]
    size = getattr(spec, "window_size", 0)
    if size:
        window = (spec.thw[0], size, size)[-len(thw) :]  # all of the nominal time
        strides = (spec.stride_q, spec.stride_kv)
        sizes = [tuple(n // s for n, s in zip(window, step, strict=True)) for step in strides]
        out = windows(q, k, v, tables, q_thw, k_thw, *sizes)
    else:
        out = attention(q, k, v, tables, q_thw, k_thw, config.cls_token)
    if config.residual_pooling:
        first = int(config.cls_token)
        out = torch.cat([out[:, :first], out[:, first:] + q[:, first:]], dim=1)
    return linear(attn.proj, out.flatten(2)), q_thw


def pool_skip(x: Tensor, thw: Grid, stride: Grid, cls_token: bool) -> Tensor:
    """(B, N, dim) -> (B, N', dim), by max pooling with kernel stride + 1 where strided."""
    if max(stride) == 1:
        return x
    first, kernel = int(cls_token), [s + 1 if s > 1 else 1 for s in stride]
    # (B, N, dim) -> (B, dim, *grid)
    grid = x[:, first:].unflatten(1, thw).movedim(-1, 1).contiguous()
    grid = MAX_POOLS[len(thw) - 1](grid, kernel, stride, [n // 2 for n in kernel])
    return torch.cat([x[:, :first], grid.flatten(2).transpose(1, 2)], dim=1)


def block(
    module: nn.Module, spec: BlockSpec, config: MViTConfig, x: Tensor, thw: Grid
) -> tuple[Tensor, Grid]:
    """(B, N, dim) tokens on grid ``thw`` -> (B, N', dim_out) and their grid; no drop path."""
    normed = norm(module.norm1, x)
    out, q_thw = pooling_attention(module.attn, spec, config, normed, thw)
    skip = linear(module.proj, normed) if spec.dim_att != spec.dim else x
    x = pool_skip(skip, thw, spec.stride_q, config.cls_token) + out
    normed = norm(module.norm2, x)
    skip = linear(module.proj, normed) if spec.dim_out != spec.dim_att else x
    return skip + mlp(module.mlp, normed), q_thw


def embed(model: MViT, x: Tensor) -> tuple[Tensor, Grid]:
    """(B, C, *spatial) -> (B, N, embed_dim) tokens with class token and positions, and grid."""
    config, proj = model.config, model.patch_embed.proj
    rank, patch_rank = config.rank, len(config.patch_kernel)
    convolve = CONVOLUTIONS[patch_rank - 1]
    x = convolve(x.contiguous(), proj.weight, proj.bias, config.patch_stride, config.patch_padding)
    thw = (1,) * (rank - patch_rank) + tuple(x.shape[2:])
    x = x.flatten(2).transpose(1, 2)
    if config.cls_token:
        x = torch.cat([model.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
    if config.abs_pos == "none":
        return x, thw
    stored = config.abs_pos_thw or config.blocks[0].thw
    if config.abs_pos == "joint":
        row, table = model.pos_embed[:, : -prod(stored)], model.pos_embed[:, -prod(stored) :]
    else:
        row = model.pos_embed_class
        space, time = model.pos_embed_spatial, model.pos_embed_temporal
        table = (space[:, None] + time[:, :, None]).flatten(1, 2)
    if stored != thw:
        mode = ("linear", "bicubic", "trilinear")[rank - 1]
        table = table.transpose(1, 2).unflatten(-1, stored)
        table = F.interpolate(table, size=thw, mode=mode).flatten(2).transpose(1, 2)
    return x + (torch.cat([row, table], dim=1) if config.cls_token else table), thw


def stages(model: MViT, x: Tensor) -> list[tuple[Tensor, Grid]]:
    """(B, C, *spatial) -> tokens and grid after each stage's last block."""
    x, thw = embed(model, x)
    ends = []
    for index, spec in enumerate(model.config.blocks):
        x, thw = block(model.blocks[index], spec, model.config, x, thw)
        following = model.config.blocks[index + 1 : index + 2]
        if not following or max(following[0].stride_q) > 1:
            ends.append((x, thw))
    return ends


def classify(model: MViT, x: Tensor) -> Tensor:
    """(B, C, *spatial) -> (B, num_classes) logits of a classifier."""
    config, (tokens, _) = model.config, stages(model, x)[-1]
    if config.mean_pooling:
        pooled = norm(model.norm, tokens[:, int(config.cls_token) :].mean(dim=1))
    else:
        tokens = norm(model.norm, tokens)
        pooled = tokens[:, 0] if config.cls_token else tokens.mean(dim=1)
    return linear(model.head.projection, pooled)


def features(model: MViT, x: Tensor) -> dict[str, Tensor]:
    """(B, C, H, W) -> a detectron2 backbone's maps of its ``out_features``."""
    maps = {}
    for index, (tokens, hw) in enumerate(stages(model, x)):
        name = f"scale{index + 2}"
        if name in model.output_shape():
            tokens = norm(getattr(model, f"{name}_norm"), tokens)
            maps[name] = tokens.unflatten(1, hw).permute(0, 3, 1, 2)
    return maps
