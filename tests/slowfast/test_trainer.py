"""PySlowFast's unmodified trainer through the launcher, as subprocesses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from tests.slowfast import toy
from tests.slowfast.launch import ROOT, TINY, needs_pyslowfast, python, run_net, stats, write_config

pytestmark = needs_pyslowfast
AVA_ITEMS = {
    "TRAIN": {"DATASET": "ava", "BATCH_SIZE": 2},
    "TEST": {"DATASET": "ava", "BATCH_SIZE": 1},
    "DETECTION": {"ENABLE": True, "ALIGNED": True, "SPATIAL_SCALE_FACTOR": 16},
    "MODEL": {"NUM_CLASSES": 80, "LOSS_FUNC": "bce", "HEAD_ACT": "sigmoid"},
}


@pytest.fixture(scope="module")
def kinetics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kinetics") / "data"
    toy.make_kinetics(folder)
    return folder


@pytest.fixture(scope="module")
def trained(kinetics: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Config and output of one epoch of training, validation, and a test with 2x3 views."""
    config = write_config(tmp_path_factory.mktemp("trained"), data=kinetics)
    return config, run_net(config)


def test_train_validate_test(trained: tuple[Path, str]) -> None:
    config, output = trained
    (train,), (val,), (test,) = (
        stats(output, kind) for kind in ("train_epoch", "val_epoch", "test_final")
    )
    assert 1.0 < train["loss"] < 3.0  # six classes: log 6 is 1.79
    assert 0 <= val["top1_err"] <= 100 and 0 <= float(test["top1_acc"]) <= 100
    # 6 clips, 2 x 3 views each, 6 a batch: 6 batches.
    assert "Testing model for 6 iterations" in output
    saved = torch.load(
        config.parent / "out/checkpoints/checkpoint_epoch_00001.pyth", weights_only=True
    )
    assert "blocks.3.attn.rel_pos_t" in saved["model_state"]
    assert output.count("read with PyAV") <= 1  # each cure is logged once


@pytest.mark.slow
def test_resume_and_test_only(trained: tuple[Path, str]) -> None:
    config, first = trained
    output = run_net(config, "SOLVER.MAX_EPOCH", "2", "TEST.ENABLE", "False")
    assert [entry["epoch"] for entry in stats(output, "train_epoch")] == ["2/2"]
    assert "Load from last checkpoint" in output
    one = config.parent / "out/checkpoints/checkpoint_epoch_00001.pyth"
    output = run_net(config, "TRAIN.ENABLE", "False", "TEST.CHECKPOINT_FILE_PATH", str(one))
    assert stats(output, "train_epoch") == []
    assert stats(output, "test_final") == stats(first, "test_final")


@pytest.mark.slow
def test_imagenet_training(tmp_path: Path) -> None:
    toy.make_imagenet(tmp_path / "data")
    image = {
        "DATA": {"NUM_FRAMES": 1, "MEAN": [0.485, 0.456, 0.406], "STD": [0.229, 0.224, 0.225]},
        "MVIT": {
            "PATCH_2D": True,
            "PATCH_KERNEL": [7, 7],
            "PATCH_STRIDE": [4, 4],
            "PATCH_PADDING": [3, 3],
            "CLS_EMBED_ON": False,
            "REL_POS_TEMPORAL": False,
            "POOL_KVQ_KERNEL": [1, 3, 3],
        },
        "TRAIN": {"DATASET": "imagenet"},
        "TEST": {"DATASET": "imagenet", "NUM_SPATIAL_CROPS": 1, "NUM_ENSEMBLE_VIEWS": 1},
        "AUG": {"ENABLE": True},
    }
    output = run_net(write_config(tmp_path, image, data=tmp_path / "data"), "TEST.ENABLE", "False")
    assert len(stats(output, "train_epoch")) == len(stats(output, "val_epoch")) == 1


def average_precisions(output: str, mode: str) -> list[float]:
    found = [entry["map"] for entry in stats(output, mode) if "map" in entry]
    assert all(0 <= value <= 1 for value in found)
    return found


