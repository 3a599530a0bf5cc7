"""Checkpoint files for tests, whole and broken, and what must happen to the broken ones."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mvitv2_core import CheckpointError, MViTClassifier, load_checkpoint
from tests.compare import randomize
from tests.structures import small

CONFIG = small("T")


def torch_bytes(content: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


def pickled(content: Any, protocol: int = 4) -> bytes:
    return pickle.dumps(content, protocol=protocol)


def safetensors_bytes(state: dict[str, Tensor]) -> bytes:
    save = pytest.importorskip("safetensors.torch", reason="pip install safetensors to run").save
    return save(state)


def refused(path: Path, state: dict[str, Tensor], cause: str, canary: Path | None = None) -> None:
    """The file is refused with ``cause`` in the message, and the model keeps its values."""
    model = randomize(MViTClassifier(CONFIG), seed=7)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(model, path)
    message = str(caught.value)
    assert str(path) in message and cause.lower() in message.lower(), message
    assert len(message) < 2500 and message.count("\n") == 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert canary is None or not canary.exists()
