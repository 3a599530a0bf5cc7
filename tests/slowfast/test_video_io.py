"""Reading clips by time, in the place of torchvision's former readers."""

from __future__ import annotations

import io
from fractions import Fraction

import numpy as np
import pytest
import torch

from mvitv2_slowfast import video_io


def clip_bytes(fps: int = 30, frames: int = 48, b_frames: bool = True) -> torch.Tensor:
    """An H.264 clip of grey frames, each 5 brighter than the one before."""
    av = pytest.importorskip("av", reason="reading clips needs PyAV: pip install av")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.options = {"crf": "1", "bf": "3" if b_frames else "0", "g": "12"}
        for step in range(frames):
            grey = np.full((64, 96, 3), 5 * step, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())
    return torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)


def steps(frames: torch.Tensor) -> list[int]:
    """Which frames of ``clip_bytes`` these are."""
    return (frames.float().mean(dim=(1, 2, 3)) / 5).round().int().tolist()


@pytest.mark.parametrize("b_frames", [True, False])
def test_probe_and_read_by_time(b_frames: bool) -> None:
    data = clip_bytes(b_frames=b_frames)
    meta = video_io.probe_video_from_memory(data)
    assert meta.has_video and not meta.has_audio
    assert meta.video_fps == 30 and meta.video_duration == pytest.approx(48 / 30)
    unit = meta.video_timebase
    pts = Fraction(1, 30) / unit  # of one frame

    def read(first: int, last: int, **options: int) -> torch.Tensor:
        frames, sound = video_io.read_video_from_memory(
            data,
            video_pts_range=(int(first * pts), int(last * pts) if last >= 0 else -1),
            video_timebase_numerator=unit.numerator,
            video_timebase_denominator=unit.denominator,
            **options,
        )
        assert sound.shape == (0,)
        return frames

    assert steps(read(0, -1)) == list(range(48))
    assert steps(read(17, 31)) == list(range(17, 32))
    assert steps(read(40, 90)) == list(range(40, 48))
    assert read(90, 95).shape == (0,)
    assert read(3, 3).shape == (1, 64, 96, 3) and read(3, 3).dtype == torch.uint8
    assert read(3, 3, video_min_dimension=32).shape == (1, 32, 48, 3)
    # 37.5 rounds up, and a frame just past the end counts: torchvision's own rules.
    assert read(3, 3, video_min_dimension=25).shape == (1, 25, 38, 3)
    late = (int(17 * pts), int(31 * pts) - 1)
    fraction = {"video_timebase_numerator": unit.numerator}
    fraction["video_timebase_denominator"] = unit.denominator
    frames, _ = video_io.read_video_from_memory(data, video_pts_range=late, **fraction)
    assert steps(frames) == list(range(17, 32))
    assert read(3, 3, video_width=20, video_height=10).shape == (1, 10, 20, 3)
    with pytest.raises(ValueError, match="video_width and video_height"):
        read(3, 3, video_width=20)
    with pytest.raises(ValueError, match="read_audio_stream"):
        read(3, 3, read_audio_stream=1)


def test_no_video_and_damaged_video() -> None:
    av = pytest.importorskip("av", reason="reading clips needs PyAV: pip install av")
    with pytest.raises(av.error.FFmpegError):
        video_io.probe_video_from_memory(torch.zeros(100, dtype=torch.uint8))
    data = clip_bytes()
    frames, _ = video_io.read_video_from_memory(data, read_video_stream=False)
    assert frames.shape == (0,)
