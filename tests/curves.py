"""Loss curves of short trainings from a seed, for comparing runs bit for bit.

``python -m tests.curves NAME ...`` prints one line of hexadecimal numbers per name.
"""

from __future__ import annotations

import sys

import torch
from torch import nn

from tests.compare import loss_of
from tests.small import KINDS, small_input, small_model

STEPS = 20
DETECTOR = "detector"
NAMES = (*KINDS, DETECTOR)


def detector(act_checkpoint: bool) -> nn.Module:
    """detectron2's FPN over a small backbone with windows."""
    from detectron2.modeling import FPN
    from detectron2.modeling.backbone.fpn import LastLevelMaxPool

    from mvitv2_d2 import MViT

    backbone = MViT(
        embed_dim=16,
        num_heads=2,
        depth=5,
        last_block_indexes=(0, 1, 3, 4),
        adaptive_window_size=16,
        drop_path_rate=0.3,
        use_act_checkpoint=act_checkpoint,
    )
    names = ["scale2", "scale3", "scale4", "scale5"]
    return FPN(backbone, names, 8, top_block=LastLevelMaxPool())


def curve(name: str, seed: int = 0, act_checkpoint: bool = False) -> list[str]:
    """Losses of ``STEPS`` AdamW steps with drop path on, as exact hexadecimal numbers."""
    torch.manual_seed(seed)
    if name == DETECTOR:
        model = detector(act_checkpoint)
        inputs = [torch.randn(1, 3, 64 + 32 * (i % 3), 96) for i in range(STEPS)]
    else:
        model = small_model(name, drop_path_rate=0.3, act_checkpoint=act_checkpoint)
        inputs = [small_input(name, batch=2, seed=i) for i in range(STEPS)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for x in inputs:
        loss = loss_of(model(x))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item().hex())
    return losses


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print("curve", *curve(name))
