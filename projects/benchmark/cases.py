"""What is compared: our models and the peers that are installed, built with random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor, nn

DETECTION = {
    "T": {"depth": 10, "last_block_indexes": (0, 2, 7, 9)},
    "S": {"depth": 16, "last_block_indexes": (0, 2, 13, 15)},
    "B": {"depth": 24, "last_block_indexes": (1, 4, 20, 23)},
}
TIMM = {"T": "mvitv2_tiny", "S": "mvitv2_small", "B": "mvitv2_base"}


@dataclass(frozen=True)
class Case:
    """One model at one input size.

    Args:
        kind: "detection", "image" or "video".
        variant: T, S or B.
        batch: images or clips a step.
        size: (H, W) or (T, H, W).
    """

    kind: str
    variant: str
    batch: int
    size: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"{self.kind} {self.variant}, {self.batch} x {'x'.join(map(str, self.size))}"

    def input(self, device: str) -> Tensor:
        """(batch, 3, *size) float32 noise."""
        return torch.randn(self.batch, 3, *self.size, device=device)


# The sizes of the project's performance targets.
CASES = {
    "image-T": Case("image", "T", 4, (224, 224)),
    "image-S": Case("image", "S", 4, (224, 224)),
    "image-B": Case("image", "B", 4, (224, 224)),
    "detection-512": Case("detection", "T", 1, (512, 576)),
    "detection-1024": Case("detection", "T", 1, (1024, 1088)),
    "video-S": Case("video", "S", 1, (16, 224, 224)),
}


def detection(case: Case, module: str, checkpointing: bool = False) -> nn.Module:
    """Our backbone or, from ``detectron2.modeling``, the peer with the same arguments."""
    source = __import__(module, fromlist=["MViT"])
    norm = partial(nn.LayerNorm, eps=1e-6)
    options = {"norm_layer": norm, "use_act_checkpoint": checkpointing, **DETECTION[case.variant]}
    return source.MViT(**options)


def classifier(case: Case, checkpointing: bool = False) -> nn.Module:
    """Our image or video classifier, for the nominal size of the case."""
    from mvitv2_core import MViTClassifier, MViTConfig

    config = MViTConfig.variant(case.variant, case.size)
    return MViTClassifier(config, act_checkpoint=checkpointing)


def timm_model(case: Case) -> nn.Module:
    """timm's image model."""
    import timm

    return timm.create_model(TIMM[case.variant], img_size=case.size[0])


def torchvision_model(case: Case) -> nn.Module:
    """torchvision's video model, which exists as S with 16 frames of 224 x 224 only."""
    from torchvision.models.video import mvit_v2_s

    return mvit_v2_s()


def builders(case: Case) -> dict[str, Callable[[], nn.Module]]:
    """Who is compared on ``case``: ours first, then each peer that is installed."""
    if case.kind == "detection":
        found: dict[str, Callable[[], nn.Module]] = {"ours": lambda: detection(case, "mvitv2_d2")}
        found["ours, checkpointing"] = lambda: detection(case, "mvitv2_d2", True)
        if find_spec("detectron2") and find_spec("timm"):
            found["detectron2"] = lambda: detection(case, "detectron2.modeling")
        return found
    found = {"ours": lambda: classifier(case)}
    found["ours, checkpointing"] = lambda: classifier(case, True)
    if case.kind == "image" and find_spec("timm"):
        found["timm"] = lambda: timm_model(case)
    s_16x4 = case.kind == "video" and case.variant == "S" and case.size == (16, 224, 224)
    if s_16x4 and find_spec("torchvision"):
        found["torchvision"] = lambda: torchvision_model(case)
    return found
