"""Hook for detectron2's unmodified ``train_net.py``: ``DETECTRON2_ENV_MODULE=mvitv2_d2.env``.

detectron2 imports this module while it is itself half imported, so nothing of detectron2 may be
imported before ``setup_environment`` runs.
"""

from __future__ import annotations


def setup_environment() -> None:
    """Add ``MODEL.MVITV2`` to every ``get_cfg()`` and register the backbones.

    Raises:
        RuntimeError: this package cannot be loaded. detectron2 would otherwise go on without it
            on its next import, and report no more than an unknown key.
    """
    try:
        from detectron2.config.defaults import _C

        from . import backbone  # noqa: F401  registers the builders
        from .config import add_mvitv2_config

        add_mvitv2_config(_C)
    except Exception as error:
        raise RuntimeError(
            "DETECTRON2_ENV_MODULE=mvitv2_d2.env: MViTv2 could not be registered with detectron2: "
            f"{error!r}"
        ) from error
