"""Loading: files in every official layout, strictness, and reports that account for all."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from types import FrameType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mvitv2_core import CheckpointError, MViTClassifier, MViTConfig, checkpoint, load_checkpoint
from mvitv2_core.checkpoint.hub import OFFICIAL
from tests.compare import randomize
from tests.golden_data import official_state_dicts
from tests.structures import small

STATES = official_state_dicts()
MASKFEAT = {"dim_mul_in_att": False, "num_classes": 400, "mean_pooling": True}
# Official models that the registry does not hold, because no weights of them are published there.
OTHERS = {
    "slowfast/ImageNet/MVITv2_T": partial(MViTConfig.variant, "T"),
    "slowfast/ImageNet/MVITv2_S": partial(MViTConfig.variant, "S"),
    "slowfast/ImageNet/MVITv2_B": partial(MViTConfig.variant, "B"),
    "slowfast/masked_ssl/k400_MVITv2_S_16x4_FT": partial(
        MViTConfig.variant, "S", (16, 224, 224), **MASKFEAT
    ),
    "slowfast/masked_ssl/k400_MVITv2_L_16x4_FT": partial(
        MViTConfig.variant, "L", (16, 224, 224), **MASKFEAT
    ),
}
REGISTERED = {
    "mvit/image_T_in1k": "mvitv2_tiny_in1k",
    "mvit/image_S_in1k": "mvitv2_small_in1k",
    "mvit/image_B_in1k": "mvitv2_base_in1k",
    "mvit/image_L_in1k": "mvitv2_large_in1k",
    "mvit/image_B_cls_in21k_19168": "mvitv2_base_in21k",
    "mvit/image_L_cls_in21k_19168": "mvitv2_large_in21k",
    "mvit/image_H_cls_in21k_19168": "mvitv2_huge_in21k",
    "slowfast/Kinetics/MVITv2_S_16x4": "mvitv2_small_16x4_k400",
    "slowfast/Kinetics/MVITv2_B_32x3": "mvitv2_base_32x3_k400",
    "slowfast/Kinetics/MVITv2_L_40x3_test": "mvitv2_large_40x3_k400",
    "slowfast/SSv2/MVITv2_S_16x4": "mvitv2_small_16x4_ssv2",
    "slowfast/SSv2/MVITv2_B_32x3": "mvitv2_base_32x3_ssv2",
    "slowfast/SSv2/MVITv2_L_40x3": "mvitv2_large_40x3_ssv2",
}
BACKBONES = {
    "detectron2/d2_T": (96, 1, (0, 2, 7, 9)),
    "detectron2/d2_S": (96, 1, (0, 2, 13, 15)),
    "detectron2/d2_B": (96, 1, (1, 4, 20, 23)),
    "detectron2/d2_L": (144, 2, (1, 7, 43, 47)),
    "detectron2/d2_H": (192, 3, (3, 11, 71, 79)),
}


def test_every_official_layout_is_covered() -> None:
    assert set(STATES) == set(OTHERS) | set(REGISTERED) | set(BACKBONES)
    with_config = {name for name, row in OFFICIAL.items() if row.config is not None}
    assert set(REGISTERED.values()) == with_config


def numbered(name: str) -> dict[str, Tensor]:
    """An official state dict whose n-th tensor is n everywhere, held as one number each."""
    shapes = STATES[name]["state"].items()
    return {key: torch.tensor(float(n)).expand(shape) for n, (key, shape) in enumerate(shapes)}


def official_model(name: str) -> nn.Module:
    """The project's model for it, with memory that nothing has been written to."""
    with torch.device("meta"):
        if name in BACKBONES:
            pytest.importorskip("detectron2", reason="install detectron2 to run: make setup")
            from mvitv2_d2 import MViT

            dim, heads, ends = BACKBONES[name]
            model: nn.Module = MViT(
                embed_dim=dim, num_heads=heads, depth=ends[-1] + 1, last_block_indexes=ends
            )
        else:
            row = OFFICIAL.get(REGISTERED.get(name, ""))
            model = MViTClassifier(OTHERS[name]() if row is None else row.config())
    return model.to_empty(device="cpu")


def cases() -> list:
    large = [n for n in STATES if STATES[n]["params"] > 100e6]
    return [pytest.param(n, marks=pytest.mark.slow if n in large else ()) for n in STATES]


