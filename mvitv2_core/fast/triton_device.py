"""Where this project's Triton kernels run."""

from __future__ import annotations

import importlib.util
import os

import torch

# Of the GPUs that the kernels were compiled for, and whose shared memory their blocks fill.
CAPABILITY = (9, 0)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def available() -> bool:
    """Whether Triton can be imported."""
    return importlib.util.find_spec("triton") is not None


def runs_on(device: torch.device) -> bool:
    """Whether the kernels run there: on Hopper GPUs, and on CPUs in Triton's interpreter."""
    if device.type == "cuda":
        return torch.version.hip is None and torch.cuda.get_device_capability(device) == CAPABILITY
    return device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
