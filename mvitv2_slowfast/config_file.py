"""PySlowFast config files for core's command: ``mvitv2 inflate --config FILE.yaml``."""

from __future__ import annotations

import os

from mvitv2_core.config import MViTConfig

from .config import read_config
from .locate import HOW_TO_GET
from .plugin import connect


def read_config_file(path: str | os.PathLike[str]) -> MViTConfig:
    """Core's config for a PySlowFast YAML file, over PySlowFast's own defaults.

    Raises:
        ValueError: PySlowFast is not found, or the file is not of an MViTv2; names the file.
    """
    file = os.fspath(path)
    try:
        if connect() is None:
            raise ValueError(f"needs PySlowFast for its defaults: {HOW_TO_GET}")
        from slowfast.config.defaults import get_cfg

        cfg = get_cfg()
        cfg.merge_from_file(file)
        return read_config(cfg)
    except Exception as error:  # yacs, YAML and PySlowFast raise anything
        raise ValueError(f"{file}: {' '.join(str(error).split())}") from error