@pytest.mark.parametrize("name", cases())
def test_official_layouts(tmp_path: Path, name: str) -> None:
    """Files as the official repositories write them: every tensor arrives where it belongs."""
    state, unused = numbered(name), ()
    source = name.split("/")[0]
    if source == "detectron2":
        path = tmp_path / "model_final.pkl"
        state = {f"backbone.bottom_up.{key}": value for key, value in state.items()}
        extra = {"backbone.fpn_lateral2.weight": torch.ones(2), "roi_heads.x": torch.ones(2)}
        unused = tuple(extra)
        if STATES[name]["params"] < 100e6:
            arrays = {key: value.numpy() for key, value in {**state, **extra}.items()}
            path.write_bytes(pickle.dumps({"model": arrays, "__author__": "Detectron2"}))
        else:
            torch.save({"model": {**state, **extra}}, path)
    else:
        path = tmp_path / "checkpoint.pyth"
        beside = {"epoch": 300, "optimizer_state": {"lr": np.float64(0.1)}, "cfg": "TRAIN:\n"}
        torch.save({**beside, "model_state": state}, path)
    model = official_model(name)
    report = load_checkpoint(model, path, allow_unused=("backbone.fpn_*", "roi_heads"))
    assert Counter(report.names("unused")) == Counter(unused)
    assert {e.status for e in report.entries} == {"loaded", *(["unused"] if unused else [])}
    assert len(report.entries) == len(state) + len(unused)
    for n, (key, _) in enumerate(STATES[name]["state"].items()):
        assert (model.state_dict()[key] == n).all(), key


def test_wrapped_and_bare(tmp_path: Path) -> None:
    state = randomize(MViTClassifier(small("T"))).state_dict()
    wrapped = {f"module.{name}": value for name, value in state.items()}
    for content in (state, wrapped, {"model": wrapped}, {"state_dict": state}):
        torch.save(content, tmp_path / "x.pt")
        model = MViTClassifier(small("T"))
        assert load_checkpoint(model, tmp_path / "x.pt").counts()["loaded"] == len(state)
        assert all(torch.equal(v, state[n]) for n, v in model.state_dict().items())


def fresh(**options: object) -> tuple[nn.Module, dict[str, Tensor]]:
    model = randomize(MViTClassifier(small("T", **options)), seed=4)
    return model, {name: value.clone() for name, value in model.state_dict().items()}


def test_strict_unless_allowed() -> None:
    state = randomize(MViTClassifier(small("T", num_classes=9, cls_token=True))).state_dict()
    model, before = fresh()
    for allowed in ({}, {"allow_new": ("head",)}, {"allow_unused": ("cls_token",)}):
        with pytest.raises(CheckpointError) as caught:
            load_checkpoint(model, state, **allowed)
        assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
        assert caught.value.report is not None
    assert "head.projection.weight is (9, 64) in the file and (5, 64)" in str(caught.value)
    report = load_checkpoint(model, state, allow_new=["head"], allow_unused=["cls_token"])
    assert set(report.names("new")) == {"head.projection.weight", "head.projection.bias"}
    assert set(report.names("unused")) == {*report.names("new"), "cls_token"}
    for name, value in model.state_dict().items():
        expected = before[name] if name.startswith("head") else state[name]
        assert torch.equal(value, expected), name


def test_allowances_name_whole_parts() -> None:
    state = randomize(MViTClassifier(small("T"))).state_dict()
    del state["blocks.1.norm1.weight"]
    for allowed in ("blocks.1.norm", "norm1", "blocks.1.norm1.w", "locks.1"):
        with pytest.raises(CheckpointError, match="missing in the file"):
            load_checkpoint(fresh()[0], state, allow_new=(allowed,))
    for allowed in ("blocks.1", "blocks.1.norm1.weight", "blocks.*.norm1", "*"):
        load_checkpoint(fresh()[0], state, allow_new=(allowed,))


def test_image_model_takes_a_clip_checkpoint_when_told_to() -> None:
    clip = randomize(MViTClassifier(small("T", 8))).state_dict()
    model, _ = fresh()
    with pytest.raises(CheckpointError, match="rel_pos_t"):
        load_checkpoint(model, clip)
    report = load_checkpoint(model, clip, allow_unused=("*.rel_pos_t",))
    assert report.counts() == {
        "loaded": 242 - 31,
        "resampled": 0,
        "inflated": 0,
        "centre": 31,
        "new": 0,
        "unused": 10,
    }
    kernel = clip["patch_embed.proj.weight"][:, :, 1]
    assert torch.equal(model.state_dict()["patch_embed.proj.weight"], kernel)


