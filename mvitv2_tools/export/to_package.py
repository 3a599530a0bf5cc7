"""``.pt2`` files: exported programs, and packages compiled ahead of time; each runs with torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from .subject import Subject

EXTRA = "mvitv2.json"  # the name of the metadata inside of a file
OPEN = """
def open_model(file, compiled):
    if compiled:
        return torch._inductor.aoti_load_package(file)
    return torch.export.load(file).module()
"""
# Importing anything of this project is an error there, wherever modules come from.
ALONE = """
import sys
for name in ("mvitv2_core", "mvitv2_d2", "mvitv2_slowfast", "mvitv2_tools", "detectron2"):
    sys.modules[name] = None
import torch
{open}
file, inputs, outputs, kind, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
with torch.no_grad():
    model = open_model(file, kind == "compiled")
    found = [list(model(x)) for x in torch.load(inputs, weights_only=True)]
torch.save(found, outputs)
"""


def check_compiler() -> None:
    """Raise ValueError where there is no C++ compiler, or a PyTorch without AOTInductor."""
    for name in ("aoti_compile_and_package", "aoti_load_package"):
        if not hasattr(torch._inductor, name):
            raise ValueError(
                f"--compile needs torch._inductor.{name}, which PyTorch 2.6 to 2.14 have and "
                f"{torch.__version__} lacks: without --compile a .pt2 needs no such name"
            )
    wanted = os.environ.get("CXX")
    names = [wanted] if wanted else ["g++", "clang++"]
    if not any(shutil.which(name) for name in names):
        raise ValueError(f"--compile needs a C++ compiler: {' or '.join(names)} is not there")


def write(program: torch.export.ExportedProgram, subject: Subject, file: Path) -> None:
    """An exported program as ``file``; ``EXTRA`` among its extra files is the metadata."""
    torch.export.save(program, file, extra_files={EXTRA: json.dumps(subject.metadata)})


def write_compiled(program: torch.export.ExportedProgram, subject: Subject, file: Path) -> None:
    """A program compiled for CPUs like this one as ``file``; ``EXTRA`` in its metadata."""
    metadata = {EXTRA: json.dumps(subject.metadata)}
    torch._inductor.aoti_compile_and_package(
        program, package_path=str(file), inductor_configs={"aot_inductor.metadata": metadata}
    )


def run(
    file: Path, inputs: Sequence[Tensor], compiled: bool, threads: int = 1
) -> list[list[Tensor]]:
    """What the file gives for each input in a process that has torch alone.

    Raises:
        ValueError: that process failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, found = (os.path.join(folder, name) for name in ("inputs.pt", "outputs.pt"))
        torch.save(list(inputs), given)
        code = ALONE.format(open=OPEN)
        kind = "compiled" if compiled else "program"
        # Not "-I": torch may come from PYTHONPATH or the user's own packages. The folder that it
        # starts in, which comes first among the places of modules, holds none.
        command = [sys.executable, "-c", code, str(file), given, found, kind, str(threads)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
        if done.returncode:
            cause = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise ValueError(f"{file.name} does not run in a process of its own: {cause}")
        return torch.load(found, weights_only=True)
