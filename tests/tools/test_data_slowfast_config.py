"""Configs for PySlowFast as its own reader takes them, and what a training starts from."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mvitv2_core import MViTClassifier, MViTConfig, create_model
from mvitv2_core.checkpoint import convert_state_dict
from mvitv2_core.checkpoint.describe import read_layout
from mvitv2_core.recipes import recipe_path
from mvitv2_tools.data.slowfast_config import _quoted, labels_text, make_plan, yaml_text
from mvitv2_tools.data.slowfast_recipes import AVA, IMAGES, VIDEO, Recipe
from mvitv2_tools.data.start import check_start
from tests.slowfast.launch import needs_pyslowfast

RECIPES = {"kinetics": VIDEO, "imagenet": IMAGES, "ava": AVA}


def options(out: Path, **others: object) -> argparse.Namespace:
    plain = {"batch": 8, "epochs": None, "weights": "", "check_only": False, "force": False}
    return argparse.Namespace(out=out, **{**plain, **others})


def text_of(dataset: str, model: str, out: Path, **others: object) -> str:
    given = (RECIPES[dataset][model], dataset, ["a", "b"], 64, options(out, **others))
    return yaml_text(make_plan(*given, gpus=0, data=out, keys={}), "command", "task")


@pytest.mark.parametrize(("gpus", "clips"), [(0, 1), (1, 1), (4, 4)])
def test_ava_is_tested_on_a_clip_for_each_gpu(gpus: int, clips: int, tmp_path: Path) -> None:
    """PySlowFast's test asserts it, after the training."""
    for dataset, expected in (("ava", clips), ("kinetics", 8)):
        given = (RECIPES[dataset]["S"], dataset, ["a", "b"], 64, options(tmp_path))
        plan = make_plan(*given, gpus=gpus, data=tmp_path, keys={})
        keys = yaml.safe_load(yaml_text(plan, "command", "task"))
        assert keys["TEST"]["BATCH_SIZE"] == expected


@pytest.mark.parametrize("value", [0.0, 1.0, 10.0, 0.2, 1e-5, 2.5e-12, 123456789.0])
def test_floats_stay_floats(value: float) -> None:
    """yacs takes no 10 for 0.0, and YAML 1.1 reads 1e-05 as a text."""
    read = yaml.safe_load(f"x: {_quoted(value)}")["x"]
    assert isinstance(read, float) and read == pytest.approx(value, rel=1e-5)


def read_by_pyslowfast(text: str, folder: Path) -> Any:
    from mvitv2_slowfast.plugin import connect

    connect()
    from slowfast.utils.parser import load_config

    file = folder / "config.yaml"
    file.write_text(text)
    args = argparse.Namespace(opts=[], num_shards=1, shard_id=0, init_method="")
    return load_config(args, str(file))


@needs_pyslowfast
@pytest.mark.parametrize("dataset", RECIPES)
def test_pyslowfast_reads_it(dataset: str, tmp_path: Path) -> None:
    for model in RECIPES[dataset]:
        for epochs in (None, 1, 2, 10, 100):
            cfg = read_by_pyslowfast(text_of(dataset, model, tmp_path, epochs=epochs), tmp_path)
            wanted = epochs or cfg.SOLVER.MAX_EPOCH
            assert (wanted, wanted / 10) == (cfg.SOLVER.MAX_EPOCH, cfg.SOLVER.WARMUP_EPOCHS)


@needs_pyslowfast
@pytest.mark.parametrize("weights", ["", "mvitv2://mvitv2_small_in1k", None])
def test_weights_are_those_asked_for(weights: str | None, tmp_path: Path) -> None:
    """AVA's recipes name Kinetics weights: none, or an image model's, take their place."""
    cfg = read_by_pyslowfast(text_of("ava", "S", tmp_path, weights=weights), tmp_path)
    clip = AVA["S"].weights if weights is None else ""
    assert clip == cfg.TRAIN.CHECKPOINT_FILE_PATH
    assert (weights or "") == cfg.MVITV2.IMAGE_CHECKPOINT


@pytest.mark.parametrize("dataset", RECIPES)
def test_a_recipes_model_is_read(dataset: str) -> None:
    from mvitv2_slowfast.config_file import read_config_file

    for recipe in RECIPES[dataset].values():
        with torch.device("meta"):
            model = MViTClassifier(read_config_file(recipe_path(f"configs/{recipe.file}")))
        held = replace(read_layout(model.state_dict()), num_classes=None)
        assert held == recipe.layout, recipe.file
        if recipe.weights:
            check_start(options(Path("out"), weights=recipe.weights), recipe, 0)


