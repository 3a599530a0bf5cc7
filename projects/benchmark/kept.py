"""Results that are kept: the documents' figures are made from them, and from nothing else.

Every file under ``results`` names the machine, the command that made it, and the commit.
"""

from __future__ import annotations

import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from projects.benchmark.report import save_texts

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results"
DETECTRON2 = ("sal-detectron2", "detectron2")  # its Python alone, or compiled


def machine(
    packages: Sequence[str] = (),
    threads: int | None = None,
    device: str = "cpu",
    dtype: str = "fp32",
    **more: Any,
) -> dict[str, Any]:
    """What figures are measured on.

    Args:
        packages: whose versions count beside PyTorch's, where they are installed.
        threads: of PyTorch; None: as many as it takes now.
        device: "cpu" or "cuda".
        dtype: of the arithmetic.
        more: further facts, named last.
    """
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].split(":", 1)[1].strip() if names else cpu
    facts = {"cpu": cpu, "threads": threads or torch.get_num_threads(), "torch": torch.__version__}
    if device == "cuda":
        facts["gpu"] = torch.cuda.get_device_name()
    for package in packages:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            continue
    return {**facts, "dtype": dtype, **more}


def command() -> str:
    """How this process was started, in the root of the repository, without the Python's folder."""
    return shlex.join(["python", *sys.orig_argv[1:]])


def commit() -> str:
    """The commit that is checked out; "unknown" outside a clone.

    " and changes" follows where tracked files other than kept results are not as committed.
    """
    run = ["git", "-C", str(ROOT)]
    others = [".", f":!{RESULTS.relative_to(ROOT)}"] if RESULTS.is_relative_to(ROOT) else ["."]
    try:
        head = subprocess.check_output([*run, "rev-parse", "--short=10", "HEAD"], text=True)
        files = [*run, "status", "--porcelain", "--untracked-files=no", "--", *others]
        changed = subprocess.check_output(files, text=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.strip() + (" and changes" if changed else "")


def keep(name: str, results: dict[str, Any]) -> Path:
    """Write ``results`` to ``results/NAME.json`` in one step, its command and commit first."""
    path = RESULTS / f"{name}.json"
    write_json(path, {"command": command(), "commit": commit(), **results})
    print(f"kept as {path}: `make figures` shows it")
    return path


def check_machine(name: str, on: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs kept under ``name``, none where there are no results.

    Raises:
        RuntimeError: they were measured on something else than ``on``.
    """
    if not measured(name):
        return []
    results = kept(name)
    if results["machine"] != on:
        raise RuntimeError(
            f"--keep: the runs kept as {name} are of {results['machine']}, this one would be of "
            f"{on}: remove {RESULTS / name}.json to begin anew"
        )
    return results["runs"]


def keep_run(name: str, on: dict[str, Any], run: dict[str, Any]) -> Path:
    """Add one run, with its commit, to those that are kept under ``name``."""
    runs = [*check_machine(name, on), {"commit": commit(), **run}]
    return keep(name, {"machine": on, "runs": runs})


def write_json(path: Path, results: dict[str, Any]) -> None:
    """Write a JSON file in one step."""
    save_texts(path.parent, {path.name: json.dumps(results, indent=1) + "\n"})


def measured(name: str) -> bool:
    """Whether there are results under ``name``."""
    return (RESULTS / f"{name}.json").is_file()


def kept(name: str) -> dict[str, Any]:
    """The results under ``name``: "machine", "command", "commit", and what was measured."""
    return json.loads((RESULTS / f"{name}.json").read_text())
