"""MViTv2 as a PySlowFast model.

Importing this package registers ``MViTv2`` in PySlowFast's ``MODEL_REGISTRY`` where PySlowFast
can be found (``PYSLOWFAST_ROOT``, or an importable ``slowfast``). Without it the model can still
be built from a plain ``CfgNode``.
"""

import logging

from .locate import PySlowFastError
from .model import MViTv2
from .plugin import register

__all__ = ["MViTv2"]

try:
    register()
except PySlowFastError as error:
    # The model works without PySlowFast's trainer, so this is no reason to fail the import.
    logging.getLogger(__name__).warning("MViTv2 is not registered: %s", error)
