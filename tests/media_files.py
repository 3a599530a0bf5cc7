"""Pictures and videos for tests, written on the spot."""

from __future__ import annotations

import struct
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mvitv2_core.model_info import clip_info


def picture(width: int = 100, height: int = 80, seed: int = 0) -> np.ndarray:
    """(height, width, 3) uint8: smooth colours with hard edges and a little noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (7 + 3 * c) + seed + c) + np.cos(y / (5 + 2 * c)) for c in range(3)]
    image = 127 + 60 * np.stack(waves, axis=-1)
    image[height // 4 : height // 2, width // 3 : width // 2] = (250, 20, 90)
    return (image + rng.normal(0, 8, image.shape)).clip(0, 255).astype(np.uint8)


def frame_number(frames: int, width: int, height: int) -> np.ndarray:
    """(frames, height, width, 3) uint8: frame i is lit in the columns up to i of so many."""
    video = np.full((frames, height, width, 3), 40, np.uint8)
    for index in range(frames):
        video[index, :, : 1 + index * (width - 1) // max(frames - 1, 1)] = (200, 120, 60)
        video[index, : height // 4] = picture(width, height // 4, seed=index)
    return video


def write_video(
    path: Path,
    frames: np.ndarray,
    fps: int | Fraction = 30,
    codec: str = "libx264",
    **options: Any,
) -> Path:
    """(N, H, W, 3) uint8 RGB as H.264, nearly without loss; format by the file's ending."""
    av = pytest.importorskip("av", reason="videos need PyAV: pip install av")
    container_options = options.pop("container_options", {})
    with av.open(str(path), "w", options=container_options) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        odd = frames.shape[1] % 2 or frames.shape[2] % 2  # halved colours need even sizes
        stream.pix_fmt = "yuv444p" if odd else "yuv420p"
        stream.options = {"crf": "8", "g": "12", "bf": "2", "preset": "ultrafast", **options}
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def set_rotation(path: Path, degrees: int) -> None:
    """Let an MP4's track header say that its frames are to be turned clockwise."""
    matrix = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[degrees]
    a, b, c, d = (value << 16 for value in matrix)
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 44
    data[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(bytes(data))


# Of a small clip model.
INFO = replace(clip_info("any", 5, (4, 32, 32)), sampling_rate=5, views=(3, 1), resize=40)


def lit(frames: torch.Tensor, total: int) -> list[int]:
    """Which frames of ``frame_number`` these (T, h, w, 3) are."""
    red = frames[:, frames.shape[1] // 2, :, 0].float()
    columns = (red > 120).sum(dim=1).float() - 1
    return (columns / (frames.shape[2] - 1) * (total - 1)).round().int().tolist()
