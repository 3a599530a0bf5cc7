"""The patch embedding on inputs that PyTorch's own convolution does not survive."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


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
