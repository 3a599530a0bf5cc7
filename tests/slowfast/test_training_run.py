"""Training keys through PySlowFast's unmodified trainer, as subprocesses of the launcher."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.slowfast import toy
from tests.slowfast.launch import needs_pyslowfast, run_net, stats, write_config

pytestmark = [needs_pyslowfast, pytest.mark.slow]
KEYS = {
    "MVITV2": {
        **{"EMA_DECAY": 0.5, "ACCUMULATE": 2, "BFLOAT16": True, "DETERMINISTIC": True},
        "VAL_SAMPLE": 4,
    },
    "SOLVER": {"LAYER_DECAY": 0.8, "CLIP_GRAD_L2NORM": 1.0, "ZERO_WD_1D_PARAM": True},
    "MODEL": {"ACT_CHECKPOINT": True},
    "TENSORBOARD": {"ENABLE": True},
    # With repeated augmentation the model sees 8 clips a batch, 2 of each of 4 videos.
    "AUG": {"ENABLE": True, "NUM_SAMPLE": 2},
}


@pytest.fixture(scope="module")
def kinetics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kinetics") / "data"
    toy.make_kinetics(folder)
    return folder


def saved(folder: Path, epoch: int) -> dict[str, Any]:
    path = folder / f"out/checkpoints/checkpoint_epoch_{epoch:05d}.pyth"
    return torch.load(path, weights_only=True)


def test_everything_at_once(kinetics: Path, tmp_path: Path) -> None:
    """Trained, resumed, validated and tested on the average; a second run is equal."""
    config = write_config(tmp_path / "a", KEYS, data=kinetics)
    first = run_net(config)
    content = saved(tmp_path / "a", 1)
    optimizer = content["optimizer_state"]
    # 12 videos, 4 a batch, 2 batches a step: one step, and one batch that waits.
    assert {int(state["step"]) for state in optimizer["state"].values()} == {1}
    assert len({group["layer_decay"] for group in optimizer["param_groups"]}) == 4 + 2
    assert content["model_ema"].keys() == content["model_state"].keys()
    assert list((tmp_path / "a/out").glob("runs-*/events.out.tfevents.*"))
    ((train,), (val,), (test,)) = (
        stats(first, k) for k in ("train_epoch", "val_epoch", "test_final")
    )
    assert 1.0 < train["loss"] < 3.0
    assert val["top1_err"] in (0.0, 25.0, 50.0, 75.0, 100.0)  # of four clips
    assert 0 <= float(test["top1_acc"]) <= 100

    again = write_config(tmp_path / "b", KEYS, data=kinetics)
    run_net(again, "TEST.ENABLE", "False")
    twin = saved(tmp_path / "b", 1)
    for key in ("model_state", "model_ema"):
        assert all(torch.equal(value, twin[key][name]) for name, value in content[key].items())

    resumed = run_net(config, "SOLVER.MAX_EPOCH", "3", "TEST.ENABLE", "False")
    assert [entry["epoch"] for entry in stats(resumed, "train_epoch")] == ["2/3", "3/3"]
    content = saved(tmp_path / "a", 3)
    steps = {int(state["step"]) for state in content["optimizer_state"]["state"].values()}
    assert steps == {4}  # six batches after one step
    names = content["model_state"]
    assert any(not torch.equal(names[n], value) for n, value in content["model_ema"].items())

    # A test of the average is a test of a file that holds it as its weights.
    averaged = tmp_path / "averaged.pyth"
    torch.save({**content, "model_state": content["model_ema"]}, averaged)
    last = tmp_path / "a/out/checkpoints/checkpoint_epoch_00003.pyth"
    results = []
    for file, decay in ((last, "0.5"), (averaged, "0.0")):
        options = ["TRAIN.ENABLE", "False", "TEST.CHECKPOINT_FILE_PATH", str(file)]
        options += ["MVITV2.EMA_DECAY", decay, "TEST.SAVE_RESULTS_PATH", "views.pkl"]
        run_net(config, *options)
        with open(tmp_path / "a/out/views.pkl", "rb") as file:
            results.append(pickle.load(file)[0])
    assert results[0].shape == (6, 6) and torch.equal(*results)


def test_repeated_augmentation(kinetics: Path, tmp_path: Path) -> None:
    """Two augmented clips of every video stand side by side, with their label twice."""
    from mvitv2_slowfast.plugin import connect

    connect()
    from slowfast.config.defaults import get_cfg
    from slowfast.datasets import loader

    cfg = get_cfg()
    cfg.merge_from_file(str(write_config(tmp_path, {"AUG": KEYS["AUG"]}, data=kinetics)))
    (clips,), labels, index, *_ = next(iter(loader.construct_loader(cfg, "train")))
    assert clips.shape == (8, 3, 4, 64, 64)
    assert labels.tolist()[::2] == labels.tolist()[1::2]
    assert index.tolist()[::2] == index.tolist()[1::2]
    assert all(not torch.equal(clips[i], clips[i + 1]) for i in range(0, 8, 2))


def test_ava(tmp_path: Path) -> None:
    """The RoI head trains in float32 behind a bfloat16 trunk, and its average is tested."""
    data = tmp_path / "data"
    toy.make_ava(data)
    ava = {
        "TRAIN": {"DATASET": "ava", "BATCH_SIZE": 2},
        "TEST": {"DATASET": "ava", "BATCH_SIZE": 1},
        "DETECTION": {"ENABLE": True, "ALIGNED": True, "SPATIAL_SCALE_FACTOR": 16},
        "MODEL": {"NUM_CLASSES": 80, "LOSS_FUNC": "bce", "HEAD_ACT": "sigmoid"},
        "MVITV2": {"EMA_DECAY": 0.5, "ACCUMULATE": 2, "BFLOAT16": True},
        "AVA": {
            "FRAME_DIR": str(data / "frames"),
            "FRAME_LIST_DIR": str(data / "lists"),
            "ANNOTATION_DIR": str(data / "annotations"),
        },
    }
    output = run_net(write_config(tmp_path, ava))
    for mode in ("val", "test"):
        (found,) = [entry["map"] for entry in stats(output, mode) if "map" in entry]
        assert 0 <= found <= 1
    assert "model_ema" in saved(tmp_path, 1)
