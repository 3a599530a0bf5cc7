"""This project's recipes for PySlowFast that data of one's own is trained after."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from mvitv2_core.checkpoint.describe import Layout
from mvitv2_core.path_manager import PREFIX
from mvitv2_core.recipes import recipe_path


@dataclass(frozen=True)
class Recipe:
    """A recipe of this project to fine-tune after.

    Args:
        file: under ``configs/``.
        lr: at ``batch`` clips or images a step.
        weights: official ones to start from.
        seen: clips or images to see in a training, which the number of epochs follows from.
    """

    file: str
    lr: float
    batch: int
    weights: str = ""
    seen: int = 20_000

    def node(self, name: str) -> dict[str, Any]:
        """A node of the YAML, such as "DATA", over those of its bases; empty where none has it."""
        return _node(recipe_path(f"configs/{self.file}"), name)

    @property
    def layout(self) -> Layout:
        """Its model, as ``read_layout`` would describe the weights of one without a head."""
        mvit, data = self.node("MVIT"), self.node("DATA")
        starts = [0, *(block for block, _ in mvit["DIM_MUL"]), mvit["DEPTH"]]
        image = mvit.get("PATCH_2D", False)
        size: tuple[int, ...] = (data["TRAIN_CROP_SIZE"],) * 2
        if not image:  # nominal: for patches of stride 2 in time
            size = (data["NUM_FRAMES"] // mvit["PATCH_STRIDE"][0] * 2, *size)
        return Layout(
            depths=tuple(end - start for start, end in pairwise(starts)),
            embed_dim=mvit["EMBED_DIM"],
            num_heads=mvit["NUM_HEADS"],
            in_att=mvit["DIM_MUL_IN_ATT"],
            rank=2 if image else 3,
            cls_token=mvit["CLS_EMBED_ON"],
            num_classes=None,
            input_size=size,
        )

    @property
    def least_batch(self) -> int:
        """Clips or images that each GPU needs: PySlowFast's MixUp stops at a single one."""
        mixes = self.node("MIXUP").get("ENABLE", False)
        return 2 if mixes and self.node("AUG").get("NUM_SAMPLE", 1) == 1 else 1


# Rates are those of this project's recipes at their batch of 16 clips, or 256 images.
VIDEO = {
    "S": Recipe("Kinetics/MViTv2_S_16x4.yaml", 1e-4, 16, f"{PREFIX}mvitv2_small_16x4_k400"),
    "B": Recipe("Kinetics/MViTv2_B_32x3.yaml", 1e-4, 16, f"{PREFIX}mvitv2_base_32x3_k400"),
    "toy": Recipe("Kinetics/toy_mvitv2.yaml", 5e-4, 8, seen=900),
}
IMAGES = {
    "T": Recipe("ImageNet/MViTv2_T.yaml", 2.5e-4, 256, f"{PREFIX}mvitv2_tiny_in1k", 100_000),
    "S": Recipe("ImageNet/MViTv2_S.yaml", 2.5e-4, 256, f"{PREFIX}mvitv2_small_in1k", 100_000),
    "B": Recipe("ImageNet/MViTv2_B.yaml", 2.5e-4, 256, f"{PREFIX}mvitv2_base_in1k", 100_000),
    "L": Recipe("ImageNet/MViTv2_L.yaml", 2.5e-4, 256, f"{PREFIX}mvitv2_large_in1k", 100_000),
    "toy": Recipe("ImageNet/toy_mvitv2.yaml", 1e-3, 16, seen=6_000),
}
AVA = {
    "S": Recipe("AVA/MViTv2_S_16x4.yaml", 1e-4, 16, f"{PREFIX}mvitv2_small_16x4_k400"),
    "B": Recipe("AVA/MViTv2_B_32x3.yaml", 1e-4, 16, f"{PREFIX}mvitv2_base_32x3_k400"),
    "toy": VIDEO["toy"],
}


def _node(file: Path, name: str) -> dict[str, Any]:
    import yaml

    content = yaml.safe_load(file.read_text("utf-8"))
    bases = content.get("_BASE_", [])
    node: dict[str, Any] = {}
    for base in [bases] if isinstance(bases, str) else bases:
        node |= _node(file.parent / base, name)
    return node | content.get(name, {})
