"""What is compared: our models and the peers that are installed, built with random weights."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from mvitv2_core.cost import Cost, classifier_cost, trunk_cost

DETECTION = {
    "T": {"depth": 10, "last_block_indexes": (0, 2, 7, 9)},
    "S": {"depth": 16, "last_block_indexes": (0, 2, 13, 15)},
    "B": {"depth": 24, "last_block_indexes": (1, 4, 20, 23)},
}
TIMM = {"T": "mvitv2_tiny", "S": "mvitv2_small", "B": "mvitv2_base"}
CHECKPOINTING = "ours, checkpointing"
COMPILED = ", compiled"  # behind a name: the same model through torch.compile
Build = Callable[[], nn.Module]


@dataclass(frozen=True)
class Case:
    """One model at one input size.

    Args:
        kind: "detection", "image" or "video".
        variant: T, S or B.
        batch: images or clips a step.
        size: (H, W) or (T, H, W).
        windows: for detection, whether there are windows; without, every block attends globally.
        checkpointing: whether training with activation checkpointing is measured too.
    """

    kind: str
    variant: str
    batch: int
    size: tuple[int, ...]
    windows: bool = True
    checkpointing: bool = False

    @property
    def name(self) -> str:
        windows = "" if self.windows else " without windows"
        size = "x".join(map(str, self.size))
        return f"{self.kind} {self.variant}{windows}, {self.batch} x {size}"

    def input(self, device: str) -> Tensor:
        """(batch, 3, *size) float32 noise."""
        return torch.randn(self.batch, 3, *self.size, device=device)

    def costs(self) -> list[Cost]:
        """Our model's account, block by block, for one image or clip."""
        with torch.device("meta"):
            if self.kind == "detection":
                return trunk_cost(detection(self, "mvitv2_d2").config, self.size)
            return classifier_cost(classifier(self).config, self.size)

    def flops(self, mode: str) -> int:
        """Floating-point operations of a step: two a multiply-add, norms not counted.

        Training has three times as many: each product has two in the backward pass.
        """
        count = sum(row.flops - row.terms.get("norms", 0) for row in self.costs())
        return 2 * self.batch * count * (3 if mode == "training" else 1)

    def matrix_mib(self) -> float:
        """MiB of the largest queries x keys matrix, if a block wrote it out in float32."""
        return self.batch * max(row.logits for row in self.costs()) * 4 / 2**20


# The sizes of the project's performance targets.
TARGETS = {
    "image-T": Case("image", "T", 4, (224, 224)),
    "image-S": Case("image", "S", 4, (224, 224)),
    "image-B": Case("image", "B", 4, (224, 224)),
    "detection-512": Case("detection", "T", 1, (512, 576)),
    "detection-1024": Case("detection", "T", 1, (1024, 1088), checkpointing=True),
    "video-S": Case("video", "S", 1, (16, 224, 224)),
}
CASES = {
    **TARGETS,
    "detection-global": Case("detection", "T", 1, (2048, 2048), windows=False),
}


def detection(case: Case, module: str, checkpointing: bool = False) -> nn.Module:
    """Our backbone or, from ``detectron2.modeling``, the peer with the same arguments."""
    source = __import__(module, fromlist=["MViT"])
    options = {"norm_layer": partial(nn.LayerNorm, eps=1e-6), "use_act_checkpoint": checkpointing}
    if not case.windows:
        options["adaptive_window_size"] = 0
    return source.MViT(**options, **DETECTION[case.variant])


def classifier(case: Case, checkpointing: bool = False) -> nn.Module:
    """Our image or video classifier, for the nominal size of the case."""
    from mvitv2_core import MViTClassifier, MViTConfig

    classes = 400 if case.kind == "video" else 1000
    config = MViTConfig.variant(case.variant, case.size, num_classes=classes)
    return MViTClassifier(config, act_checkpoint=checkpointing)


def timm_model(case: Case) -> nn.Module:
    """timm's image model."""
    import timm

    return timm.create_model(TIMM[case.variant], img_size=case.size[0])


def torchvision_model() -> nn.Module:
    """torchvision's video model, which exists as S with 16 frames of 224 x 224 only."""
    from torchvision.models.video import mvit_v2_s

    return mvit_v2_s()


class OfList(nn.Module):
    """A model of PySlowFast, which takes its clip in a list."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model([x])


def pyslowfast_model(case: Case) -> nn.Module:
    """PySlowFast's own ``MViT`` from its own config, on the CPU until moved.

    Raises:
        RuntimeError: there is no PySlowFast that can be used.
    """
    from mvitv2_slowfast.plugin import connect

    root = connect()
    if root is None:
        raise RuntimeError("no PySlowFast: set PYSLOWFAST_ROOT")
    from slowfast.config.defaults import get_cfg
    from slowfast.models.build import MODEL_REGISTRY

    cfg = get_cfg()
    cfg.merge_from_file(str(root / "configs/Kinetics/MVITv2_S_16x4.yaml"))
    cfg.NUM_GPUS = 0
    cfg.DATA.NUM_FRAMES, cfg.DATA.TRAIN_CROP_SIZE, _ = case.size
    cfg.DATA.TEST_CROP_SIZE = cfg.DATA.TRAIN_CROP_SIZE
    return OfList(MODEL_REGISTRY.get(cfg.MODEL.MODEL_NAME)(cfg))


def builders(case: Case) -> tuple[dict[str, Build], list[str]]:
    """Who is compared on ``case``: ours first, then each peer that is installed.

    Returns:
        The builders by name, empty where our own model lacks its framework, and one line for
        each peer that is not there.
    """
    peers: dict[str, tuple[Build, bool, str]] = {}  # how to build it, whether it is there, cure
    ours = partial(classifier, case)
    if case.kind == "detection":
        if find_spec("detectron2") is None:
            return {}, ["detection: not measured, install detectron2"]
        ours = partial(detection, case, "mvitv2_d2")
        if case.windows:  # the peer would write out a matrix that few machines can hold
            build = partial(detection, case, "detectron2.modeling")
            peers["detectron2"] = (build, find_spec("timm") is not None, "install timm")
    elif case.kind == "image":
        there = find_spec("timm") is not None
        peers["timm"] = (partial(timm_model, case), there, "install timm")
    elif case.variant == "S" and case.size[1] == case.size[2]:
        if case.size == (16, 224, 224):
            there = find_spec("torchvision") is not None
            peers["torchvision"] = (torchvision_model, there, "install torchvision")
        there = bool(os.environ.get("PYSLOWFAST_ROOT")) or find_spec("slowfast") is not None
        peers["PySlowFast"] = (partial(pyslowfast_model, case), there, "set PYSLOWFAST_ROOT")
    found: dict[str, Build] = {"ours": ours}
    if case.checkpointing:
        found[CHECKPOINTING] = partial(ours, checkpointing=True)
    found |= {name: build for name, (build, there, _) in peers.items() if there}
    lines = [
        f"{name}: not measured, {cure}" for name, (_, there, cure) in peers.items() if not there
    ]
    return found, lines
