"""Conversion between formats: exact round trips, and the peers' own classes agree."""

from __future__ import annotations

import itertools
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mvitv2_core import MViTClassifier, MViTConfig, load_checkpoint
from mvitv2_core.checkpoint import CheckpointError, convert_state_dict, read_checkpoint
from mvitv2_core.checkpoint.describe import read_layout
from mvitv2_core.checkpoint.formats import FORMATS, NAMES, Renamer, detect, to_project
from mvitv2_core.checkpoint.write import write_checkpoint
from mvitv2_core.rel_pos import resample_table
from tests.compare import error, randomize
from tests.structures import small

SUFFIXES = {
    "image": (".pyth", ".safetensors"),
    "slowfast": (".pyth", ".pth"),
    "detectron2": (".pkl", ".pth"),
    "timm": (".safetensors", ".pth"),
    "torchvision": (".pth", ".safetensors"),
}


def state_of(config: MViTConfig) -> dict[str, Tensor]:
    return randomize(MViTClassifier(config)).state_dict()


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert set(a) == set(b), set(a) ^ set(b)
    for name in a:
        assert a[name].shape == b[name].shape, name
        assert torch.equal(a[name].view(torch.int32), b[name].view(torch.int32)), name


def there_and_back(state: dict[str, Tensor], first: str, then: str) -> None:
    converted, _ = convert_state_dict(state, then)
    returned, _ = convert_state_dict(converted, first)
    same(returned, state)


STRUCTURES = [
    (variant, cls_token, in_att)
    for variant, cls_token, in_att in itertools.product("TSBL", (False, True), (True, False))
]


@pytest.mark.parametrize(("variant", "cls_token", "in_att"), STRUCTURES)
def test_image_round_trips(variant: str, cls_token: bool, in_att: bool) -> None:
    state = state_of(small(variant, cls_token=cls_token, in_att=in_att, abs_pos="joint"))
    there_and_back(state, "image", "slowfast")
    there_and_back(state, "image", "timm")
    deep, _ = convert_state_dict(state, "slowfast")
    there_and_back(deep, "slowfast", "timm")
    trunk, _ = convert_state_dict(state, "detectron2")
    lost = {"norm", "head", "cls_token"}
    assert set(state) - set(trunk) == {n for n in state if n.split(".")[0] in lost}
    for other in ("image", "slowfast", "timm"):
        there_and_back(trunk, "detectron2", other)


@pytest.mark.parametrize("variant", ["T", "S", "B", "L"])
def test_clip_round_trips(variant: str) -> None:
    there_and_back(state_of(small(variant, 8, cls_token=True)), "slowfast", "torchvision")


@pytest.mark.parametrize("format", SUFFIXES)
def test_files_hold_what_was_written(tmp_path: Path, format: str) -> None:
    clip = format in ("slowfast", "torchvision")
    state = state_of(small("T", 8 if clip else 0, cls_token=True))
    state, _ = convert_state_dict(state, format)
    for suffix in SUFFIXES[format]:
        write_checkpoint(tmp_path / f"x{suffix}", state, format)
        same(read_checkpoint(tmp_path / f"x{suffix}").state, state)
        assert [path.name for path in tmp_path.iterdir()] == [f"x{suffix}"]
        (tmp_path / f"x{suffix}").unlink()


def test_slices_are_written_without_the_rest(tmp_path: Path) -> None:
    large = torch.zeros(1000, 1000)
    write_checkpoint(tmp_path / "x.pth", {"patch_embed.proj.weight": large[:1]})
    assert (tmp_path / "x.pth").stat().st_size < 10_000


def test_detector_prefix() -> None:
    state = state_of(small("T"))
    trunk, _ = convert_state_dict(state, "detectron2")
    full, _ = convert_state_dict(state, "detectron2", prefix="backbone.bottom_up.")
    assert set(full) == {f"backbone.bottom_up.{name}" for name in trunk}
    full["roi_heads.box_predictor.cls_score.weight"] = torch.zeros(3, 3)
    back, report = convert_state_dict(full, "image")
    same(back, trunk)
    assert report.names("unused") == ("roi_heads.box_predictor.cls_score.weight",)


