"""What stands in for detectron2 where it is not installed.

PySlowFast's models import detectron2's ROIAlign, and its demo and its visualizer more. Programs
ask ``importlib.util.find_spec("detectron2")`` whether detectron2 is installed, and so the stand-in
is there only while PySlowFast's modules are imported: afterwards the answer is the truth.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class Missing:
    """Stands in for a class or function of PySlowFast's demo, which needs detectron2."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        raise ImportError("PySlowFast's demo and its video visualizer need detectron2")


@contextmanager
def stand_in_for_detectron2() -> Iterator[str | None]:
    """Let what is imported inside import detectron2, though it is not installed.

    Yields:
        What was done, in one line; None, and nothing is done, with detectron2.
    """
    if "detectron2" in sys.modules or importlib.util.find_spec("detectron2"):
        yield None
        return
    from .compat import add_module
    from .roi_align_layer import ROIAlign

    add_module("detectron2", [], __version__="0")
    try:
        add_module("detectron2.layers", ROIAlign=ROIAlign)
        add_module("detectron2.model_zoo", get_config_file=Missing, get_checkpoint_url=Missing)
        add_module("detectron2.config", get_cfg=Missing)
        add_module("detectron2.engine", DefaultPredictor=Missing)
        add_module("detectron2.utils", [])
        add_module("detectron2.utils.visualizer", Visualizer=Missing)
        yield "detectron2 is not installed: ROIAlign is torchvision's, and demos will not run"
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "detectron2"]:
            del sys.modules[name]
