"""Reads pictures and videos with Pillow and PyAV, imported when used: upright RGB, 8 bit."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from fractions import Fraction
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .resize import covering

if TYPE_CHECKING:
    from PIL.Image import Image

INSTALL = "pip install 'mvitv2[predict]'"
# torchvision's reader, which PySlowFast's published figures were tested with, takes frames this
# much past the end of a range, lest rounding lose the last one (video_reader.cpp).
JITTER = Fraction(1, 10_000)


class MediaError(ValueError):
    """A picture or video that cannot be read; the message names the file and the cause."""


class Frame(NamedTuple):
    """A decoded frame and the time, in seconds from the stream's start, at which it is shown."""

    seconds: float
    picture: Any


def open_image(path: str | os.PathLike[str]) -> Image:
    """A picture as upright 8-bit RGB.

    The EXIF orientation is applied. Transparency is dropped, as Pillow's ``convert("RGB")`` drops
    it, and of 16 bits the upper eight are taken.

    Raises:
        MediaError: not a picture, damaged, or one of floating point.
        ImportError: Pillow is missing.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ImportError(f"reading pictures needs Pillow: {INSTALL}") from error
    file = os.fspath(path)
    try:
        with Image.open(file) as image:
            upright = ImageOps.exif_transpose(image)
    except OSError as error:  # Pillow's own for damaged and unknown files
        cause = _cause(error, file).replace(repr(file), "").strip()
        raise MediaError(f"{file}: cannot be read as a picture: {cause}") from error
    except Image.DecompressionBombError as error:
        raise MediaError(f"{file}: {error}") from error
    except (ValueError, SyntaxError, EOFError, IndexError, TypeError) as error:
        raise MediaError(f"{file}: damaged: {error}") from error
    try:
        return to_rgb(upright)
    except ValueError as error:
        raise MediaError(f"{file}: {error}") from error


def to_rgb(image: Image) -> Image:
    """A Pillow image of any mode as 8-bit RGB.

    Raises:
        ValueError: a mode without a fixed range, such as floating point.
    """
    if image.mode in ("I", "I;16", "I;16B", "I;16L", "I;16N"):
        low, high = image.getextrema()
        few = image.mode == "I" and 0 < high < 256  # type: ignore[operator]  # 8 bits in 32
        if few or low < 0 or high > 65535:  # type: ignore[operator]
            raise ValueError(f"grey values from {low} to {high} are no 16-bit picture")
        # Pillow's own conversion cuts at 255 instead.
        grey = torch.frombuffer(bytearray(image.convert("I").tobytes()), dtype=torch.int32) >> 8
        data = bytes(grey.to(torch.uint8).tolist())
        from PIL import Image

        return Image.frombytes("L", image.size, data).convert("RGB")
    if image.mode == "F":
        raise ValueError("a picture of floating point has no fixed range of values")
    return image.convert("RGB")


class Video:
    """A video file, opened for decoding; a context manager.

    ``fps`` is the frame rate, ``duration`` seconds or None where the file does not say,
    ``broken`` the reason why decoding ended before the end, "" as long as it did not.

    Args:
        path: the file.
        cover: (H, W) that frames are scaled to cover while decoding, with swscale's area filter as
            torchvision's reader does; None for the file's size.

    Raises:
        MediaError: no video in it, or not readable.
        ImportError: PyAV is missing.
    """

    def __init__(self, path: str | os.PathLike[str], cover: tuple[int, int] | None = None) -> None:
        try:
            import av
            from av.video.reformatter import VideoReformatter
        except ImportError as error:
            raise ImportError(f"reading videos needs PyAV: {INSTALL}") from error
        self.file, self.cover, self.broken = os.fspath(path), cover, ""
        self._begun = False
        self._size: tuple[int, int] | None = None
        self._errors = (av.error.FFmpegError, UnicodeDecodeError)
        # One for all frames: a frame's own sets up its scaler anew each time.
        self._reformatter = VideoReformatter()
        self._open()
        rate = self._stream.guessed_rate or self._stream.average_rate  # as torchvision's reader
        self.fps = float(rate) if rate else 0.0
        if not self.fps:
            self._container.close()
            raise MediaError(f"{self.file}: has no frame rate")
        self.duration = self._duration()

    def __enter__(self) -> Video:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._container.close()

    def frames(self, first: float = 0.0, last: float | None = None) -> Iterator[Frame]:
        """Frames shown from ``first`` to ``last`` (seconds, both included), in order.

        The pixels are decoded one frame at a time; ``to_tensor`` turns them into RGB.

        Raises:
            MediaError: nothing at all could be decoded.
        """
        unit = self._stream.time_base
        begin = self._stream.start_time or 0
        start = int(first / unit) + begin
        end = None if last is None else int(last / unit) + begin + JITTER / unit
        decoded, shown = 0, None  # type: int, float | None
        sought = self._begun or first > 0
        self._begun = True
        try:
            for frame in self._decode(max(start - int(1 / unit), begin) if sought else None):
                decoded += 1
                if frame.pts is None:  # a bare stream: frames follow each other
                    yield Frame((decoded - 1) / self.fps, frame)
                    continue
                shown = float((frame.pts - begin) * unit)
                if first > 0 and frame.pts < start:
                    continue
                if end is not None and frame.pts > end:
                    return
                yield Frame(shown, frame)
            expected = self._stream_duration()
            if expected is not None and shown is not None:
                self._note_end(shown + 1 / self.fps, expected)
        except self._errors as error:
            if not decoded:
                raise MediaError(f"{self.file}: cannot be decoded: {_cause(error)}") from error
            self.broken = _cause(error)

    def _note_end(self, seconds: float, expected: float) -> None:
        """A file whose end was cut off may end quietly."""
        if expected - seconds > max(0.5, 0.05 * expected):
            self.broken = f"of {expected:.1f} s, {seconds:.1f} s can be decoded"

    def to_tensor(self, picture: Any) -> Tensor:
        """A decoded frame as (H, W, 3) uint8 RGB, scaled, and turned as its rotation flag says."""
        turns = round(picture.rotation / 90) % 4  # anticlockwise
        if self._size is None:  # a stream may change its size; what comes out does not
            cover = self.cover[::-1] if self.cover and turns % 2 else self.cover
            self._size = scaled_size(picture.width, picture.height, cover)
        width, height = self._size
        try:
            rgb = self._reformatter.reformat(
                picture, width=width, height=height, format="rgb24", interpolation="AREA"
            )
        except (*self._errors, ValueError) as error:
            raise MediaError(f"{self.file}: its pixels cannot be read: {_cause(error)}") from error
        pixels = torch.from_numpy(rgb.to_ndarray())
        return torch.rot90(pixels, turns).contiguous() if turns else pixels

    def _open(self) -> None:
        import av

        try:
            self._container = av.open(self.file)
        except self._errors as error:
            cause = _cause(error, self.file)
            raise MediaError(f"{self.file}: cannot be read as a video: {cause}") from error
        streams = self._container.streams.video
        if not streams:
            self._container.close()
            raise MediaError(f"{self.file}: holds no video")
        self._stream = streams[0]
        self._stream.thread_type = "AUTO"

    def _decode(self, pts: int | None) -> Iterator[Any]:
        """Frames from a key frame at or before ``pts`` on; None: from where the file stands."""
        if pts is None:
            return iter(self._container.decode(self._stream))
        try:
            self._container.seek(pts, stream=self._stream)
            frames = self._container.decode(self._stream)
            first = next(frames)
            if first.pts is not None and first.pts <= pts:
                return itertools.chain([first], frames)
        except (*self._errors, StopIteration):  # a bare stream, or a damaged index
            pass
        # Else MPEG-TS: it is sought to between key frames, and gives frames from the next one on.
        self._container.close()
        self._open()
        return iter(self._container.decode(self._stream))

    def _stream_duration(self) -> float | None:
        """Seconds that the file says its pictures take; Matroska says in a tag when they end."""
        unit = self._stream.time_base
        if self._stream.duration is not None:
            return float(self._stream.duration * unit)
        tag = re.fullmatch(r"(\d+):(\d+):(\d+\.?\d*)", self._stream.metadata.get("DURATION", ""))
        if tag is None:
            return None
        begin = float((self._stream.start_time or 0) * unit)
        return 3600 * int(tag[1]) + 60 * int(tag[2]) + float(tag[3]) - begin

    def _duration(self) -> float | None:
        seconds = self._stream_duration()
        if seconds is not None:
            return seconds
        if self._container.duration:
            return self._container.duration / 1_000_000  # PyAV gives a file's in microseconds
        return None


def scaled_size(width: int, height: int, cover: tuple[int, int] | None) -> tuple[int, int]:
    """Width and height scaled until they just cover (H, W); None changes nothing.

    The longer side is rounded to the nearest, half away from zero (torchvision's
    ``decoder/util.cpp``, for a square).
    """
    if cover is None:
        return width, height
    height, width = covering(
        height, width, cover, lambda length, other, side: int(length * side / other + 0.5)
    )
    return width, height


def _cause(error: Exception, file: str = "") -> str:
    if file and os.path.isfile(file) and not os.path.getsize(file):
        return "the file is empty"
    return getattr(error, "strerror", None) or str(error)
