"""Models by name: every one of the zoo, its options, and what its ``info`` says."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from mvitv2_core import (
    CheckpointError,
    MViTClassifier,
    MViTConfig,
    create_model,
    create_transform,
    list_models,
    models,
    read_labels,
)
from mvitv2_core.checkpoint import load
from mvitv2_core.checkpoint.fit import fit_state_dict
from mvitv2_core.checkpoint.formats import to_project
from mvitv2_core.labels import LISTS
from mvitv2_core.model_info import OFFICIAL, official_info
from mvitv2_core.models import PLAIN
from tests.compare import randomize
from tests.golden_data import official_state_dicts

ZOO = [name for name, row in OFFICIAL.items() if row.config is not None]


@pytest.mark.parametrize("name", ZOO)
def test_every_official_model(name: str) -> None:
    """Built by name alone it is the published one, tensor by tensor."""
    with torch.device("meta"):
        model = create_model(name)
    config = OFFICIAL[name].config
    assert config is not None and model.config == config()
    info = model.info
    assert isinstance(model, MViTClassifier) and not model.training
    assert info == official_info(name) and info.name == name
    assert info.num_classes == model.head.projection.out_features
    assert info.input_size == model.config.input_size
    assert info.source == OFFICIAL[name].url and info.published == OFFICIAL[name].published
    assert "Apache-2.0" in info.licence and info.recipe == OFFICIAL[name].recipe
    assert info.labels is None or len(read_labels(info.labels)) == info.num_classes
    assert (info.task == "clip") == (len(info.input_size) == 3)


def test_infos_are_the_official_settings() -> None:
    """The figures of the official configs, by hand; tests/slowfast reads the files themselves."""

    def test(name: str) -> tuple[object, ...]:
        info = official_info(name)
        row = (info.frames, info.sampling_rate, info.resize, info.crop, info.views)
        return (*row, info.interpolation, info.sampling)

    for name in ("tiny", "small", "base", "large"):
        info = official_info(f"mvitv2_{name}_in1k")
        assert (info.resize, info.crop, info.interpolation) == (256, (224, 224), "bicubic")
        assert info.mean == (0.485, 0.456, 0.406) and info.std == (0.229, 0.224, 0.225)
        assert info.labels == "imagenet-1k" and info.seconds == 0
    assert official_info("mvitv2_huge_in21k").labels is None
    small, large = (224, 224), (312, 312)
    k400, ssv2 = ("area", "offset"), ("bilinear", "segments")
    assert test("mvitv2_small_16x4_k400") == (16, 4, 256, small, (5, 1), *k400)
    assert test("mvitv2_base_32x3_k400") == (32, 3, 256, small, (5, 1), *k400)
    assert test("mvitv2_large_40x3_k400") == (40, 3, 312, large, (5, 3), *k400)
    assert test("mvitv2_small_16x4_ssv2") == (16, 4, 224, small, (1, 3), *ssv2)
    assert test("mvitv2_base_32x3_ssv2") == (32, 3, 224, small, (1, 3), *ssv2)
    assert test("mvitv2_large_40x3_ssv2") == (40, 3, 312, large, (1, 3), *ssv2)
    assert official_info("mvitv2_small_16x4_k400").mean == (0.45,) * 3
    assert official_info("mvitv2_large_40x3_k400").mean == (0.485, 0.456, 0.406)
    assert official_info("mvitv2_large_40x3_ssv2").std == (0.225, 0.224, 0.229)
    assert official_info("mvitv2_small_16x4_k400").seconds == pytest.approx(64 / 30)


def test_lists() -> None:
    assert list_models() == [*PLAIN, *ZOO]
    assert list_models("*k400") == [name for name in ZOO if name.endswith("k400")]
    assert list_models("mvitv2_?iny") == ["mvitv2_tiny"] and list_models("none") == []
    assert not any("rcnn" in name for name in list_models())


@pytest.mark.parametrize("name", PLAIN)
def test_plain_variants(name: str) -> None:
    with torch.device("meta"):
        image, clip = create_model(name), create_model(name, frames=8, num_classes=7)
    assert image.config == MViTConfig.variant(PLAIN[name])
    assert clip.config == MViTConfig.variant(PLAIN[name], (8, 224, 224), num_classes=7)
    assert (image.info.task, clip.info.task) == ("image", "clip")
    assert (clip.info.frames, clip.info.resize, clip.info.num_classes) == (8, 256, 7)
    assert image.info.source == image.info.published == "" and image.info.labels is None


def test_options() -> None:
    with torch.device("meta"):
        model = create_model(
            "mvitv2_tiny_in1k",
            num_classes=12,
            input_size=(160, 192),
            drop_path_rate=0.3,
            act_checkpoint=True,
        )
        clip = create_model("mvitv2_small_16x4_k400", frames=32, input_size=320)
    assert model.config.input_size == (160, 192) and model.config.num_classes == 12
    assert model.config.blocks[-1].drop_path == 0.3 and model.act_checkpoint
    assert model.info.crop == (160, 192) and model.info.resize == int(256 / 224 * 160)
    # Neither the labels nor the figure are those of another task.
    assert model.info.labels is None and model.info.published == ""
    assert clip.info.input_size == (32, 320, 320) and clip.info.labels == "kinetics-400"


def official_file(name: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> MViTClassifier:
    """Random weights at the official names and shapes, where the download would put them."""
    config = OFFICIAL[name].config
    assert config is not None
    model = randomize(MViTClassifier(config()))
    monkeypatch.setenv("TORCH_HOME", str(folder))
    target = folder / "hub" / "checkpoints" / OFFICIAL[name].file
    target.parent.mkdir(parents=True)
    torch.save({"model_state": model.state_dict()}, target)
    return model.eval()


def test_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The official ones, a file, a name; other sizes, another head, an inflated clip model."""
    name = "mvitv2_tiny_in1k"
    official = official_file(name, monkeypatch, tmp_path)
    path = tmp_path / "hub" / "checkpoints" / OFFICIAL[name].file
    shapes = {n: list(v.shape) for n, v in official.state_dict().items()}
    assert shapes == official_state_dicts()["mvit/image_T_in1k"]["state"]
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = official(x)
        assert torch.equal(create_model(name, weights=True)(x), expected)
        assert torch.equal(create_model("mvitv2_tiny", weights=path)(x), expected)
        other = create_model(name, weights=str(path), num_classes=3, input_size=64)
        assert other(x).shape == (1, 3)
        inflated = create_model("mvitv2_tiny", weights=name, frames=4, num_classes=5, input_size=64)
    kept, given = other.state_dict(), official.state_dict()
    assert torch.equal(kept["blocks.0.attn.qkv.weight"], given["blocks.0.attn.qkv.weight"])
    assert kept["blocks.0.attn.rel_pos_h"].shape[0] == 31
    centre = inflated.patch_embed.proj.weight[:, :, 1]
    assert torch.equal(centre, given["patch_embed.proj.weight"])
    with pytest.raises(CheckpointError, match=r"head\.projection"):
        wrong = tmp_path / "wrong.pyth"
        torch.save({"model_state": other.state_dict()}, wrong)
        create_model(name, weights=wrong)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "mvitv2_tiny_in1"}, "did you mean mvitv2_tiny_in1k"),
        ({"name": "resnet50"}, "list_models"),
        ({"name": "mask_rcnn_mvitv2_t_3x"}, "is a detector"),
        ({"name": "mvitv2_tiny", "weights": True}, "mvitv2_tiny_in1k"),
        ({"name": "mvitv2_tiny_in1k", "frames": 16}, "weights='mvitv2_tiny_in1k'"),
        ({"name": "mvitv2_tiny", "input_size": (1, 2, 3)}, "input_size"),
        ({"name": "mvitv2_tiny", "input_size": 2}, "input_size"),
        ({"name": "mvitv2_tiny", "num_classes": 0}, "num_classes"),
        ({"name": "mvitv2_tiny", "drop_path_rate": 2.0}, "drop_path_rate"),
        ({"name": "mvitv2_tiny", "weights": 3}, "weights"),
        ({"name": ["mvitv2_tiny"]}, "name must be"),
    ],
)
def test_what_is_refused(arguments: dict, message: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        create_model(**arguments)


def advice(**arguments: object) -> str:
    """The error's message of ``create_model``, after the words that lead to a call."""
    with pytest.raises(ValueError, match=r"size that have: |starts from it: ") as caught:
        create_model(**arguments)
    return re.split("size that have: |starts from it: ", str(caught.value))[1]


def test_advised_calls_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call that a refusal names is made, on tensors without memory."""
    begun = []

    def loads(model: MViTClassifier, name: str, *, allow_new: Sequence[str]) -> None:
        config = OFFICIAL[name].config
        assert config is not None
        state = MViTClassifier(config()).state_dict()
        _, report = fit_state_dict(name, to_project(name, state), model.state_dict())
        assert not load._misplaced(report, allow_new, ())
        begun.append((name, model.config.rank))

    monkeypatch.setattr(models, "load_checkpoint", loads)
    named = {"create_model": create_model, "MViTConfig": MViTConfig, "load_checkpoint": loads}
    named |= {"MViTClassifier": MViTClassifier, "N": 5}
    images = [name for name in ZOO if official_info(name).task == "image"]
    with torch.device("meta"):
        for name in images:
            eval(advice(name=name, frames=4), named)
        assert "num_classes=7," in advice(name="mvitv2_tiny_in1k", frames=4, num_classes=7)
        for name in PLAIN:
            call, names = advice(name=name, weights=True).split(" with NAME ")
            for official in names.split(" or "):
                eval(call, named | {"NAME": official})
    assert begun[: len(images)] == [(name, 3) for name in images]
    assert sorted(name for name, _ in begun[len(images) :]) == sorted(ZOO)


def test_info_travels_with_the_model() -> None:
    model = create_model("mvitv2_tiny", input_size=64, num_classes=4)
    assert copy.deepcopy(model).info == model.info
    assert pickle.loads(pickle.dumps(model)).info == model.info
    assert "info" not in model.state_dict() and asdict(model.info)["resize"] == 73


def test_three_lines() -> None:
    """The README's: a model by name, its transform, its labels."""
    pixels = torch.randint(256, (3, 90, 120), dtype=torch.uint8)
    model = create_model("mvitv2_tiny_in1k")
    with torch.no_grad():
        probabilities = model(create_transform(model.info)(pixels)[None]).softmax(dim=-1)
    assert read_labels(model.info.labels)[probabilities.argmax()] in read_labels("imagenet-1k")
    info = official_info("mvitv2_small_16x4_k400")
    clip = torch.zeros(20, 90, 120, 3, dtype=torch.uint8)
    assert create_transform(info)(clip).shape == (5, 3, 16, 224, 224)


def test_labels(tmp_path: Path) -> None:
    assert [len(read_labels(name)) for name in LISTS] == [1000, 400, 80]
    imagenet, kinetics, coco = map(read_labels, LISTS)
    assert (imagenet[0], imagenet[281], imagenet[999]) == ("tench", "tabby", "toilet tissue")
    assert kinetics == sorted(kinetics) and (coco[0], coco[79]) == ("person", "toothbrush")
    (tmp_path / "a.txt").write_text("cat\n dog \n\n")
    (tmp_path / "a.json").write_text('["cat", "dog"]')
    (tmp_path / "b.json").write_text('{"1": "dog", "0": "cat"}')
    (tmp_path / "c.json").write_text('{"dog": 1, "cat": 0}')
    for name in ("a.txt", "a.json", "b.json", "c.json"):
        assert read_labels(tmp_path / name) == ["cat", "dog"], name
    (tmp_path / "gap.json").write_text('{"2": "dog", "0": "cat"}')
    (tmp_path / "number.json").write_text("3")
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "empty.txt").write_text("\n")
    for name in ("gap.json", "number.json", "broken.json", "empty.txt", "missing.txt"):
        with pytest.raises(ValueError, match=name):
            read_labels(tmp_path / name)


def test_imagenet_order() -> None:
    """By WordNet id, as facebookresearch/mvit numbers its folders: against timm's own tables."""
    timm = pytest.importorskip("timm.data", reason="timm has the WordNet ids")
    tables = Path(timm.__file__).parent / "_info"
    synsets = (tables / "imagenet_synsets.txt").read_text().split()
    rows = (tables / "imagenet_synset_to_lemma.txt").read_text().splitlines()
    lemmas = dict(row.split("\t", 1) for row in rows)
    assert synsets == sorted(synsets)
    pairs = zip(read_labels("imagenet-1k"), synsets, strict=True)
    other = [name for name, synset in pairs if name.lower() not in lemmas[synset].lower()]
    # Two that torchvision tells apart from classes of the same name.
    assert other == ["crane bird", "maillot tank suit"]
