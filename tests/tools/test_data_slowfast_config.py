"""Configs for PySlowFast as its own reader takes them, and what a training starts from."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mvitv2_core import create_model
from mvitv2_tools.data.slowfast_config import (
    AVA,
    IMAGES,
    VIDEO,
    _quoted,
    labels_text,
    make_plan,
    yaml_text,
)
from mvitv2_tools.data.start import check_start
from tests.slowfast.launch import needs_pyslowfast

RECIPES = {"kinetics": VIDEO, "imagenet": IMAGES, "ava": AVA}


def options(out: Path, **others: object) -> argparse.Namespace:
    plain = {"batch": 8, "epochs": None, "weights": "", "check_only": False, "force": False}
    return argparse.Namespace(out=out, **{**plain, **others})


def text_of(dataset: str, model: str, out: Path, **others: object) -> str:
    given = (RECIPES[dataset][model], dataset, ["a", "b"], 64, options(out, **others))
    return yaml_text(make_plan(*given, gpus=0, data=out, keys={}), "command", "task")


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


def test_weights_are_looked_at_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative file becomes absolute; a folder is refused by its newest file, as no file is."""
    run = tmp_path / "run/checkpoints"
    run.mkdir(parents=True)
    file = run / "checkpoint_epoch_00003.pyth"
    torch.save({"model_state": create_model("mvitv2_tiny", num_classes=5).state_dict()}, file)
    (tmp_path / "broken.pyth").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    given = options(tmp_path / "out", weights="run/checkpoints/checkpoint_epoch_00003.pyth")
    check_start(given)
    assert given.weights == str(file)
    for weights, message in (
        ("run", r"--weights run must be a file, such as .*checkpoint_epoch_00003.pyth"),
        ("broken.pyth", "broken.pyth"),
        ("gone.pyth", "gone.pyth"),
    ):
        with pytest.raises(ValueError, match=message):
            check_start(options(tmp_path / "out", weights=weights))
    for weights in ("", None, "mvitv2://mvitv2_tiny_in1k", "mvitv2_tiny_in1k"):
        check_start(options(tmp_path / "out", weights=weights))


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