@pytest.mark.parametrize("to", ["image", "slowfast", "detectron2", "timm", "torchvision"])
def test_report_names_every_tensor_once(to: str) -> None:
    state = state_of(small("T", 8, cls_token=True))
    converted, report = convert_state_dict(state, to)
    assert sorted(e.source for e in report.entries) == sorted(state)
    kept = [e for e in report.entries if e.status != "unused"]
    assert {e.name: e.shape for e in kept} == {n: tuple(v.shape) for n, v in converted.items()}
    if to not in ("slowfast", "torchvision"):
        assert {e.source for e in kept if e.status == "centre"} == {
            n for n, v in state.items() if v.ndim == 5
        }


def test_what_a_format_cannot_hold_is_refused() -> None:
    image, clip = state_of(small("T")), state_of(small("T", 8))
    with pytest.raises(CheckpointError, match="inflate it first"):
        convert_state_dict(image, "torchvision")
    with pytest.raises(CheckpointError, match="no class token"):
        convert_state_dict(clip, "torchvision")
    with pytest.raises(CheckpointError, match="in torchvision it grows in attention"):
        mlp = state_of(small("T", 8, cls_token=True, in_att=False))
        convert_state_dict(mlp, "torchvision")
    with pytest.raises(CheckpointError, match="must be one of image, "):
        convert_state_dict(image, "caffe")
    with pytest.raises(CheckpointError, match=r"blocks\.0\.attn\.pool_q\.bias"):
        convert_state_dict({**image, "blocks.0.attn.pool_q.bias": torch.zeros(8)}, "timm")
    with pytest.raises(CheckpointError, match="no known MViTv2"):
        convert_state_dict({"layer1.0.conv1.weight": torch.zeros(3)}, "timm")


def test_tables_read_the_same_both_ways() -> None:
    """Every row of every table leads there and back, and no two rows to one name."""
    fill = {"i": "7", "x": "k", "a": "h", "p": "bias", "n": "3"}
    for row in FORMATS.values():
        for in_att in (True, False):
            table = row.table(in_att)
            there, back = Renamer(table), Renamer({new: old for old, new in table.items()})
            for name in NAMES:
                plain = name.format(**fill)
                renamed = there(plain)
                if name in row.lacks:
                    assert renamed is None or name == "blocks.{i}.attn.rel_pos_t"
                else:
                    assert renamed is not None and back(renamed) == plain
            assert len(set(table.values())) == len(table)


@pytest.mark.parametrize("size", [(96, 96), (160, 224)])
def test_resampling_to_another_size(size: tuple[int, int]) -> None:
    config = MViTConfig.variant("T", (224, 224), num_classes=5, cls_token=True)
    state = state_of(config)
    wanted = MViTConfig.variant("T", size, num_classes=5, cls_token=True)
    with torch.device("meta"):
        shapes = {n: v.shape for n, v in MViTClassifier(wanted).state_dict().items()}
    resized, report = convert_state_dict(state, "timm", input_size=size)
    ours = to_project("", resized).state
    assert {n: v.shape for n, v in ours.items()} == shapes
    for name, value in ours.items():
        if "rel_pos" in name:
            assert torch.equal(value, resample_table(state[name], value.shape[0]))
    changed = {n for n, value in ours.items() if value.shape != state[n].shape}
    assert {e.source for e in report.entries if e.status == "resampled"} == changed
    with pytest.raises(CheckpointError, match="pos_embed cannot be converted"):
        convert_state_dict(
            {**state, "pos_embed": torch.zeros(1, 3137, 96)}, "timm", input_size=size
        )


def test_resampling_clips() -> None:
    state = state_of(MViTConfig.variant("T", (16, 64, 64), num_classes=5))
    with torch.device("meta"):
        wanted = MViTClassifier(MViTConfig.variant("T", (32, 96, 96), num_classes=5)).state_dict()
    resized, _ = convert_state_dict(state, "slowfast", input_size=(32, 96, 96))
    assert {n: v.shape for n, v in resized.items()} == {n: v.shape for n, v in wanted.items()}
    table = state["blocks.3.attn.rel_pos_t"]
    assert torch.equal(resized["blocks.3.attn.rel_pos_t"], resample_table(table, 31))
    with pytest.raises(CheckpointError, match="must have 3 sizes"):
        convert_state_dict(state, "slowfast", input_size=(96, 96))


