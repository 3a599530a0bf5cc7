"""PySlowFast config files for core's command: ``mvitv2 inflate --config FILE.yaml``."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

from mvitv2_core.config import MViTConfig


def read_config_file(path: str | os.PathLike[str]) -> MViTConfig:
    """Core's config for a PySlowFast YAML file, over PySlowFast's own defaults.

    Raises:
        ValueError: PySlowFast is not found, or the file is not of an MViTv2; names the file.
    """
    file = os.fspath(path)
    # Only when asked: the command must run where nothing of PySlowFast is installed.
    plugin: Any = import_module("mvitv2_slowfast.plugin")
    config: Any = import_module("mvitv2_slowfast.config")
    try:
        if plugin.connect() is None:
            raise ValueError(f"needs PySlowFast for its defaults: {plugin.HOW_TO_GET}")
        cfg = import_module("slowfast.config.defaults").get_cfg()
        cfg.merge_from_file(file)
        return config.read_config(cfg)
    except Exception as error:  # yacs, YAML and PySlowFast raise anything
        raise ValueError(f"{file}: {' '.join(str(error).split())}") from error
