"""What the commands of ``mvitv2`` share: how one is added, and kinds of arguments."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from typing import Any


def add_command(
    commands: Any, name: str, run: Callable[[Any], int], text: str, examples: str
) -> Any:
    """Add a command to a parser's commands.

    Args:
        commands: what argparse's ``add_subparsers`` gives.
        name: of the command.
        run: takes the options, returns the exit code.
        text: what it does, in one line.
        examples: stands below its help, as it is.

    Returns:
        Its parser.
    """
    command = commands.add_parser(
        name,
        help=text,
        description=text,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run)
    return command


def positive(text: str) -> int:
    """A whole number above 0."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {text}")
    return value


def share(text: str) -> float:
    """A number from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be from 0 to 1, got {text}")
    return value


def seconds(text: str) -> float:
    """A number from 0 up."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be 0 or more seconds, got {text}")
    return value


def size(text: str) -> tuple[int, int]:
    """Height and width: "384" for both, or "288x512"."""
    found = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if found is None or not int(found[1]) or not int(found[2] or 1):
        raise argparse.ArgumentTypeError(f"must be N or HxW, got {text!r}")
    return int(found[1]), int(found[2] or found[1])
