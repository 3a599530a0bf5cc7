"""The patch embedding on inputs that PyTorch's own convolution does not survive."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from mvitv2_core import MViTConfig
from mvitv2_core.model import PatchEmbed
from tests.compare import error


def test_bfloat16_clips_with_channels_last() -> None:
    """Training on them must not corrupt memory, which is fatal: so in a process of its own."""
    code = """
import itertools, torch
from mvitv2_core import BlockSpec, MViTConfig
from mvitv2_core.model import PatchEmbed
spec = BlockSpec(8, 8, 8, 1, (4, 4, 4), (1, 1, 1), (1, 1, 1), None, None)
config = MViTConfig(
    (spec,), (8, 16, 16), (3, 7, 7), (2, 4, 4), (1, 3, 3), rel_pos=(True,) * 3, num_classes=2
)
model = PatchEmbed(config).bfloat16()
for size in itertools.product((1, 2, 5, 23), (1, 2, 3, 9), (1, 2, 3, 9)):
    x = torch.randn(4, 3, *size, dtype=torch.bfloat16)
    for _ in range(4):
        model(x.to(memory_format=torch.channels_last_3d))[0].sum().backward()
"""
    root = Path(__file__).parents[2]
    process = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr[-2000:]


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (3, 1), (37, 2), (16, 24)])
def test_bfloat16_weight_gradient(size: tuple[int, int], autocast: bool) -> None:
    """Of channels-last images PyTorch alone gives uninitialised memory where kernels leave them."""
    torch.manual_seed(0)
    model = PatchEmbed(MViTConfig.variant("T"))
    x = torch.randn(2, 3, *size).to(memory_format=torch.channels_last)
    grad = torch.randn_like(model(x)[0])
    (exact,) = torch.autograd.grad(model(x)[0], model.proj.weight, grad)
    if autocast:
        with torch.autocast("cpu", torch.bfloat16):
            out = model(x)[0]
    else:
        out = model.bfloat16()(x.bfloat16())[0]
    assert out.dtype == torch.bfloat16
    (got,) = torch.autograd.grad(out, model.proj.weight, grad.bfloat16())
    assert error(got.float(), exact) < 0.03


def test_more_than_a_convolution() -> None:
    """Hooks on the convolution fire in bfloat16 too, and its own settings hold."""
    torch.manual_seed(0)
    model = PatchEmbed(MViTConfig.variant("T"))
    model.proj = nn.Conv2d(3, 96, 7, 4, 3, padding_mode="reflect", bias=False)
    x, seen = torch.randn(2, 3, 16, 16), []
    expected = model(x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert error(model(x)[0].float(), expected) < 0.03
        handle = model.proj.register_forward_hook(lambda *args: seen.append(args))
        assert error(model(x)[0].float(), expected) < 0.03
        handle.remove()
    assert len(seen) == 1