@pytest.mark.parametrize("variant", ["T", "S", "B", "L"])
@pytest.mark.parametrize("frames", [0, 8])
def test_layout_is_recognised(variant: str, frames: int) -> None:
    size = (frames, 64, 96) if frames else (64, 96)
    for in_att in (True, False):
        config = MViTConfig.variant(variant, size, dim_mul_in_att=in_att, num_classes=11)
        with torch.device("meta"):
            layout = read_layout(MViTClassifier(config).state_dict())
        assert (layout.variant, layout.input_size, layout.in_att) == (variant, size, in_att)
        assert (layout.rank, layout.num_classes) == (len(size), 11)


def exchange(
    theirs: nn.Module, fresh: nn.Module, ours: nn.Module, clip: Tensor, format: str, path: Path
) -> None:
    """Their weights in our model, and ours in theirs, through files: same outputs in float64."""
    randomize(theirs)
    write_checkpoint(path, theirs.state_dict(), format)
    assert detect("", theirs.state_dict()) == format
    report = load_checkpoint(ours, path)
    assert set(report.counts().items()) >= {("new", 0), ("unused", 0)}
    expected = outputs(theirs, clip)
    assert error(outputs(ours, clip), expected) < 1e-9
    randomize(ours, seed=9)
    back, _ = convert_state_dict(ours.state_dict(), format)
    fresh.load_state_dict(back, strict=True)
    changed = outputs(fresh, clip)
    assert error(changed, expected) > 1e-3
    assert error(outputs(ours, clip), changed) < 1e-9


@torch.no_grad()
def outputs(model: nn.Module, clip: Tensor) -> Tensor:
    out = model(clip)
    return torch.cat([v.flatten() for v in out.values()]) if isinstance(out, dict) else out


@pytest.mark.parametrize(("name", "variant", "size"), [("tiny", "T", 96), ("small", "S", 64)])
def test_timm_classes(tmp_path: Path, name: str, variant: str, size: int) -> None:
    timm = pytest.importorskip("timm", reason="install timm to run")
    pair = [
        timm.create_model(f"mvitv2_{name}", num_classes=13, img_size=size).double().eval()
        for _ in range(2)
    ]
    ours = MViTClassifier(MViTConfig.variant(variant, (size, size), num_classes=13))
    image = torch.randn(1, 3, size, size, dtype=torch.float64)
    exchange(*pair, ours.double().eval(), image, "timm", tmp_path / "x.pth")


def test_torchvision_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mvit = pytest.importorskip("torchvision.models.video.mvit", reason="install torchvision to run")
    build, sizes = mvit._mvit, {"spatial_size": (64, 64), "temporal_size": 4}
    # Its S is fixed to 16 frames of 224, which takes minutes here.
    monkeypatch.setattr(mvit, "_mvit", lambda **kwargs: build(**{**kwargs, **sizes}))
    pair = [mvit.mvit_v2_s(num_classes=13).double().eval() for _ in range(2)]
    ours = MViTClassifier(MViTConfig.variant("S", (4, 64, 64), num_classes=13)).double().eval()
    clip = torch.randn(1, 3, 4, 64, 64, dtype=torch.float64)
    exchange(*pair, ours, clip, "torchvision", tmp_path / "x.safetensors")


@pytest.mark.parametrize(("variant", "ends"), [("T", (0, 2, 7, 9)), ("S", (0, 2, 13, 15))])
def test_detectron2_class(tmp_path: Path, variant: str, ends: tuple[int, ...]) -> None:
    modeling = pytest.importorskip(
        "detectron2.modeling", reason="install detectron2 to run: make setup"
    )
    from mvitv2_d2 import MViT

    kwargs = {
        "depth": ends[-1] + 1,
        "last_block_indexes": ends,
        "norm_layer": partial(nn.LayerNorm, eps=1e-6),
    }
    pair = [modeling.MViT(**kwargs).double() for _ in range(2)]
    ours = MViT(**kwargs).double()
    image = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    exchange(*pair, ours, image, "detectron2", tmp_path / "x.pkl")
    assert not [n for n in ours.state_dict() if re.match("norm|head", n)]
