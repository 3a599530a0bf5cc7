"""How much an eager inference launches, beside the peers in the same run."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from mvitv2_core import MViTClassifier, MViTConfig
from tests.launches import operations

DETECTION = {
    **{"depth": 10, "last_block_indexes": (0, 2, 7, 9), "embed_dim": 96, "num_heads": 1},
    "norm_layer": partial(nn.LayerNorm, eps=1e-6),
}


def video_s() -> nn.Module:
    return MViTClassifier(MViTConfig.variant("S", (16, 224, 224)))


def image_t() -> nn.Module:
    return MViTClassifier(MViTConfig.variant("T"))


def detection_t() -> nn.Module:
    return pytest.importorskip("mvitv2_d2.backbone", exc_type=ImportError).MViT(**DETECTION)


def torchvision_s() -> nn.Module:
    package = pytest.importorskip("torchvision.models.video", reason="install torchvision to run")
    return package.mvit_v2_s()


def timm_t() -> nn.Module:
    return pytest.importorskip("timm", reason="install timm to run").create_model("mvitv2_tiny")


def detectron2_t() -> nn.Module:
    reason = "install detectron2 to run: make setup"
    return pytest.importorskip("detectron2.modeling", reason=reason).MViT(**DETECTION)


Build = Callable[[], nn.Module]
# Ours, the peer, an input, and what docs/gpu.md says that ours launches, without and with Triton.
WORK: dict[str, tuple[Build, Build, tuple[int, ...], tuple[int, int]]] = {
    "video S": (video_s, torchvision_s, (8, 3, 16, 224, 224), (908, 380)),
    "detection T": (detection_t, detectron2_t, (4, 3, 1024, 1088), (413, 220)),
    "image T": (image_t, timm_t, (64, 3, 224, 224), (336, 199)),
}
PAGE = Path(__file__).parents[2] / "docs" / "gpu.md"


@pytest.mark.parametrize("work", WORK)
def test_operations(
    work: str, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, Any], None]
) -> None:
    """With Triton's kernels at most half of the peer's; of ours, what the page says."""
    ours, peer, size, known = WORK[work]
    counts = {
        "ours": operations(ours(), size, monkeypatch),
        "ours, Triton": operations(ours(), size, monkeypatch, triton=True),
        "peer": operations(peer(), size, monkeypatch),
    }
    total = {name: calls.total() for name, calls in counts.items()}
    record_property("operations", total)
    assert counts["ours, Triton"]["attention"] and counts["ours, Triton"]["pool_heads"]
    assert 2 * total["ours, Triton"] <= total["peer"], total
    assert (total["ours"], total["ours, Triton"]) == known, counts
    assert re.search(rf"\| {work}.* \| {known[0]} \| {known[1]} \| \d+ \(", PAGE.read_text())
