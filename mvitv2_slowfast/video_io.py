"""torchvision's two former in-memory video readers, over PyAV.

torchvision removed ``io._probe_video_from_memory`` and ``io._read_video_from_memory``, on which
PySlowFast's ``DATA.DECODING_BACKEND: torchvision`` depends. These keep their contract for what
PySlowFast asks: RGB frames as (T, H, W, 3) uint8, chosen by presentation time, no sound. Sizes,
the scaling filter and the end of a range are those of torchvision's ``csrc/io/decoder`` and
``csrc/io/video_reader``.
"""

from __future__ import annotations

import io
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from mvitv2_core.media import JITTER, scaled_size


def probe_video_from_memory(video_data: Tensor) -> SimpleNamespace:
    """What torchvision called ``VideoMetaData``.

    Args:
        video_data: (bytes,) uint8, a whole video file.

    Returns:
        has_video, video_timebase (numerator, denominator), video_duration (seconds), video_fps,
        and the same for audio with audio_sample_rate; zeros where a stream is missing.
    """
    meta = SimpleNamespace(
        has_video=False,
        video_timebase=Fraction(0, 1),
        video_duration=0.0,
        video_fps=0.0,
        has_audio=False,
        audio_timebase=Fraction(0, 1),
        audio_duration=0.0,
        audio_sample_rate=0.0,
    )
    with _open(video_data) as container:
        for stream in container.streams.video[:1]:
            meta.has_video, meta.video_timebase = True, stream.time_base
            meta.video_duration = _seconds(stream, container)
            meta.video_fps = float(stream.guessed_rate or stream.average_rate or 0)
        for stream in container.streams.audio[:1]:
            meta.has_audio, meta.audio_timebase = True, stream.time_base
            meta.audio_duration = _seconds(stream, container)
            meta.audio_sample_rate = float(stream.rate or 0)
    return meta


def read_video_from_memory(
    video_data: Tensor,
    seek_frame_margin: float = 0.25,
    read_video_stream: bool = True,
    video_width: int = 0,
    video_height: int = 0,
    video_min_dimension: int = 0,
    video_pts_range: tuple[int, int] = (0, -1),
    video_timebase_numerator: int = 0,
    video_timebase_denominator: int = 1,
    read_audio_stream: bool = False,
) -> tuple[Tensor, Tensor]:
    """Frames whose presentation times lie in a range.

    Args:
        video_data: (bytes,) uint8, a whole video file.
        seek_frame_margin: seconds before the start to seek to.
        read_video_stream: False for no frames.
        video_width, video_height: size of the frames; 0 and 0 for ``video_min_dimension``.
        video_min_dimension: length of the shorter side, the aspect kept; 0 for the file's size.
        video_pts_range: first and last time, both included, in units of the timebase; a last
            time below 0 for all frames from the first.
        video_timebase_numerator, video_timebase_denominator: the unit; numerator 0 for the
            stream's own.
        read_audio_stream: must be False.

    Returns:
        (T, H, W, 3) uint8 frames in order of presentation, an empty (0,) tensor where there are
        none; and an empty (0,) tensor for the sound.

    Raises:
        ValueError: sound is asked for, or only one of width and height.
    """
    if read_audio_stream:
        raise ValueError("read_audio_stream must be False: sound is not read here")
    if bool(video_width) != bool(video_height):
        raise ValueError(
            "video_width and video_height must be given together, got "
            f"{video_width} and {video_height}"
        )
    nothing = torch.empty(0, dtype=torch.uint8)
    if not read_video_stream:
        return nothing, nothing
    from av.video.reformatter import VideoReformatter

    # One for all frames: a frame's own would set up its scaler anew each time, 3.7 times the cost.
    reformatter = VideoReformatter()
    frames = []
    with _open(video_data) as container:
        stream = container.streams.video[0]
        unit = stream.time_base
        if video_timebase_numerator:
            unit = Fraction(video_timebase_numerator, video_timebase_denominator)
        first, last = (pts * unit / stream.time_base for pts in video_pts_range)
        if last > 0:
            last += JITTER / stream.time_base
        if first > 0:
            margin = Fraction(seek_frame_margin) / stream.time_base
            container.seek(max(int(first - margin), 0), stream=stream)
        for frame in container.decode(stream):
            if frame.pts is None or frame.pts < first:
                continue
            if 0 <= last < frame.pts:
                break
            size = _size(frame, video_width, video_height, video_min_dimension)
            frame = reformatter.reformat(
                frame, width=size[0], height=size[1], format="rgb24", interpolation="AREA"
            )
            frames.append(frame.to_ndarray())
    return (torch.stack([torch.from_numpy(f) for f in frames]) if frames else nothing), nothing


def _open(video_data: Tensor) -> Any:
    import av

    return av.open(io.BytesIO(video_data.numpy().tobytes()))


def _seconds(stream: Any, container: Any) -> float:
    """Duration of a stream, or of its file where the stream does not say."""
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / 1_000_000  # PyAV gives a file's duration in microseconds


def _size(frame: Any, width: int, height: int, min_dimension: int) -> tuple[int, int]:
    """Width and height to decode to."""
    if width:
        return width, height
    cover = (min_dimension, min_dimension) if min_dimension else None
    return scaled_size(frame.width, frame.height, cover)
