"""ONNX files, by PyTorch's exporter, and what onnxruntime gives for them."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .subject import Subject

PACKAGES = "pip install 'mvitv2[onnx]'"
OPSET = 18
# Of a protobuf, which a file is; what is larger lies in a second file beside it.
LARGEST = 2**31 - 2**24


def check_packages() -> None:
    """Raise ValueError where a package of the extra ``onnx`` is missing."""
    names = ("onnx", "onnxscript", "onnxruntime")
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"ONNX needs {', '.join(missing)}: {PACKAGES}")


def write(program: torch.export.ExportedProgram, subject: Subject, file: Path) -> None:
    """An exported program as ``file``, with the metadata, a JSON value for each key."""
    made = torch.onnx.export(
        program,
        (),
        dynamo=True,
        verbose=False,
        opset_version=OPSET,
        input_names=[subject.input],
        output_names=list(subject.outputs),
        # onnxscript's rules take quadratic time in the nodes, of which free axes make many: a clip
        # model was not done after ten minutes. onnxruntime has its own when it opens a file.
        optimize=not subject.free,
        dynamic_shapes=(dict(subject.free),) if subject.free else None,  # names of the axes
    )
    assert made is not None
    for node in made.model.graph:
        # The exporter gives a convolution of three axes without a bias one of zeros, of two axes:
        # its own rules take it out again where they run, and onnxruntime refuses it.
        if node.op_type == "Conv" and len(node.inputs) == 3:
            bias = node.inputs[2]
            made_by = bias.producer() if bias is not None else None
            if made_by is not None and made_by.op_type == "Expand":
                node.replace_input_with(2, None)
    properties = {key: json.dumps(value) for key, value in subject.metadata.items()}
    made.model.metadata_props.update(properties)
    size = sum(t.numel() * t.element_size() for t in program.state_dict.values())
    made.save(file, external_data=size > LARGEST)


def run(file: Path, inputs: Sequence[Tensor], threads: int = 1) -> list[list[Tensor]]:
    """What onnxruntime gives on the CPU for each input.

    Raises:
        ValueError: it cannot open or run the file.
    """
    try:
        session = open_session(file, threads)
        name = session.get_inputs()[0].name
        found = [session.run(None, {name: x.numpy()}) for x in inputs]
    except Exception as error:  # onnxruntime's have no base of their own
        cause = " ".join(str(error).split())
        raise ValueError(f"{file.name} does not run in onnxruntime: {cause}") from error
    return [[torch.from_numpy(part) for part in parts] for parts in found]


def open_session(file: Path, threads: int) -> Any:
    """onnxruntime's session for a file, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    providers = ["CPUExecutionProvider"]
    return onnxruntime.InferenceSession(str(file), options, providers=providers)
