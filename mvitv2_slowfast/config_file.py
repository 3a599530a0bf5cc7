"""PySlowFast config files for core's command: ``mvitv2 inflate --config FILE.yaml``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mvitv2_core.config import MViTConfig

from .config import read_config
from .plugin import connect

# What PySlowFast's slowfast/config/defaults.py has for what shapes a model, where there is no
# PySlowFast to ask.
DEFAULTS: dict[str, dict[str, Any]] = {
    "MODEL": {"NUM_CLASSES": 400, "DROPOUT_RATE": 0.5},
    "DATA": {"NUM_FRAMES": 8, "TRAIN_CROP_SIZE": 224, "INPUT_CHANNEL_NUM": [3, 3]},
    "MVIT": {
        "CLS_EMBED_ON": True,
        "DEPTH": 16,
        "DIM_MUL": [],
        "DIM_MUL_IN_ATT": False,
        "DROPOUT_RATE": 0.0,
        "DROPPATH_RATE": 0.1,
        "EMBED_DIM": 96,
        "HEAD_INIT_SCALE": 1.0,
        "HEAD_MUL": [],
        "MLP_RATIO": 4.0,
        "NUM_HEADS": 1,
        "PATCH_2D": False,
        "PATCH_KERNEL": [3, 7, 7],
        "PATCH_PADDING": [2, 4, 4],
        "PATCH_STRIDE": [2, 4, 4],
        "POOL_KVQ_KERNEL": None,
        "POOL_KV_STRIDE": [],
        "POOL_KV_STRIDE_ADAPTIVE": None,
        "POOL_Q_STRIDE": [],
        "QKV_BIAS": True,
        "REL_POS_SPATIAL": False,
        "REL_POS_TEMPORAL": False,
        "REL_POS_ZERO_INIT": False,
        "RESIDUAL_POOLING": False,
        "SEP_POS_EMBED": False,
        "USE_ABS_POS": True,
        "USE_MEAN_POOLING": False,
        "ZERO_DECAY_POS_CLS": True,
    },
}


class Node(dict[str, Any]):
    """A YAML mapping whose keys are attributes, as PySlowFast's config nodes are."""

    __getattr__ = dict.__getitem__


def to_node(value: Any) -> Any:
    """Mappings as ``Node``, all the way down."""
    if isinstance(value, dict):
        return Node({key: to_node(item) for key, item in value.items()})
    return value


def read_config_file(path: str | os.PathLike[str]) -> MViTConfig:
    """Core's config for a PySlowFast YAML file, over PySlowFast's own defaults.

    Without PySlowFast, over those of them that shape a model.

    Raises:
        ValueError: the file is not of an MViTv2; names the file.
    """
    file = os.fspath(path)
    try:
        if connect() is None:
            return read_config(to_node(merged(DEFAULTS, read_yaml(Path(file)))))
        from slowfast.config.defaults import get_cfg

        cfg = get_cfg()
        cfg.merge_from_file(file)
        return read_config(cfg)
    except Exception as error:  # yacs, YAML and PySlowFast raise anything
        raise ValueError(f"{file}: {' '.join(str(error).split())}") from error


def read_yaml(file: Path) -> dict[str, Any]:
    """A YAML file over those that it names under ``_BASE_``, as fvcore's configs do.

    Raises:
        ValueError: it does not hold a mapping.
        OSError, yaml.YAMLError: it cannot be read.
        ImportError: PyYAML is missing.
    """
    import yaml

    content = yaml.safe_load(file.read_text("utf-8"))
    if not isinstance(content, dict):
        raise ValueError("holds no mapping of keys to values")
    named = content.pop("_BASE_", [])
    base: dict[str, Any] = {}
    for name in [named] if isinstance(named, str) else named:
        base = merged(base, read_yaml(file.parent / name))
    return merged(base, content)


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """``base`` with the values of ``over``, mapping by mapping."""
    both = {
        key: merged(base[key], value)
        for key, value in over.items()
        if isinstance(value, dict) and isinstance(base.get(key), dict)
    }
    return {**base, **over, **both}
