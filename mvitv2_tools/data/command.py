"""The command ``mvitv2 data``: one's own data, checked and made ready for a trainer."""

from __future__ import annotations

import importlib
from typing import Any

from mvitv2_core.arguments import add_command

from ..predict import PACKAGES, what_is_missing

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
        task = add_command(tasks, name, _run, help_text, module.EXAMPLES)
        module.add_arguments(task)
        add_shared(task)
        task.set_defaults(task=module.run)


def _run(options: Any) -> int:
    missing = what_is_missing(draws=False)
    if missing:
        raise ValueError(f"data needs {', '.join(missing)}: {PACKAGES}")
    return options.task(options)