@pytest.mark.slow
def test_ava_training_full_and_centre_testing(tmp_path: Path) -> None:
    toy.make_ava(tmp_path / "data")
    data = tmp_path / "data"
    folders = {
        "FRAME_DIR": str(data / "frames"),
        "FRAME_LIST_DIR": str(data / "lists"),
        "ANNOTATION_DIR": str(data / "annotations"),
    }
    config = write_config(tmp_path, AVA_ITEMS, {"AVA": folders})
    output = run_net(config)
    assert len(average_precisions(output, "val")) == 1
    assert len(average_precisions(output, "test")) == 1
    # A training of no epochs is one validation, on centre crops, of every box.
    checkpoint = tmp_path / "out/checkpoints/checkpoint_epoch_00001.pyth"
    centre = ["TRAIN.CHECKPOINT_FILE_PATH", str(checkpoint), "TRAIN.AUTO_RESUME", "False"]
    centre += ["TRAIN.CHECKPOINT_EPOCH_RESET", "True", "SOLVER.MAX_EPOCH", "0"]
    centre += ["AVA.FULL_TEST_ON_VAL", "True", "TEST.ENABLE", "False"]
    output = run_net(config, *centre)
    assert len(average_precisions(output, "val")) == 1
    assert stats(output, "train_epoch") == []


@pytest.mark.slow
def test_other_models_still_run(kinetics: Path, tmp_path: Path) -> None:
    upstream = write_config(tmp_path, {"MODEL": {"MODEL_NAME": "MViT"}}, data=kinetics)
    assert len(stats(run_net(upstream), "test_final")) == 1
    slowfast = Path(ROOT) / "configs/Kinetics/SLOWFAST_4x16_R50.yaml"
    nodes = ("TRAIN", "TEST", "DATA_LOADER")
    options = [f"{n}.{k} {v}" for n in nodes for k, v in TINY[n].items()]
    options += ["NUM_GPUS 0", "LOG_MODEL_INFO False", "RESNET.WIDTH_PER_GROUP 8"]
    options += ["SOLVER.MAX_EPOCH 1", "MODEL.NUM_CLASSES 6", "BN.USE_PRECISE_STATS False"]
    options += [f"DATA.PATH_TO_DATA_DIR {kinetics}", f"DATA.PATH_PREFIX {kinetics}"]
    options += ["DATA.TRAIN_CROP_SIZE 64", "DATA.TEST_CROP_SIZE 64", "DATA.SAMPLING_RATE 1"]
    options += ["DATA.TRAIN_JITTER_SCALES [64,72]", f"OUTPUT_DIR {tmp_path}/slowfast"]
    output = run_net(slowfast, *" ".join(options).split(), cwd=tmp_path)
    assert len(stats(output, "train_epoch")) == 1
    assert len(stats(output, "test_final")) == 1


PROBE = """
import sys

def probe(cfg):
    import torch
    import slowfast.utils.distributed as du
    from slowfast.models.build import MODEL_REGISTRY

    du.init_distributed_training(cfg)
    rank, name = torch.distributed.get_rank(), MODEL_REGISTRY.get("MViTv2").__name__
    rows = du.cat_all_gather(torch.full((1, 2), float(rank)), local=True).tolist()
    torch.cuda.synchronize()
    sys.__stdout__.write(f"rank {rank} of {du.get_local_size()} sees {name} {rows}\\n")
    sys.__stdout__.flush()
"""
# The launcher as the main module, with the probe in the place of PySlowFast's training job.
DRIVER = """
import runpy
from mvitv2_slowfast.plugin import connect
connect()
import vision.fair.slowfast.tools.run_net as upstream
from probe import probe

upstream.train = probe
runpy.run_module("mvitv2_slowfast.run_net", run_name="__main__", alter_sys=True)
"""


@pytest.mark.slow
def test_two_ranks_see_registration_and_cures(tmp_path: Path) -> None:
    """Two gloo ranks through PySlowFast's unmodified ``launch_job``; the probe imports nothing
    of this project, so what it sees comes from the launcher's re-import in each rank."""
    (tmp_path / "probe.py").write_text(PROBE)
    (tmp_path / "driver.py").write_text(DRIVER)
    ranks = {"NUM_GPUS": 2, "DIST_BACKEND": "gloo", "TEST": {"ENABLE": False}}
    config = write_config(tmp_path, ranks)
    meet = f"file://{tmp_path}/meet"
    arguments = (str(tmp_path / "driver.py"), "--cfg", str(config), "--init_method", meet)
    result = python(*arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    lines = sorted(re.findall(r"rank \d of 2 sees .*", result.stdout))
    assert lines == [f"rank {r} of 2 sees MViTv2 [[0.0, 0.0], [1.0, 1.0]]" for r in (0, 1)]