def test_report_accounts_for_every_tensor_once() -> None:
    image = randomize(MViTClassifier(small("T", side=96, num_classes=9))).state_dict()
    model = MViTClassifier(small("T", 8, cls_token=True))
    report = load_checkpoint(model, image, allow_new=("head", "cls_token"))
    ours = [entry.name for entry in report.entries if entry.status != "unused"]
    assert Counter(ours) == Counter(list(model.state_dict()))
    sources = [entry.source for entry in report.entries if entry.source is not None]
    assert Counter(sources) == Counter(list(image))
    body = json.loads(report.to_json())
    assert body["counts"] == report.counts() and body["format"] == "image"
    assert len(body["tensors"]) == len(report.entries)
    text = str(report)
    assert text.splitlines()[0] == report.summary()
    for entry in report.entries:
        assert any(line.startswith(f"{entry.name} ") for line in text.splitlines()), entry.name
    assert "zero: an image has no positions in time" in text and "from 47 rows" in text


def test_report_of_another_format_names_its_tensors() -> None:
    from mvitv2_core.checkpoint import convert_state_dict

    state, _ = convert_state_dict(randomize(MViTClassifier(small("T"))).state_dict(), "timm")
    report = load_checkpoint(MViTClassifier(small("T")), state)
    sources = {entry.name: entry.source for entry in report.entries}
    assert report.format == "timm"
    assert sources["blocks.3.proj.weight"] == "stages.2.blocks.0.shortcut_proj_attn.weight"
    assert set(sources.values()) == set(state)


def test_what_is_no_model_of_ours() -> None:
    with pytest.raises(TypeError, match="bottom_up"):
        load_checkpoint(nn.Linear(2, 2), {"weight": torch.zeros(2, 2)})
    with torch.device("meta"):
        model = MViTClassifier(small("T"))
    with pytest.raises(ValueError, match="meta device"):
        load_checkpoint(model, MViTClassifier(small("T")).state_dict())


@pytest.mark.parametrize("legacy", [False, True])
def test_a_call_passes_through_five_files(tmp_path: Path, legacy: bool) -> None:
    """From the file's bytes to the model's tensors; by an official name, ``hub`` comes first."""
    torch.save(fresh()[1], tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy)
    model, seen = MViTClassifier(small("T")), set()
    folder = Path(checkpoint.__file__).parent

    def watch(frame: FrameType, event: str, _: object) -> None:
        file = Path(frame.f_code.co_filename)
        if event == "call" and file.parent == folder:
            seen.add(file.stem)

    sys.setprofile(watch)
    try:
        load_checkpoint(model, tmp_path / "x.pth")
    finally:
        sys.setprofile(None)
    assert seen == {"load", "files", "_unpickle", "formats", "fit"}


def test_half_and_double_models() -> None:
    state = randomize(MViTClassifier(small("T"))).state_dict()
    for dtype in (torch.float64, torch.bfloat16):
        model = MViTClassifier(small("T")).to(dtype)
        load_checkpoint(model, state)
        assert all(torch.equal(v, state[n].to(dtype)) for n, v in model.state_dict().items())


MEASURE = """
import re, sys, time
import torch
from mvitv2_core import MViTClassifier, MViTConfig, load_checkpoint

def peak():
    # Not getrusage's: a child begins with its parent's there.
    return 1024 * int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])

before = peak()
with torch.device("meta"):
    model = MViTClassifier(MViTConfig.variant("L", dim_mul_in_att=False))
model = model.to_empty(device="cpu")
start = time.perf_counter()
report = load_checkpoint(model, sys.argv[1])
print(before, peak(), time.perf_counter() - start, report.counts()["loaded"])
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="run on Linux, for /proc")
@pytest.mark.parametrize("legacy", [False, True])
def test_large_model_loads_in_little_memory(tmp_path: Path, legacy: bool) -> None:
    """L with its own memory and the file's: below 2.2 times the file, over Python and torch."""
    path = tmp_path / "L.pyth"
    shapes = STATES["mvit/image_L_in1k"]["state"]
    state = {name: torch.full(shape, 0.5) for name, shape in shapes.items()}
    torch.save({"model_state": state}, path, _use_new_zipfile_serialization=not legacy)
    del state
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    before, peak, seconds, loaded = map(float, result.stdout.split())
    size = path.stat().st_size
    print(f"{size / 1e6:.0f} MB: {(peak - before) / size:.2f} times the file, {seconds:.1f} s")
    assert loaded == len(shapes)
    assert 1.5 * size < peak - before < 2.2 * size  # less would mean that nothing was measured
    assert seconds < 60
