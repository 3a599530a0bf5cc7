"""Print the path of one of detectron2's own tools, such as lazyconfig_train_net.py.

    python "$(python projects/detection/find_tools.py lazyconfig_train_net.py)" --config-file ...

A tool must be run by its path: its package is called ``tools``, as PySlowFast's is.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
from pathlib import Path


def find_tool(name: str) -> Path:
    """Path of ``tools/name`` in ``$DETECTRON2_ROOT`` or beside the installed detectron2.

    detectron2 is not imported: its environment hook would run.

    Raises:
        FileNotFoundError: detectron2 or the tool is not there; the message says where was looked.
    """
    root = os.environ.get("DETECTRON2_ROOT")
    if root is None:
        spec = importlib.util.find_spec("detectron2")
        if spec is None or spec.origin is None:
            raise FileNotFoundError(
                "detectron2 is not installed: make setup DETECTRON2=pypi installs it"
            )
        root = str(Path(spec.origin).parents[1])
    path = Path(root) / "tools" / name
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist: set DETECTRON2_ROOT to a checkout of detectron2"
        )
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name", help="file name, e.g. lazyconfig_train_net.py or train_net.py")
    print(find_tool(parser.parse_args().name))
