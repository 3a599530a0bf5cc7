"""Runs cases in Triton's interpreter, and measures what they return.

The interpreter must be chosen before Triton is imported: cases run in a process of their own, so
that no other test meets interpreted kernels.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

HERE = Path(__file__).parent


def run(cases: str) -> int:
    """Runs a file of cases that lies beside this one; returns how many passed."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / cases)],
        cwd=HERE.parents[2],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    return int(done.stdout.split(" passed")[0].split()[-1])


def mend_rounding() -> None:
    """Makes the interpreter round float32 to the nearest bfloat16, as GPUs do; it truncates."""
    import triton.language as tl
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def rounded(x: np.ndarray, source: Any, target: Any, mode: Any) -> np.ndarray:
        if source == tl.float32 and target == tl.bfloat16:
            near = torch.from_numpy(np.ascontiguousarray(x)).to(torch.bfloat16)
            return near.view(torch.uint16).numpy()
        return convert(x, source, target, mode)

    interpreter._convert_float = rounded


def check(
    names: Sequence[str],
    got: Sequence[Tensor],
    plain: Sequence[Tensor],
    exact: Sequence[Tensor],
    dtype: torch.dtype,
) -> None:
    """Errors against float64: 1e-5 of the largest value in float32, else as small as the plain's.

    Gradients that cancel (a single key, a single cell along an axis) are held against a tenth of
    the largest value of all.

    Args:
        plain: the plain formula in ``dtype``, the precision of the tokens.
        exact: the plain formula in float64.
    """
    got = [x.detach() for x in got]
    least = max(float(e.abs().max()) for e in exact) / 10
    for name, x, p, e in zip(names, got, plain, exact, strict=True):
        assert x.shape == e.shape and bool(x.isfinite().all()), name
        error, largest = (x.double() - e).abs(), max(float(e.abs().max()), least)
        worst = float(error.max())
        if dtype == torch.float32:
            assert worst <= 1e-5 * largest, f"{name}: {worst} of {largest}"
            continue
        usual = (p.double() - e).abs()
        # Rounding the exact result to this precision errs by half of its last digit.
        digit = torch.finfo(dtype).eps * largest
        text = f"{name}: {worst}, plain {usual.max()}, of {largest}"
        assert worst <= 2 * float(usual.max()) + digit / 2, text
        rms, usual_rms = (float(z.square().mean().sqrt()) for z in (error, usual))
        if largest > least and x.shape[1] >= 16:  # of fewer tokens it is chance
            assert rms <= 1.2 * usual_rms + digit / 100, f"{name}: rms {rms}, plain {usual_rms}"
