"""Features and attention of the backbone: what its outputs and detectron2's own softmax are."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tests.compare import error, randomize

pytest.importorskip("detectron2", reason="install detectron2 to run: make setup")
from detectron2.modeling import MViT as Official

from mvitv2_core import feature_grid
from mvitv2_core.explain import attention_maps, attention_rollout
from mvitv2_core.plain import partition
from mvitv2_d2 import MViT
from tests.d2.parity import SMALL

F64 = torch.float64


class Softmaxes(TorchFunctionMode):
    """Keeps what ``softmax`` gives: (B * heads * windows, Nq, Nk) of each block."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") == "softmax":
            self.kept.append(output)
        return output


@pytest.mark.parametrize("size", [(64, 96), (61, 83)])
def test_softmax_weights(size: tuple[int, int], tally: Callable[..., None]) -> None:
    """In windows, filled or not, and over the whole grid."""
    kwargs = {**SMALL, "adaptive_window_size": 8}
    reference = randomize(Official(**kwargs).double()).eval()
    ours = MViT(**kwargs).double().eval()
    ours.load_state_dict(reference.state_dict())
    x = torch.randn(2, 3, *size, dtype=F64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), Softmaxes() as mode:
        reference(x)
    assert len(mode.kept) == len(ours.blocks)
    for index, expected in enumerate(mode.kept):
        windows = ours.config.blocks[index].windows
        height, width = list(ours.walk(x))[index][1]
        queries = [(i, j) for i in range(height) for j in range(width)]
        maps = attention_maps(ours, x, index, queries).grid  # (B, Nq, heads, h, w)
        k_thw = maps.shape[3:]
        # Back to what lies where in the official class: (B * windows, heads, Nq, Nk).
        heads = ours.config.blocks[index].num_heads
        # (B * heads * windows, Nq, Nk) -> (B * windows, heads, Nq, Nk)
        expected = expected.unflatten(0, (2, heads, -1)).transpose(1, 2).flatten(0, 1)
        got = maps.flatten(3).transpose(1, 2)
        if windows is not None:
            # Which token, from 1, lies where in which window; 0 is what fills one.
            rows, columns = (
                partition(torch.arange(1.0, prod(grid) + 1).view(1, -1, 1, 1), grid, window)
                for grid, window in (((height, width), windows[0]), (k_thw, windows[1]))
            )
            rows, columns = rows[..., 0, 0].long(), columns[..., 0, 0].long()
            whole = torch.nn.functional.pad(got, (1, 0, 1, 0))
            own = [whole[:, :, r][..., c] for r, c in zip(rows, columns, strict=True)]
            # (B, windows, heads, Nq, Nk) -> (B * windows, heads, Nq, Nk)
            got = torch.stack(own, dim=1).flatten(0, 1)
            real = (rows > 0)[:, None, :, None] & (columns > 0)[:, None, None, :]
            expected = expected * real.repeat(2, 1, 1, 1)
        assert error(got, expected) < 1e-10, index
        # Nothing outside of a query's window.
        assert error(maps.sum(), expected.sum()) < 1e-10
        tally("softmax weights equal to the official classes' own")
    shares = attention_rollout(ours, x)
    assert shares.shape == (2, -(-size[0] // 4), -(-size[1] // 4))
    assert shares.sum(dim=(1, 2)).max() <= 1 + 1e-12 and shares.min() >= 0


def test_features_are_the_outputs() -> None:
    """``norm=True`` gives the backbone's own outputs, without it what hooks see."""
    for features in (("scale2", "scale4", "scale5"), ("scale3",)):
        model = randomize(MViT(**SMALL, adaptive_window_size=8, out_features=features)).double()
        x = torch.randn(1, 3, 61, 83, dtype=F64)
        seen: list[Any] = []
        for name in model.feature_info.module_name():
            block = model.get_submodule(name)
            block.register_forward_hook(lambda *call, seen=seen: seen.append(call[-1]))
        outputs = model(x)
        last, maps = model.forward_intermediates(x, norm=True)
        stages = [int(name[-1]) - 2 for name in features]
        for name, stage in zip(features, stages, strict=True):
            assert torch.equal(maps[stage], outputs[name])
            assert torch.equal(feature_grid(last, maps[-1].shape[2:]), maps[-1])
        raw = model.forward_intermediates(x, intermediates_only=True)
        for found, (tokens, thw) in zip(raw, seen, strict=False):
            assert torch.equal(found, feature_grid(tokens, thw))
        strides = model.output_shape()
        info = model.feature_info
        for name, stage in zip(features, stages, strict=True):
            assert info.channels(stage) == strides[name].channels
            assert info.reduction(stage) == strides[name].stride
        groups = model.layer_groups()
        assert sum(map(len, groups)) == len(list(model.parameters()))
        assert len(groups) == len(model.blocks) + 2
        for name, stage in zip(features, stages, strict=True):
            assert f"{name}_norm.weight" in groups[-1]  # as ViTDet counts
            assert f"{name}_norm.weight" in model.layer_groups(coarse=True)[stage + 1]
