"""What is exported: a module of one tensor, its example input, and what goes into the file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

FREE = ("batch", "size", "frames")
PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Exported(nn.Module):
    """A model in one precision, from float32 to float32: (B, C, *spatial) -> a tuple of tensors.

    Args:
        model: gives a tensor, or tensors by name.
        outputs: names of what it gives, in order.
        dtype: of its weights and its arithmetic; the weights of ``model`` are converted.
    """

    def __init__(self, model: nn.Module, outputs: Sequence[str], dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.outputs, self.dtype = model.to(dtype).eval(), tuple(outputs), dtype

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        found = self.model(x.to(self.dtype))
        parts = [found[name] for name in self.outputs] if isinstance(found, dict) else [found]
        return tuple(part.float() for part in parts)


@dataclass(frozen=True)
class Subject:
    """A model, the shape that it is exported for, and the axes of it that are free.

    Args:
        model: as it was found, in float32.
        input: name of the input.
        outputs: names of the outputs.
        shape: (B, C, H, W) or (B, C, T, H, W) of the example.
        free: {axis: name} of those that may change from call to call.
        multiple: what free heights and widths are multiples of.
        metadata: of the file: how inputs are prepared and what outputs mean, for JSON.
    """

    model: nn.Module
    input: str
    outputs: tuple[str, ...]
    shape: tuple[int, ...]
    free: dict[int, str]
    multiple: int
    metadata: dict[str, Any]

    def dynamic_shapes(self) -> dict[int, Any] | None:
        """The free axes as ``torch.export`` takes them."""
        dims: dict[int, Any] = {}
        for axis, name in self.free.items():
            if axis >= len(self.shape) - 2 and self.multiple > 1:
                dims[axis] = self.multiple * torch.export.Dim(f"{name}_steps")
            else:
                dims[axis] = torch.export.Dim.DYNAMIC
        return dims or None

    def example(self) -> Tensor:
        """An input of the example's shape."""
        return self.inputs(1)[0]

    def inputs(self, count: int = 3) -> list[Tensor]:
        """Standard normal inputs of up to ``count`` shapes: the example's, and others that it may
        have, larger and smaller on each free axis."""
        shapes = [self.shape]
        for grown in range(1, count if self.free else 1):
            shape = list(self.shape)
            for axis in self.free:
                step = self.multiple if axis >= len(shape) - 2 else 1
                share = (1.25, 0.75)[(grown + axis) % 2] if axis else 1 + grown / shape[0]
                shape[axis] = max(round(shape[axis] * share / step), 1) * step
            shapes.append(tuple(shape))
        generator = torch.Generator().manual_seed(0)
        return [torch.randn(shape, generator=generator) for shape in shapes]


def classifier_subject(
    classifier: Any, batch: int, size: Sequence[int] | None, frames: int | None, free: Sequence[str]
) -> Subject:
    """A ``classify.Classifier``: normalised pixels in, logits out.

    Raises:
        ValueError: frames of a model of images.
    """
    info = classifier.info
    clip = info.task == "clip"
    if not clip and (frames is not None or "frames" in free):
        raise ValueError(f"{info.name} takes images: --frames and --dynamic frames are for clips")
    crop = tuple(size or info.crop)
    input_size = (frames or info.frames, *crop) if clip else crop
    if input_size != info.input_size:
        info = info.sized(input_size)
    metadata = {**asdict(info), "labels": classifier.labels}
    shape = (batch, classifier.model.config.in_chans, *input_size)
    name = "clips" if clip else "images"
    return Subject(classifier.model, name, ("logits",), shape, free_axes(shape, free), 1, metadata)


def backbone_subject(
    detector: Any, batch: int, size: Sequence[int] | None, frames: int | None, free: Sequence[str]
) -> Subject:
    """The backbone of a ``detect.Detector`` with its pyramid: normalised pixels in, maps out.

    Raises:
        ValueError: frames, or a size that the pyramid does not take.
    """
    if frames is not None or "frames" in free:
        raise ValueError("a detector takes images: --frames and --dynamic frames are for clips")
    model = detector.model
    backbone = model.backbone
    multiple = max(backbone.size_divisibility, 1)
    crop = tuple(size or (512, 512))
    if any(n % multiple for n in crop):
        raise ValueError(f"--size must be multiples of {multiple} for this model, got {crop}")
    shape = (batch, len(model.pixel_mean), *crop)
    outputs = tuple(backbone.output_shape())
    strides = {name: spec.stride for name, spec in backbone.output_shape().items()}
    metadata = {
        "task": "backbone",
        "pixel_mean": model.pixel_mean.flatten().tolist(),
        "pixel_std": model.pixel_std.flatten().tolist(),
        "channel_order": detector.image_format,
        "size_divisibility": multiple,
        "strides": strides,
        "labels": detector.labels,
    }
    return Subject(backbone, "images", outputs, shape, free_axes(shape, free), multiple, metadata)


def free_axes(shape: Sequence[int], free: Sequence[str]) -> dict[int, str]:
    """{axis: name} of what is free in a batch of images or clips."""
    last = len(shape)
    axes = {"batch": {0: "batch"}, "frames": {2: "frames"}}
    axes["size"] = {last - 2: "height", last - 1: "width"}
    return {axis: name for word in free for axis, name in sorted(axes[word].items())}
