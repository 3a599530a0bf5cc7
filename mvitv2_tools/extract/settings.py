"""What decides the bits of a row: the model, its inputs, the settings, the machine's arithmetic."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any, Literal

import torch
from torch import nn

FEATURES = ("pooled", "frames", "grid")
FORMATS = ("npy", "safetensors", "parquet")
DTYPES = ("float32", "float16")
VERSION = 1  # of the layout of a folder


@dataclass(frozen=True)
class Settings:
    """What a person chose; see ``mvitv2 extract --help``.

    Args:
        features: "pooled" is what the head's projection takes. "grid" is every normalised token
            on its (T, H, W). "frames" is the mean of each of T over H and W.
        window, stride: seconds of a video that a row stands for, and from one row's start to the
            next's; None where the model takes pictures.
        batch: pictures or windows that the model sees at a time. A batch never spans two videos.
        group: pictures of a file.
        format, dtype: of the files.
        threads: that PyTorch computes a batch with.
    """

    features: Literal["pooled", "frames", "grid"] = "pooled"
    window: float | None = None
    stride: float | None = None
    batch: int = 8
    group: int = 256
    format: Literal["npy", "safetensors", "parquet"] = "npy"
    dtype: Literal["float32", "float16"] = "float32"
    threads: int = 1


def weights_hash(model: nn.Module) -> str:
    """SHA-256 over the names, shapes and bytes of a model's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(memoryview(data.numpy()))
    return digest.hexdigest()


def arithmetic(device: torch.device, format: str) -> dict[str, str]:
    """What of a machine, its packages and its environment a row's last bits depend on."""
    packages = ["torch", "pillow", "av", *(["pyarrow"] if format == "parquet" else [])]
    found = {name: version(name) for name in packages}
    # Which form of an operation runs (docs/design.md).
    found |= {k: v for k, v in sorted(os.environ.items()) if k.startswith("MVITV2_")}
    if device.type == "cuda":
        return {**found, "device": torch.cuda.get_device_name(device)}
    capability = torch.backends.cpu.get_cpu_capability()
    return {**found, "device": f"{device.type} {platform.machine()} {capability}"}


def facts(model: nn.Module, info: Any, settings: Settings, device: torch.device) -> dict[str, Any]:
    """All of it as plain values, which a folder keeps and every later run is compared with."""
    inputs = asdict(info)
    for name in ("source", "licence", "published", "recipe", "labels", "activation"):
        del inputs[name]  # what no feature depends on
    return {
        "version": VERSION,
        "model": inputs.pop("name"),
        "weights": weights_hash(model),
        "architecture": hashlib.sha256(repr(model.config).encode()).hexdigest(),
        "inputs": {key: list(v) if isinstance(v, tuple) else v for key, v in inputs.items()},
        "settings": asdict(settings),
        "arithmetic": arithmetic(device, settings.format),
    }


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """One text for each value that is not the same: "threads 2 there, 1 here"."""
    old, new = dict(_flat(there)), dict(_flat(here))
    return [
        f"{name} {old.get(name, 'nothing')} there, {new.get(name, 'nothing')} here"
        for name in {**old, **new}
        if old.get(name) != new.get(name)
    ]


def _flat(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value)
        else:
            yield name, value[:12] if isinstance(value, str) and len(value) == 64 else value
