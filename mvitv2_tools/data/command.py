"""The command ``mvitv2 data``: one's own data, checked and made ready for a trainer."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
from typing import Any

PACKAGES = "pip install 'mvitv2[predict]'"
TASKS = {
    "detection": "boxes, with or without masks, in COCO's json: for detectron2",
    "video": "labelled videos, in folders or in a csv: for PySlowFast",
    "ava": "boxes of people with actions, from a csv: for PySlowFast's AVA",
    "images": "labelled pictures, in folders or in a csv: for PySlowFast",
}


def add_data(commands: Any) -> None:
    """Add ``data`` to a parser's commands (the entry point group ``mvitv2.commands``)."""
    text = "check data of one's own, and write a trainer's config"
    data = commands.add_parser("data", help=text, description=text)
    tasks = data.add_subparsers(required=True, metavar="task")
    for name, help_text in TASKS.items():
        from .options import add_shared

        module = importlib.import_module(f".{name}", __package__)
        task = tasks.add_parser(
            name,
            help=help_text,
            description=help_text,
            epilog=module.EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(task)
        add_shared(task)
        task.set_defaults(run=_run, task=module.run)


def _run(options: Any) -> int:
    needed = {"PIL": "Pillow", "av": "av", "numpy": "numpy", "tqdm": "tqdm", "yaml": "PyYAML"}
    missing = [name for module, name in needed.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ValueError(f"data needs {', '.join(missing)}: {PACKAGES}")
    return options.task(options)
