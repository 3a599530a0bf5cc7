"""What the commands of ``mvitv2 data`` share."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mvitv2_core.arguments import positive

from .findings import Findings


def add_shared(command: Any) -> None:
    """Arguments that every task has."""
    command.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for all that is written"
    )
    command.add_argument(
        "--device",
        choices=("cuda", "cpu"),
        help="what the config is for (default: cuda where there is a GPU)",
    )
    command.add_argument(
        "--workers", type=positive, help="processes that open files (default: one for each core)"
    )
    command.add_argument(
        "--check-only", action="store_true", help="say what is wrong, and write no config"
    )
    command.add_argument(
        "--force", action="store_true", help="write configs although there are errors"
    )


def pick_device(asked: str | None) -> str:
    """The one asked for, or a GPU where there is one."""
    import torch

    return asked or ("cuda" if torch.cuda.is_available() else "cpu")


def workers_of(options: Any) -> int:
    """Processes for opening files."""
    return options.workers or os.cpu_count() or 1


def check_written(options: Any, names: Iterable[str], read: Iterable[str | Path]) -> None:
    """Before anything is written: nothing that is read may be written over.

    Args:
        options: ``out``, ``check_only``.
        names: of the files and folders that the task writes into ``options.out``.
        read: files and folders that it reads.

    Raises:
        ValueError: one of them is what would be written, or lies in it.
    """
    places = {Path(path).resolve(): path for path in read}
    for name in () if options.check_only else names:
        written = (options.out / name).resolve()
        for place, path in places.items():
            if place.is_relative_to(written):
                raise ValueError(
                    f"--out {options.out}: {options.out / name} would be written over {path}, "
                    f"which is read: give another --out"
                )


def say_findings(findings: Findings, out: Path, options: Any) -> int | None:
    """Print findings, write ``findings.txt``; returns an exit code, or None to go on."""
    out.mkdir(parents=True, exist_ok=True)
    if findings.found:
        print(findings.text())
    findings.write(out / "findings.txt")
    errors = findings.count("error")
    print(f"{findings.verdict()}: {out / 'findings.txt'}")
    if options.check_only:
        return 1 if errors else 0
    if errors and not options.force:
        print("mvitv2: no config is written: mend the errors, or --force", file=sys.stderr)
        return 1
    return None
