"""The command ``mvitv2 predict`` as a person runs it, and files like those of the trainers."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from fvcore.common.config import CfgNode

from mvitv2_core import MViTClassifier, cli
from tests.compare import randomize
from tests.d2.running import datasets, run
from tests.slowfast_cfg import make_cfg

__all__ = ["datasets", "run"]
DATA = EntryPoint("data", "mvitv2_tools.data.command:add_data", cli.COMMANDS)
PREDICT = EntryPoint("predict", "mvitv2_tools.predict:add_predict", cli.COMMANDS)
TINY_CLIP = {
    "DATA.NUM_FRAMES": 4,
    "DATA.TRAIN_CROP_SIZE": 32,
    "DATA.INPUT_CHANNEL_NUM": [3],
    "MVIT.DEPTH": 3,
    "MVIT.EMBED_DIM": 16,
    "MVIT.NUM_HEADS": 1,
    "MVIT.PATCH_KERNEL": [3, 7, 7],
    "MVIT.PATCH_STRIDE": [2, 4, 4],
    "MVIT.PATCH_PADDING": [1, 3, 3],
    "MVIT.DIM_MUL": [[1, 2.0]],
    "MVIT.HEAD_MUL": [[1, 2.0]],
    "MVIT.POOL_KVQ_KERNEL": [3, 3, 3],
    "MVIT.POOL_KV_STRIDE_ADAPTIVE": [1, 2, 2],
    "MVIT.POOL_Q_STRIDE": [[0, 1, 1, 1], [1, 1, 2, 2], [2, 1, 1, 1]],
    "MVIT.USE_ABS_POS": False,
    "MVIT.REL_POS_SPATIAL": True,
    "MVIT.REL_POS_TEMPORAL": True,
    "MVIT.ZERO_DECAY_POS_CLS": False,
    "MODEL.NUM_CLASSES": 5,
    "MODEL.HEAD_ACT": "softmax",
}
TINY_STILL = {
    **TINY_CLIP,
    "DATA.NUM_FRAMES": 1,
    "MVIT.PATCH_2D": True,
    "MVIT.PATCH_KERNEL": [7, 7],
    "MVIT.PATCH_STRIDE": [4, 4],
    "MVIT.PATCH_PADDING": [3, 3],
    "MVIT.POOL_KVQ_KERNEL": [1, 3, 3],
    "MVIT.REL_POS_TEMPORAL": False,
}
# What PySlowFast's loaders read, as its defaults and the toy recipes have it.
LOADING = {
    "DATA": {
        "PATH_TO_DATA_DIR": "",
        "MEAN": [0.45, 0.45, 0.45],
        "STD": [0.225, 0.225, 0.225],
        "TEST_CROP_SIZE": 32,
        "TRAIN_JITTER_SCALES": [36, 40],
        "SAMPLING_RATE": 5,
        "TARGET_FPS": 30,
        "USE_OFFSET_SAMPLING": True,
        "REVERSE_INPUT_CHANNEL": False,
        "DECODING_BACKEND": "torchvision",
        "IN_VAL_CROP_RATIO": 0.875,
    },
    "TEST": {"DATASET": "kinetics", "NUM_ENSEMBLE_VIEWS": 2, "NUM_SPATIAL_CROPS": 3},
    "AUG": {"ENABLE": False},
}


class Result(NamedTuple):
    """What a run of ``predict`` gave."""

    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The JSON lines."""
        return [json.loads(line) for line in self.out.splitlines()]


class Predict:
    """``predict(MODEL, INPUT, ...)``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys
        monkeypatch.setattr(cli, "entry_points", lambda group: [PREDICT] * (group == PREDICT.group))

    def __call__(self, *arguments: object) -> Result:
        self.capsys.readouterr()
        code = cli.main(["predict", "--device", "cpu", *map(str, arguments)])
        captured = self.capsys.readouterr()
        return Result(code, captured.out, captured.err)


@pytest.fixture
def predict(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Predict:
    for package in ("PIL", "av", "tqdm", "matplotlib"):
        pytest.importorskip(package, reason="predict needs Pillow, av, tqdm and matplotlib")
    return Predict(monkeypatch, capsys)


@pytest.fixture
def data(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """``data(task, ...)``: ``mvitv2 data``; its exit code and what it printed."""
    for package in ("PIL", "av", "tqdm", "yaml"):
        pytest.importorskip(package, reason="data needs Pillow, av, tqdm and PyYAML")
    monkeypatch.setattr(cli, "entry_points", lambda group: [DATA] * (group == DATA.group))

    def call(*arguments: object) -> tuple[int, str]:
        capsys.readouterr()
        code = cli.main(["data", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return call


def loading_cfg(overrides: dict[str, Any], **changes: Any) -> CfgNode:
    """A whole config of the tiny models; ``DATA__MEAN=...`` changes a key."""
    cfg = make_cfg(overrides)
    for node, values in LOADING.items():
        cfg[node] = CfgNode({**cfg.get(node, {}), **values})
    for key, value in changes.items():
        node, name = key.split("__")
        cfg[node][name] = value
    return cfg


def slowfast_run(folder: Path, cfg: CfgNode, epoch: int = 3, seed: int = 0) -> MViTClassifier:
    """A run's folder as PySlowFast's trainer leaves it; returns the model of its last epoch."""
    from mvitv2_slowfast.config import read_config

    checkpoints = folder / "checkpoints"
    checkpoints.mkdir(parents=True)
    for number in range(1, epoch + 1):
        model = randomize(MViTClassifier(read_config(cfg)), seed=seed + number)
        content = {
            "epoch": number - 1,
            "model_state": model.state_dict(),
            "optimizer_state": {"state": {}, "param_groups": []},
            "cfg": cfg.dump(),
        }
        torch.save(content, checkpoints / f"checkpoint_epoch_{number:05d}.pyth")
    return model.eval()
