"""Weights as trainers leave them: under wrappers' names, beside averages, around another head."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mvitv2_core import CheckpointError, MViTClassifier, cli, load_checkpoint
from mvitv2_core.checkpoint import convert_state_dict, inflate_state_dict, read_checkpoint
from mvitv2_core.checkpoint.files import plain_state
from mvitv2_core.checkpoint.formats import DETECTOR
from tests.compare import randomize
from tests.structures import small

CONFIG = small("T")


def state_of(seed: int = 0, **options: Any) -> dict[str, Tensor]:
    return randomize(MViTClassifier(small("T", **options)), seed).state_dict()


def renamed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


def is_loaded(path: Path, state: dict[str, Tensor], **options: Any) -> bool:
    model = MViTClassifier(CONFIG)
    load_checkpoint(model, path, **options)
    return all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


WRAPPERS = ("module.", "model.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.")


@pytest.mark.parametrize("prefix", [*WRAPPERS, "model.module.", "model._orig_mod.module."])
def test_prefixes_of_wrappers(tmp_path: Path, prefix: str) -> None:
    state = state_of()
    torch.save({"state_dict": renamed(state, prefix)}, tmp_path / "x.ckpt")
    assert is_loaded(tmp_path / "x.ckpt", state)


def test_blocks_compiled_one_by_one(tmp_path: Path) -> None:
    """``torch.compile`` inside of the model: its part of the name stands in the middle."""
    state = state_of()
    inside = {name.replace("blocks.3.", "blocks.3._orig_mod."): v for name, v in state.items()}
    assert len(set(inside) - set(state)) > 10
    torch.save(inside, tmp_path / "x.pth")
    assert is_loaded(tmp_path / "x.pth", state)

    class Compiled(nn.Module):  # torch.compile's wrapper as far as names go
        def __init__(self, block: nn.Module) -> None:
            super().__init__()
            self._orig_mod = block

    model = MViTClassifier(CONFIG)
    model.blocks[3] = Compiled(model.blocks[3])
    for content in (state, inside):
        with torch.no_grad():
            model.patch_embed.proj.weight.zero_()
        report = load_checkpoint(model, content)
        assert set(model.state_dict()) == set(inside) == set(report.names("loaded"))
        assert all(torch.equal(v, inside[name]) for name, v in model.state_dict().items())


def test_prefixes_that_not_all_names_have_stay() -> None:
    zeros = torch.zeros(2)
    assert set(plain_state("", {"model.a": zeros, "b": zeros})) == {"model.a", "b"}
    assert set(plain_state("", {"module.a": zeros, "module.b": zeros})) == {"a", "b"}
    with pytest.raises(CheckpointError, match="'a' is there twice"):
        plain_state("", {"a": zeros, "_orig_mod.a": zeros})


def averaged(content: dict[str, Tensor]) -> dict[str, Tensor]:
    """As torch's AveragedModel saves itself."""
    return {"n_averaged": torch.tensor(7), **renamed(content, "module.")}


