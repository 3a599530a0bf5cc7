"""What is not computed, not launched and not copied: counted, without a GPU where one is meant."""

from __future__ import annotations

from collections import Counter
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mvitv2_core import MViT, MViTConfig, ops
from mvitv2_core.block import Mlp
from mvitv2_core.fast import attention_chunked, terms_in_place
from mvitv2_core.fast.window_chunks import window_chunks
from tests.forms import forced


class Watch(TorchDispatchMode):
    """Counts operations by name, and keeps the largest number of elements that any made."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out: Any = func(*args, **(kwargs or {}))
        self.calls[func.overloadpacket.__name__] += 1
        given = {_storage(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for made in tree_leaves(out):
            if isinstance(made, Tensor) and _storage(made) not in given:  # else a view
                self.largest = max(self.largest, made.numel())
        return out

    @property
    def products(self) -> int:
        return sum(self.calls[name] for name in ("mm", "addmm", "addmm_", "bmm", "linear"))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def mlp_products(frozen: tuple[str, ...], input_grad: bool) -> int:
    """Matrix products of a backward pass through the MLP."""
    mlp = Mlp(8, 32, 8, nn.GELU, 0.0)
    for name, p in mlp.named_parameters():
        p.requires_grad_(not name.startswith(frozen))
    with forced(mlp="recompute"):
        out = mlp(torch.randn(2, 5, 8, requires_grad=input_grad))
    with Watch() as watch:
        out.sum().backward()
    return watch.products


def test_frozen_linears_are_not_differentiated() -> None:
    """Four products for two linears' weights and inputs; one less for each that nobody wants."""
    assert mlp_products((), True) == 4
    assert mlp_products((), False) == 3
    assert mlp_products(("fc1",), True) == 3
    assert mlp_products(("fc2",), True) == 3
    assert mlp_products(("fc1", "fc2"), True) == 2
    assert mlp_products(("fc1",), False) == 1


def test_few_chunks_of_large_images_on_cuda() -> None:
    """At 3072 pixels heads are too wide to fold: an accelerator takes large chunks, and few."""
    q_thw, k_thw = (384, 384), (96, 96)  # of the last block of T's second stage
    rest = ((0, 1), q_thw, k_thw, False, True, None)
    counts = {}
    with FakeTensorMode(allow_non_fake_inputs=True):
        for device in ("cuda", "cpu"):
            q, k = (torch.empty(1, h * w, 2, 96, device=device) for h, w in (q_thw, k_thw))
            plan = attention_chunked._Plan(q, k, rest)
            chunks = window_chunks(plan.layout, plan.limit), plan.backward_chunks()
            counts[device] = tuple(len(list(parts)) for parts in chunks)
    assert counts["cpu"][0] > 1000
    assert counts["cuda"][0] <= 25 and counts["cuda"][1] <= 100


def test_position_rows_serve_all_windows() -> None:
    """They are copied for each image, by PyTorch's product, but not for each of its windows."""
    grid, window, kv = (256, 272), (56, 56), (14, 14)  # detection T at 1024x1088, first stage
    q = torch.empty(4, prod(grid), 1, 96, device="meta")
    tables = [torch.empty(111, 96, device="meta") for _ in grid]
    with Watch() as watch:
        axes = zip(tables, grid, kv, window, kv, strict=True)
        rows = [ops.axis_rows(*axis) for axis in axes]
        terms_in_place.rel_pos_terms(q, rows, grid)
    of_images, of_windows = 4 * 280 * 14 * 96, 4 * 25 * 56 * 14 * 96
    terms = q.shape[0] * prod(grid) * kv[0]
    assert of_images < watch.largest <= max(of_images, terms) < of_windows


def test_results_do_not_depend_on_what_a_process_met_before() -> None:
    """Bit for bit, after forty other sizes."""
    torch.manual_seed(0)
    model = MViT(MViTConfig.variant("T", (64, 64))).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        first = model(x)
        for side in range(33, 73):
            model(x[..., : min(side, 64), :32])
        for (a, _), (b, _) in zip(first, model(x), strict=True):
            assert torch.equal(a, b)
