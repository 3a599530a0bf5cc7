"""A classifier without its head: files in, prepared parts out; batches in, features out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mvitv2_core.media import MediaError, Video
from mvitv2_core.model_info import ModelInfo
from mvitv2_core.transforms import ClipTransform

from ..classify import Classifier
from ..feed import Part
from ..inputs import Input
from ..windows import read_windows
from .settings import Settings, facts


class Extractor:
    """Reads inputs for a classifier, and computes what its head would take.

    Args:
        classifier: of pictures or clips.
        settings: what to make. A window longer or shorter than the clips that the model was
            trained with has as many frames, further apart or closer.

    Raises:
        ValueError: settings that do not fit the model.
    """

    def __init__(self, classifier: Classifier, settings: Settings) -> None:
        info = classifier.info
        if info.task == "clip":
            settings = _with_windows(info, settings)
            info = replace(info, views=(1, 1))
            if info.seconds and settings.window != info.seconds:
                # So many frames at this rate are the window.
                rate = info.sampling_rate * info.frames / settings.window  # type: ignore[operator]
                info = replace(info, target_fps=rate)
            self.clip = ClipTransform(info)
        else:
            for name in ("window", "stride"):
                if getattr(settings, name) is not None:
                    raise ValueError(f"--{name} is for videos, and {info.name} takes pictures")
            if settings.features == "frames":
                raise ValueError(f"--features frames is for clips, and {info.name} takes pictures")
        self.classifier, self.info, self.settings = classifier, info, settings
        self.model, self.device = classifier.model, classifier.device

    def __str__(self) -> str:
        settings, size = self.settings, "x".join(map(str, self.info.input_size))
        text = f"{self.info.name}: {settings.features} features of {self.info.task}s of {size}"
        if self.info.task == "clip":
            text += f", {settings.window:.2f} s every {settings.stride:.2f} s"
        return text

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What decides the bits of a row."""
        return facts(self.model, self.info, self.settings, self.device)

    def read_picture(self, item: Input) -> Part:
        """A picture's (1, 3, H, W).

        Raises:
            MediaError: it cannot be read, or the model takes videos.
        """
        return self.classifier.read_picture(item)

    def read_video(self, item: Input, held: Mapping[str, int]) -> Iterator[Part]:
        """Each window's (1, 3, T, H, W), and at the end a part without data.

        Args:
            item: the file.
            held: by path, how many windows an earlier run had; they are left out.

        Raises:
            MediaError: it cannot be read, or the model takes pictures.
        """
        if self.info.task == "image":
            raise MediaError(f"{item.path}: is a video, and {self.info.name} takes pictures")
        window, stride = self.settings.window, self.settings.stride
        assert window is not None and stride is not None
        first = held.get(item.path, 0)
        with Video(item.path, self.clip.decoded_cover) as video:
            for part, clips in read_windows(video, self.clip, window, stride, first):
                data = self.clip.prepare(clips[0])
                yield Part(item, data, (part.start, part.end), last=False)
            problem = ""
            if video.broken:
                problem = f"{item.path}: damaged, rows end before that: {video.broken}"
            yield Part(item, error=problem)

    @torch.inference_mode()
    def features(self, batch: Tensor) -> np.ndarray:
        """(B, 3, H, W) or (B, 3, T, H, W) -> (B, C) pooled, (B, T, C) frames, or the grid's
        (B, H, W, C) or (B, T, H, W, C)."""
        model: Any = self.model
        tokens, thw = model.tokens(batch.to(self.device))
        if self.settings.features == "pooled":
            found = model.pool_tokens(tokens)
        else:
            if self.info.task == "image":  # PySlowFast's stills have a grid of one frame
                thw = thw[-2:]
            # (B, N, C) -> (B, *thw, C)
            found = model.norm(tokens[:, int(model.config.cls_token) :]).unflatten(1, thw)
            if self.settings.features == "frames":
                found = found.mean(dim=(2, 3))
        return found.to(getattr(torch, self.settings.dtype)).cpu().numpy()

    def cells(self, span: tuple[float, float], features: np.ndarray) -> list[float] | None:
        """Where the temporal cells of a window begin and end: T + 1 seconds; None without cells.

        What is left at a video's end may be shorter than a window: cells behind its end show
        its last frame again, and begin and end there.
        """
        if self.info.task == "image" or self.settings.features == "pooled":
            return None
        count, length = features.shape[1], self.settings.window
        assert length is not None
        return [min(span[0] + length * i / count, span[1]) for i in range(count + 1)]


def _with_windows(info: ModelInfo, settings: Settings) -> Settings:
    """The settings with a window, the clip that the model was trained with, and a stride."""
    window = settings.window if settings.window is not None else info.seconds
    if not window:
        whole = f", and be given: {info.name} spreads its frames over whole videos"
        raise ValueError(f"--window must be above 0 seconds{'' if info.seconds else whole}")
    stride = settings.stride if settings.stride is not None else window
    if not stride:
        raise ValueError("--stride must be above 0 seconds")
    return replace(settings, window=window, stride=stride)
