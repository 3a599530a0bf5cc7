"""Runs the launcher as a person would: ``python -m mvitv2_slowfast.run_net`` in a subprocess."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
ROOT = os.environ.get("PYSLOWFAST_ROOT", "")
needs_pyslowfast = pytest.mark.skipif(
    not ROOT, reason="needs PySlowFast: set PYSLOWFAST_ROOT to a checkout"
)

TINY = {
    "DATA": {
        "NUM_FRAMES": 4,
        "SAMPLING_RATE": 4,
        "TRAIN_JITTER_SCALES": [64, 72],
        "TRAIN_CROP_SIZE": 64,
        "TEST_CROP_SIZE": 64,
        "INPUT_CHANNEL_NUM": [3],
    },
    "MVIT": {
        "ZERO_DECAY_POS_CLS": False,
        "USE_ABS_POS": False,
        "REL_POS_SPATIAL": True,
        "REL_POS_TEMPORAL": True,
        "DEPTH": 4,
        "NUM_HEADS": 1,
        "EMBED_DIM": 24,
        "PATCH_PADDING": [1, 3, 3],
        "DROPPATH_RATE": 0.1,
        "DIM_MUL": [[1, 2.0], [3, 2.0]],
        "HEAD_MUL": [[1, 2.0], [3, 2.0]],
        "POOL_KVQ_KERNEL": [3, 3, 3],
        "POOL_KV_STRIDE_ADAPTIVE": [1, 4, 4],
        "POOL_Q_STRIDE": [[0, 1, 1, 1], [1, 1, 2, 2], [2, 1, 1, 1], [3, 1, 2, 2]],
        "DIM_MUL_IN_ATT": True,
        "RESIDUAL_POOLING": True,
    },
    "MODEL": {"NUM_CLASSES": 6, "ARCH": "mvit", "MODEL_NAME": "MViTv2", "DROPOUT_RATE": 0.0},
    "TRAIN": {
        "ENABLE": True,
        "DATASET": "kinetics",
        "BATCH_SIZE": 4,
        "EVAL_PERIOD": 1,
        "CHECKPOINT_PERIOD": 1,
    },
    "TEST": {
        "ENABLE": True,
        "DATASET": "kinetics",
        "BATCH_SIZE": 6,
        "NUM_SPATIAL_CROPS": 3,
        "NUM_ENSEMBLE_VIEWS": 2,
    },
    "SOLVER": {"OPTIMIZING_METHOD": "adamw", "BASE_LR": 1e-3, "MAX_EPOCH": 1},
    "DATA_LOADER": {"NUM_WORKERS": 0, "PIN_MEMORY": False},
    "NUM_GPUS": 0,
    "LOG_MODEL_INFO": False,
    "LOG_PERIOD": 1,
}


def write_config(folder: Path, *changes: dict, data: Path | None = None) -> Path:
    """A YAML file of ``TINY`` with changes node by node; output goes to ``folder``/out."""
    config = {k: dict(v) if isinstance(v, dict) else v for k, v in TINY.items()}
    config["OUTPUT_DIR"] = str(folder / "out")
    if data is not None:
        config["DATA"] |= {"PATH_TO_DATA_DIR": str(data), "PATH_PREFIX": str(data)}
    for change in changes:
        for node, values in change.items():
            config[node] = (
                {**config.get(node, {}), **values} if isinstance(values, dict) else values
            )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def python(
    *arguments: str, cwd: Path, root: str = ROOT, timeout: float = 300
) -> subprocess.CompletedProcess:
    """``python`` with this repository importable and PySlowFast at ``root`` ("" for none).

    It runs in ``cwd``, a folder for what PySlowFast leaves where it is started (AVA's CSV files).
    """
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    environment.pop("PYSLOWFAST_ROOT", None)
    if root:
        environment["PYSLOWFAST_ROOT"] = root
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def run_net(config: Path, *options: str, cwd: Path | None = None) -> str:
    """Run the launcher on ``config`` with ``--opts``; returns its output, which must succeed."""
    opts = ["--opts", *options] if options else []
    launcher = ("-m", "mvitv2_slowfast.run_net", "--cfg", str(config))
    result = python(*launcher, *opts, cwd=cwd or config.parent)
    output = result.stdout + result.stderr
    assert result.returncode == 0, output[-4000:]
    return output


def stats(output: str, kind: str) -> list[dict]:
    """PySlowFast's ``json_stats`` of one kind, such as "train_epoch", in order.

    Its final test statistics stand under ``split`` ("test_final"), AVA's under ``mode``.
    """
    found = [json.loads(line) for line in re.findall(r"json_stats: (\{.*\})", output)]
    return [e for e in found if kind in (e.get("_type"), e.get("split"), e.get("mode"))]
