"""Attention against the official classes' own softmax weights, rollout and Grad-CAM by hand."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mvitv2_core import MViT, MViTClassifier, MViTConfig
from mvitv2_core.checkpoint.formats import from_project
from mvitv2_core.explain import (
    BlockAttention,
    attention_maps,
    attention_rollout,
    deepest_block,
    enlarge,
    grad_cam,
    stage_block,
)
from mvitv2_core.explain import attention as attention_module
from mvitv2_core.explain.attention import query_rows
from mvitv2_core.explain.rollout import spread
from tests.compare import error, randomize
from tests.small import KINDS, small_input, small_model, stage_blocks

F64 = torch.float64
CLAIM = "softmax weights equal to the official classes' own"


class Softmaxes(TorchFunctionMode):
    """Keeps what ``softmax`` gives: (B, heads, Nq, Nk) of each block of an official class."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") == "softmax":
            self.kept.append(output)
        return output


def softmaxes(model: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.no_grad(), Softmaxes() as mode:
        model(x)
    return mode.kept


def every_query(thw: Sequence[int], cls_token: bool) -> list[Any]:
    cells = list(itertools.product(*map(range, thw)))
    return (["cls"] if cls_token else []) + cells


def weights_of(model: MViT, x: Tensor, block: int) -> Tensor:
    """(B, heads, Nq, Nk) of all queries, each asked for."""
    thw = list(model.walk(x))[block][1]
    maps = attention_maps(model, x, block, every_query(thw, model.config.cls_token))
    weights = maps.grid.flatten(3)
    if maps.cls is not None:
        weights = torch.cat([maps.cls[..., None], weights], dim=-1)
    return weights.transpose(1, 2)


def test_equal_to_timm(tally: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    mvitv2 = pytest.importorskip("timm.models.mvitv2", reason="install timm to run")
    cfg = mvitv2.MultiScaleVitCfg((1, 2, 1), embed_dim=(16, 32, 64))
    theirs = mvitv2.MultiScaleVit(cfg, img_size=(48, 48), num_classes=3)
    theirs = randomize(theirs.double()).eval()
    blocks = stage_blocks((1, 2, 1), 16, 1, (12, 12), (4, 4))
    config = replace(MViTConfig.variant("T", (48, 48), num_classes=3), blocks=blocks)
    ours = MViTClassifier(config).double().eval()
    load(ours, theirs, "timm")
    monkeypatch.setattr(attention_module, "CHUNK", 500)  # several chunks
    x = torch.randn(2, 3, 48, 48, dtype=F64, generator=torch.Generator().manual_seed(0))
    kept = softmaxes(theirs, x)
    assert len(kept) == 4
    for block, expected in enumerate(kept):
        assert error(weights_of(ours, x, block), expected) < 1e-10
        tally(CLAIM)


def load(ours: nn.Module, theirs: nn.Module, form: str) -> None:
    _, names = from_project(ours.state_dict(), form)
    held, shapes = theirs.state_dict(), ours.state_dict()
    ours.load_state_dict({name: held[t].view(shapes[name].shape) for name, t in names.items()})


def torchvision_pair(size: tuple[int, int, int], **shape: Any) -> tuple[nn.Module, Any]:
    """torchvision's class, which has a class token, and ours with its weights."""
    mvit = pytest.importorskip("torchvision.models.video.mvit", reason="install torchvision to run")
    if not shape:
        theirs = mvit.mvit_v2_s(num_classes=3)
        config = MViTConfig.variant("S", size, num_classes=3)
    else:
        depths, embed_dim = shape["depths"], shape["embed_dim"]
        grid = (size[0] // 2, size[1] // 4, size[2] // 4)
        blocks = stage_blocks(depths, embed_dim, 1, grid, (1, 4, 4))
        config = replace(MViTConfig.variant("S", size, num_classes=3), blocks=blocks)
        settings = [
            mvit.MSBlockConfig(
                num_heads=block.num_heads,
                input_channels=block.dim,
                output_channels=block.dim_out,
                kernel_q=list(block.kernel_q),
                kernel_kv=list(block.kernel_kv),
                stride_q=list(block.stride_q),
                stride_kv=list(block.stride_kv),
            )
            for block in blocks
        ]
        theirs = mvit.MViT(
            spatial_size=size[1:],
            temporal_size=size[0],
            block_setting=settings,
            residual_pool=True,
            residual_with_cls_embed=False,
            rel_pos_embed=True,
            proj_after_attn=True,
            num_classes=3,
        )
    ours = MViTClassifier(config).double().eval()
    theirs = randomize(theirs.double()).eval()
    load(ours, theirs, "torchvision")
    return theirs, ours


def test_equal_to_torchvision(tally: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    size = (4, 32, 32)
    theirs, ours = torchvision_pair(size, depths=(1, 2), embed_dim=16)
    monkeypatch.setattr(attention_module, "CHUNK", 5000)  # several chunks
    x = torch.randn(2, 3, *size, dtype=F64, generator=torch.Generator().manual_seed(0))
    kept = softmaxes(theirs, x)
    assert len(kept) == 3 and ours.config.cls_token
    for block, expected in enumerate(kept):
        assert error(weights_of(ours, x, block), expected) < 1e-10
        tally(CLAIM)


@pytest.mark.slow
def test_equal_to_mvit_v2_s(tally: Callable[..., None]) -> None:
    """Its published size: the class token and cells of every block."""
    theirs, ours = torchvision_pair((16, 224, 224))
    x = torch.randn(1, 3, 16, 224, 224, dtype=F64, generator=torch.Generator().manual_seed(0))
    kept = softmaxes(theirs, x)
    with torch.no_grad():
        stages = [ours.embed(x), *ours.walk(x)]
    assert len(kept) == len(ours.blocks) == 16
    for block, (tokens, thw), expected in zip(ours.blocks, stages, kept, strict=False):
        attention = BlockAttention(block.attn, block.norm1(tokens), thw)
        rows = query_rows(["cls", "mean", (3, 2, 5)], attention.q_thw, True)
        got = attention.apply(rows[None])
        _, h, w = attention.q_thw
        cell = 1 + (3 * h + 2) * w + 5
        chosen = (expected[:, :, 0], expected[:, :, 1:].mean(dim=2), expected[:, :, cell])
        for query, row in enumerate(chosen):
            assert error(got[:, query], row) < 1e-10
        tally(CLAIM)


@pytest.mark.parametrize("kind", KINDS)
def test_queries(kind: str) -> None:
    """Windows and means are means of single cells; weights sum to 1; the batch's rows are apart."""
    model, x = small_model(kind).double().eval(), small_input(kind, dtype=F64)
    whole = weights_of(model, x, 1)
    first, thw = int(model.config.cls_token), list(model.walk(x))[1][1]
    assert torch.allclose(whole.sum(dim=-1), torch.ones((), dtype=F64))
    window = (*(slice(None),) * (len(thw) - 2), slice(1, 3), slice(-2, None))
    cell = (*(0,) * (len(thw) - 2), 1, -1)
    maps = attention_maps(model, x, -2, ["mean", window, cell])
    grid = whole[:, :, first:, first:].unflatten(2, thw).unflatten(-1, maps.grid.shape[3:])
    assert error(maps.grid[:, 0], grid.flatten(2, 1 + len(thw)).mean(dim=2)) < 1e-12
    chosen = grid[(slice(None), slice(None), *window)].flatten(2, 1 + len(thw)).mean(dim=2)
    assert error(maps.grid[:, 1], chosen) < 1e-12
    assert error(maps.grid[:, 2], grid[(slice(None), slice(None), *cell)]) < 1e-12
    assert (maps.cls is not None) == model.config.cls_token
    with torch.inference_mode():
        alone = attention_maps(model, x[1:], 1).grid
    assert error(maps.grid[1:, :1], alone) < 1e-12 and not maps.grid.requires_grad


def test_no_tensor_of_queries_by_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest block of weights at a time is that of ``CHUNK``."""
    model, x = small_model("image").eval(), torch.randn(1, 3, 128, 128)
    monkeypatch.setattr(attention_module, "CHUNK", 4096)
    with Softmaxes() as mode:
        attention_maps(model, x, 0)
        attention_rollout(model, x)
    sizes = [weights.numel() for weights in mode.kept]
    assert len(sizes) > 30 and max(sizes) <= 4096


@pytest.mark.parametrize(
    ("queries", "block", "message"),
    [
        (["cls"], 0, "without 'cls' for a model without class token"),
        ("mean", 0, "queries must be a sequence"),
        ([(8, 0)], 0, "indices of the grid"),
        ([(0,)], 0, "indices of the grid"),
        ([(slice(3, 3), 0)], 0, "indices of the grid"),
        ([(0.5, 0)], 0, "indices of the grid"),
        (["mean"], 3, "block must be from -3 to 2"),
    ],
)
def test_what_is_refused(queries: Any, block: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attention_maps(small_model("image"), small_input("image"), block, queries)


def pool_matrix(
    thw: Sequence[int], kernel: Sequence[int], stride: Sequence[int], cls_token: bool
) -> Tensor:
    """(pooled, cells) equal parts of the cells under each kernel, cell by cell."""
    pooled = [-(-n // s) for n, s in zip(thw, stride, strict=True)]
    cells = list(itertools.product(*map(range, thw)))
    rows = []
    for centre in itertools.product(*map(range, pooled)):
        spans = [
            range(c * s - k // 2, c * s - k // 2 + k)
            for c, s, k in zip(centre, stride, kernel, strict=True)
        ]
        rows.append(
            [float(all(i in span for i, span in zip(c, spans, strict=True))) for c in cells]
        )
    matrix = torch.tensor(rows, dtype=F64)
    matrix = matrix / matrix.sum(dim=1, keepdim=True)
    return torch.block_diag(torch.ones(1, 1, dtype=F64), matrix) if cls_token else matrix


def test_spread_by_hand() -> None:
    """A row of 4 cells under a kernel of 3 with stride 2: cells 0 and 1, and 1, 2 and 3."""
    row = torch.tensor([[[0.5, 3.0, 6.0]]], dtype=F64)  # a class token, and two pooled cells
    expected = torch.tensor([[[0.5, 1.5, 1.5 + 2.0, 2.0, 2.0]]], dtype=F64)
    assert torch.equal(spread(row, (2,), (3,), (2,), (4,)), expected)
    assert torch.equal(spread(row[..., 1:], (2,), (1,), (1,), (2,)), row[..., 1:])


def test_rollout_by_hand() -> None:
    """Two blocks of equal weights on 4 x 1 cells, the second with a q stride of 2."""
    blocks = stage_blocks((1, 1), 8, 1, (4, 1), (1, 1))
    config = replace(MViTConfig.variant("T", (16, 4), num_classes=2), blocks=blocks)
    model = MViTClassifier(config).double().eval()
    for block in model.blocks:
        for name, parameter in block.attn.named_parameters():
            if name.startswith(("qkv", "rel_pos")):
                nn.init.zeros_(parameter)
    # Block 1, query 0: the shortcut's kernel lies on cells 0 and 1. Its four equal keys have
    # kernels on (0, 1), (0, 1, 2), (1, 2, 3) and (2, 3).
    half, third = torch.tensor([1 / 2, 1 / 3], dtype=F64)
    keys = torch.stack([half + third, half + 2 * third, 2 * third + half, third + half]) / 4
    first = (torch.tensor([0.5, 0.5, 0, 0], dtype=F64) + keys) / 2
    # Block 0 does not pool q: half stays, half is spread as the keys of a uniform row are.
    expected = (first + keys) / 2
    got = attention_rollout(model, torch.randn(1, 3, 16, 4, dtype=F64), (0, 0))
    assert error(got, expected.view(1, 4, 1)) < 1e-12 and abs(got.sum().item() - 1) < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_rollout_is_the_product_of_whole_matrices(kind: str) -> None:
    model, x = small_model(kind).double().eval(), small_input(kind, dtype=F64)
    cls, thw = model.config.cls_token, model.embed(x)[1]
    total = torch.eye(prod(thw) + cls, dtype=F64).expand(len(x), -1, -1)
    for index, (_, after) in enumerate(model.walk(x)):
        block = model.config.blocks[index]
        kernel = [s + 1 if s > 1 else 1 for s in block.stride_q]
        skip = pool_matrix(thw, kernel, block.stride_q, cls)
        keys = pool_matrix(thw, block.kernel_kv, block.stride_kv, cls)
        seen = weights_of(model, x, index).mean(dim=1) @ keys
        total = (skip + seen) / 2 @ total
        thw = after
    first = int(cls)
    rows = total[:, 0] if cls else total.mean(dim=1)
    got = attention_rollout(model, x)
    assert error(got.flatten(1), rows[:, first:]) < 1e-10
    cell = (*(0,) * (len(thw) - 2), 1, 2)
    row = total[:, first:].unflatten(1, thw)[(slice(None), *cell)]
    assert error(attention_rollout(model, x, cell).flatten(1), row[:, first:]) < 1e-10


@pytest.mark.parametrize("block", [0, 1, 2, None])
@pytest.mark.parametrize("kind", KINDS)
def test_grad_cam_by_hooks(kind: str, block: int | None) -> None:
    model, x = small_model(kind).double().eval(), small_input(kind, dtype=F64)
    deepest = 1 if model.config.cls_token and not model.config.mean_pooling else 2
    assert deepest_block(model) == deepest == stage_block(model, -1)
    if block is not None and block > deepest:
        with pytest.raises(ValueError, match="block must be at most 1"):
            grad_cam(model, x, 1, block)
    else:
        seen: list[Any] = []
        index = deepest if block is None else block
        head_means = model.config.mean_pooling  # before its norm
        places = [model.blocks[index]]
        if index < 2 or not head_means:
            places.append(model.blocks[index + 1].norm1 if index < 2 else model.norm)
        handles = [p.register_forward_hook(lambda *call: seen.append(call[-1])) for p in places]
        logits = model(x)
        for handle in handles:
            handle.remove()
        tokens, thw = seen[0]
        read = tokens if len(seen) == 1 else seen[1]
        gradients = torch.autograd.grad(logits[0, 3] + logits[1, 1], [tokens, read])
        extra = tokens.shape[1] - prod(thw)
        maps, slopes, normed, normed_slopes = (
            part[:, extra:].unflatten(1, thw).movedim(-1, 1)
            for part in (tokens, gradients[0], read, gradients[1])
        )
        got = grad_cam(model, x, torch.tensor([3, 1]), block, "grad-cam")
        assert torch.equal(got, grad_cam(model, x, torch.tensor([3, 1]), block))
        means = normed.flatten(2).mean(dim=2).view(*maps.shape[:2], *[1] * len(thw))
        methods = {
            "grad-cam": maps * slopes.mean(dim=(-2, -1), keepdim=True),
            "layer-cam": maps * slopes.clamp(min=0),
            "hires-cam": maps * slopes,
            "taylor": (normed - means) * normed_slopes,
        }
        for method, parts in methods.items():
            expected = parts.sum(dim=1).clamp(min=0)
            own = grad_cam(model, x, torch.tensor([3, 1]), block, method)
            assert torch.allclose(own, expected, rtol=0, atol=1e-12), method
        assert not got.requires_grad and all(p.grad is None for p in model.parameters())
        model.requires_grad_(False)  # frozen models too
        assert torch.equal(grad_cam(model, x, torch.tensor([3, 1]), block), got)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "MLP" not in kind])
def test_a_stage_is_read_through_a_norm(kind: str) -> None:
    """No scale of a cell counts there: its gradient is at right angles to it, HiResCAM is 0.

    Where attention widens, as in all MViTv2: a width in the MLP leaves the shortcut as it is.
    """
    model, x = small_model(kind).double().eval(), small_input(kind, dtype=F64)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 0.0
    end, *others = model.config.stage_ends
    assert others and model.blocks[end + 1].widens_in_attention
    largest = grad_cam(model, x, 1, end, "taylor").max()
    assert largest > 0 and grad_cam(model, x, 1, end, "hires-cam").max() < 1e-12 * largest
    if end:  # within a stage the shortcut reads it too
        assert grad_cam(model, x, 1, end - 1, "hires-cam").max() > 1e-3 * largest


def test_grad_cam_takes_the_likeliest() -> None:
    model, x = small_model("image").eval(), small_input("image", batch=4)
    with torch.no_grad():
        classes = model(x).argmax(dim=1)
    assert torch.equal(grad_cam(model, x), grad_cam(model, x, classes))
    for target in (5, -1, torch.tensor([1, 2]), 0.5, True):
        with pytest.raises(ValueError, match="target must be"):
            grad_cam(model, x, target)  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match="method must be one of grad-cam, layer-cam, hires-cam, taylor"
    ):
        grad_cam(model, x, method="cam")
    with pytest.raises(ValueError, match="model must be a classifier"):
        grad_cam(MViT(model.config), x)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="stage must be from -2 to 1"):
        stage_block(model, 2)


def test_enlarge() -> None:
    """Cell i lies at pixel ``i * reduction``, where its kernels have their centre."""
    maps = torch.tensor([[[0.0, 1.0], [2.0, 3.0]]])
    assert torch.equal(enlarge(maps, (2, 2)), maps)
    row = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0])
    assert torch.equal(enlarge(maps, (8, 8))[0, 0], row)
    assert torch.equal(enlarge(maps, (8, 8))[0, 4], row + 2)
    assert enlarge(maps[:, None], (8, 6)).shape == (1, 8, 6)  # stills on a grid with time
    assert enlarge(maps[:, None], (4, 8, 6)).shape == (1, 4, 8, 6)


@pytest.mark.parametrize("cell", [(2, 3), (4, 5)])
def test_where_a_cell_looks(cell: tuple[int, int]) -> None:
    """Without attention, what a cell sees of the image lies evenly round ``cell * reduction``."""
    model = small_model("image").double().eval()
    for block in model.blocks:
        nn.init.zeros_(block.attn.proj.weight)
    x = torch.zeros(1, 3, 96, 96, dtype=F64, requires_grad=True)
    tokens, thw = model.tokens(torch.randn(1, 3, 96, 96, dtype=F64) + x)
    seen = torch.zeros(96, 96, dtype=F64)
    for channel in range(tokens.shape[-1]):
        value = tokens.unflatten(1, thw)[0, cell[0], cell[1], channel]
        seen += torch.autograd.grad(value, x, retain_graph=True)[0][0].abs().sum(dim=0)
    rows, columns = seen.sum(dim=1).nonzero(), seen.sum(dim=0).nonzero()
    reduction = model.feature_info.reduction()[-1]
    middle = [(span.min() + span.max()).item() / 2 for span in (rows, columns)]
    assert all(abs(m - c * reduction) <= 1 for m, c in zip(middle, cell, strict=True))