def test_mixup_needs_two_on_each_gpu(tmp_path: Path) -> None:
    """PySlowFast stops at one; Kinetics' recipes take two clips of each video."""
    for recipe, least in ((IMAGES["T"], 2), (IMAGES["toy"], 1), (VIDEO["S"], 1), (AVA["S"], 1)):
        for gpus in (0, 1, 4):
            batch = least * max(1, gpus)
            check_start(options(tmp_path, batch=batch, weights=None), recipe, gpus)
            if least == 2:
                with pytest.raises(ValueError, match=f"--batch must be {batch} or more, got"):
                    check_start(options(tmp_path, batch=batch // 2, weights=None), recipe, gpus)


def test_weights_are_looked_at_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative file becomes absolute, an official name gets its prefix; a folder is refused by
    its newest file, as no file is."""
    run, tiny = tmp_path / "run/checkpoints", IMAGES["T"]
    run.mkdir(parents=True)
    file = run / "checkpoint_epoch_00003.pyth"
    torch.save({"model_state": create_model("mvitv2_tiny", num_classes=5).state_dict()}, file)
    (tmp_path / "broken.pyth").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)

    def taken(weights: str | None) -> str | None:
        given = options(tmp_path / "out", weights=weights)
        check_start(given, tiny, 0)
        return given.weights

    assert taken("run/checkpoints/checkpoint_epoch_00003.pyth") == str(file)
    for weights, message in (
        ("run", r"--weights run must be a file, such as .*checkpoint_epoch_00003.pyth"),
        ("broken.pyth", "broken.pyth"),
        ("gone.pyth", "gone.pyth"),
    ):
        with pytest.raises(ValueError, match=message):
            taken(weights)
    official = "mvitv2://mvitv2_tiny_in1k"
    assert [taken(w) for w in ("", None, official, "mvitv2_tiny_in1k")] == [
        *("", None, official, official)
    ]


def test_weights_that_the_trainer_could_not_take(tmp_path: Path) -> None:
    """Another size, clips for pictures, a detector's; of clips what PySlowFast cannot read."""

    def saved(name: str, frames: int | None = 16, to: str = "slowfast", prefix: str = "") -> str:
        size = (224, 224) if frames is None else (frames, 224, 224)
        with torch.device("meta"):
            model = MViTClassifier(MViTConfig.variant("S", size))
        small = {name: torch.zeros(1).expand(t.shape) for name, t in model.state_dict().items()}
        state, _ = convert_state_dict(small, to, prefix=prefix)
        torch.save({"model_state": state} if "bare" not in name else state, tmp_path / name)
        return str(tmp_path / name)

    def take(weights: str, recipe: Recipe) -> None:
        check_start(options(tmp_path / "out", weights=weights), recipe, 0)

    clip, still = saved("clip.pyth"), saved("still.pyth", None, "image")
    for weights, recipe in ((clip, VIDEO["S"]), (still, VIDEO["S"]), (still, IMAGES["S"])):
        take(weights, recipe)
    for weights, recipe, message in (
        (clip, VIDEO["B"], "be of the model's size: it holds MViTv2-S for clips of 16x224x224"),
        (still, IMAGES["T"], "be of the model's size: it holds MViTv2-S .* MViTv2-T for images"),
        ("mvitv2_small_16x4_k400", VIDEO["B"], "--weights mvitv2://mvitv2_small_16x4_k400 must be"),
        ("mvitv2_large_in21k", IMAGES["L"], "MViTv2-L for images .* growing in the MLP"),
        ("mask_rcnn_mvitv2_t_3x", IMAGES["T"], "a classifier's: it is a detector's"),
        (saved("d2.pyth", None, "detectron2"), IMAGES["S"], "a classifier's: it has no last norm"),
        (clip, IMAGES["S"], "convert .*clip.pyth OUT.pyth --to image"),
        (saved("bare.pyth"), AVA["S"], "PySlowFast's own checkpoint .* --to slowfast`"),
        (saved("vision.pyth", to="torchvision"), VIDEO["S"], "--to slowfast`"),
        (saved("ddp.pyth", prefix="module."), VIDEO["S"], "--to slowfast`"),
        (saved("short.pyth", 8), VIDEO["S"], "--to slowfast --frames 16 --size 224x224`"),
    ):
        with pytest.raises(ValueError, match=message):
            take(weights, recipe)


def test_a_head_of_other_classes_is_told_of(tmp_path: Path) -> None:
    file = tmp_path / "run/checkpoints/checkpoint_epoch_00003.pyth"
    file.parent.mkdir(parents=True)
    file.touch()

    def said(*classes: str) -> str:
        given = options(tmp_path / "out", weights=str(file))
        arguments = (IMAGES["toy"], "imagenet", classes, 64, given, 0, tmp_path, {})
        return make_plan(*arguments).summary

    assert "note" not in said("a", "b")
    (tmp_path / "classes.txt").write_text(labels_text(["a", "b"]))
    assert "note" not in said("a", "b") and "note" not in said(*"abcdef")
    assert "is of the classes a, b, unused 2, unused 3, unused 4" in said("a", "c")