@pytest.mark.parametrize(
    "kind", ["timm", "deit", "torchvision", "d2go", "nested", "lightning", "nothing but it"]
)
def test_averages(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """ema=True takes the average, and nothing else does."""
    plain, average = state_of(1), state_of(2)
    arguments = argparse.Namespace(model="mvitv2_tiny", lr=0.1)
    path = tmp_path / "x.pth"
    contents: dict[str, tuple[str, dict[str, Any]]] = {
        "timm": (
            "state_dict_ema",
            {"epoch": 3, "state_dict": plain, "args": arguments, "state_dict_ema": average},
        ),
        "deit": ("model_ema", {"model": plain, "model_ema": average, "args": arguments}),
        "torchvision": ("model_ema", {"model": plain, "model_ema": averaged(average)}),
        "d2go": ("ema_state", {"model": plain, "ema_state": average, "iteration": 4}),
        "nested": ("ema", {"model": plain, "ema": {"module": average, "updates": 9}}),
        "lightning": (
            "state_dict",
            {
                "state_dict": renamed(average, "model."),
                "current_model_state": renamed(plain, "model."),
                "averaging_state": {"n_averaged": torch.tensor(7)},
            },
        ),
        "nothing but it": ("model_ema", {"model": {}, "model_ema": average}),
    }
    key, content = contents[kind]
    torch.save(content, path)
    assert is_loaded(path, average, ema=True)
    assert read_checkpoint(path, ema=True).nest == key
    if kind == "nothing but it":
        with pytest.raises(CheckpointError, match="'model' is a dict, not a tensor"):
            read_checkpoint(path)
    else:
        assert is_loaded(path, plain)
        assert read_checkpoint(path).ema == key
        assert cli.main(["inspect", str(path), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["ema_weights_under"] == key
        assert cli.main(["inspect", str(path)]) == 0
        assert f"ema weights under             {key}" in capsys.readouterr().out


def test_averages_that_are_not_there(tmp_path: Path) -> None:
    state = state_of()
    torch.save({"model_state": state, "epoch": 2, "model_ema": None}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="no EMA weights; it holds model_state, epoch"):
        load_checkpoint(MViTClassifier(CONFIG), tmp_path / "x.pth", ema=True)
    with pytest.raises(ValueError, match="ema=True needs a file"):
        load_checkpoint(MViTClassifier(CONFIG), state, ema=True)
    torch.save({"model": state, "model_ema": state, "ema": state}, tmp_path / "two.pth")
    with pytest.raises(CheckpointError, match="under each of model_ema, ema"):
        load_checkpoint(MViTClassifier(CONFIG), tmp_path / "two.pth", ema=True)


def test_backbone_of_another_classifier() -> None:
    """Another head, and no class token: only backbone=True takes the rest, and says so."""
    state = state_of(1, num_classes=9, cls_token=True)
    model = randomize(MViTClassifier(CONFIG), seed=4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match="; pass backbone=True to take the backbone alone"):
        load_checkpoint(model, state)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    report = load_checkpoint(model, state, backbone=True)
    assert set(report.names("new")) == {"head.projection.weight", "head.projection.bias"}
    for name, value in model.state_dict().items():
        assert torch.equal(value, (before if name.startswith("head") else state)[name]), name


def test_backbone_forgives_nothing_of_the_backbone() -> None:
    state = state_of(num_classes=9)
    missing = {name: v for name, v in state.items() if name != "blocks.2.norm1.bias"}
    stranger = {**state, "blocks.2.attn.extra": torch.zeros(2)}
    for broken, cause in ((missing, "missing in the file"), (stranger, "without a place")):
        for backbone in (False, True):
            with pytest.raises(CheckpointError, match=cause) as caught:
                load_checkpoint(MViTClassifier(CONFIG), broken, backbone=backbone)
            assert "backbone=True" not in str(caught.value)
    with pytest.raises(CheckpointError, match=r"missing in the file \(1\): cls_token"):
        load_checkpoint(MViTClassifier(small("T", cls_token=True)), state, backbone=True)


def test_backbone_of_a_detector() -> None:
    trunk, _ = convert_state_dict(state_of(1), "detectron2", prefix="backbone.bottom_up.")
    detector = {
        **trunk,
        "backbone.bottom_up.scale2_norm.weight": torch.ones(8),
        "backbone.fpn_lateral2.weight": torch.ones(2),
        "roi_heads.box_head.fc1.weight": torch.ones(2),
    }
    model = MViTClassifier(CONFIG)
    report = load_checkpoint(model, detector, backbone=True)
    assert set(report.names("unused")) == set(detector) - set(trunk) - {
        "backbone.bottom_up.scale2_norm.weight"
    } | {"scale2_norm.weight"}
    for name, value in trunk.items():
        assert torch.equal(model.state_dict()[name.removeprefix("backbone.bottom_up.")], value)


def test_backbone_of_a_cascade_detector(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its heads' BatchNorm counts in whole numbers, which is no fault of the backbone."""
    trunk, _ = convert_state_dict(state_of(1), "detectron2", prefix=DETECTOR)
    counter = "roi_heads.box_head.0.conv1.norm.num_batches_tracked"
    detector = {**trunk, counter: torch.tensor(9)}
    path, out = tmp_path / "model_final.pth", tmp_path / "out.pyth"
    torch.save({"model": detector}, path)
    for given in (path, detector, read_checkpoint(path).state):
        report = load_checkpoint(MViTClassifier(CONFIG), given, backbone=True)
        assert report.names("unused") == (counter,)
    assert cli.main(["convert", str(path), str(out), "--to", "image", "--quiet"]) == 0
    assert read_checkpoint(out).state.keys() == {name.removeprefix(DETECTOR) for name in trunk}
    # A detector's backbone has no last norm: as for any other, inflating it is refused for that.
    assert cli.main(["inflate", str(path), str(out), "--variant", "T", "--force"]) == 2
    assert "missing in the file (2): norm.weight, norm.bias" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match=r"missing in the file \(2\): norm\.weight"):
        inflate_state_dict(detector, small("T", 8))
    kernel = f"{DETECTOR}patch_embed.proj.weight"
    for wrong in (trunk[kernel].long(), trunk[kernel] / 0):
        with pytest.raises(CheckpointError, match=kernel):
            load_checkpoint(MViTClassifier(CONFIG), {**detector, kernel: wrong}, backbone=True)


@pytest.mark.parametrize("cls_token", [False, True])
def test_classifier_into_the_detectron2_backbone(cls_token: bool) -> None:
    """The official way: an ImageNet classifier's file into a detector's backbone."""
    pytest.importorskip("detectron2", reason="install detectron2 to run: make setup")
    from mvitv2_core import MViTConfig
    from mvitv2_d2 import MViT

    config = MViTConfig.variant("T", cls_token=cls_token)
    state = randomize(MViTClassifier(config)).state_dict()
    model = MViT(img_size=224, depth=10, last_block_indexes=(0, 2, 7, 9))
    with pytest.raises(CheckpointError, match="pass backbone=True"):
        load_checkpoint(model, state)
    report = load_checkpoint(model, state, backbone=True)
    assert {name.split(".")[0] for name in report.names("new")} == {
        f"scale{n}_norm" for n in (2, 3, 4, 5)
    }
    left = {"head", "norm"} | ({"cls_token"} if cls_token else set())
    assert {name.split(".")[0] for name in report.names("unused")} == left
    for name, value in model.state_dict().items():
        if not name.startswith("scale"):
            assert torch.equal(value, state[name].reshape(value.shape)), name
