"""From pictures and videos to a model's input, as the published figures were tested.

What equals what:

- A picture goes through Pillow's resize, as in facebookresearch/mvit's validation transform: bit
  for bit the same tensor, from a file and from Pillow. For an array or tensor ``pillow_bicubic``
  does Pillow's arithmetic in PyTorch: bit for bit too, but where Pillow begins with the columns.
- A Kinetics clip from a file is scaled by swscale while it is decoded, as PySlowFast's test
  loader does over torchvision's reader: bit for bit the same tensor. Arrays of whole frames are
  scaled by PyTorch's bilinear filter, as that loader scales what its reader did not.
- Something-Something v2 is trained on frames extracted at 30 a second: the same frames give the
  same tensor; a video of another rate is sampled at the times of such frames.

A file's EXIF orientation or rotation flag is applied, which the official loaders do not do.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .media import MediaError, Video, open_image, to_rgb
from .model_info import ModelInfo
from .resize import centre_crop, covering, crop, pillow_bicubic, scale_to_cover

if TYPE_CHECKING:
    from PIL.Image import Image


class ImageTransform:
    """A picture to (3, H, W) float32.

    Args:
        info: of an image model.

    Raises:
        ValueError: ``info`` is of a clip model.
    """

    def __init__(self, info: ModelInfo) -> None:
        if info.task != "image":
            raise ValueError(f"info must be of an image model, {info.name} takes clips")
        self.info = info

    def __call__(self, image: str | os.PathLike[str] | Image | Any) -> Tensor:
        """Prepare one picture.

        Args:
            image: a file, a Pillow image, an (H, W, 3) uint8 array or a (3, H, W) uint8 tensor.

        Raises:
            MediaError: a file that is no picture.
            TypeError, ValueError: something else, or of another shape or type.
        """
        if isinstance(image, (str, os.PathLike)):
            image = open_image(image)
        if isinstance(image, Tensor):
            pixels = image
        elif hasattr(image, "convert"):  # Pillow's
            if self.info.interpolation == "bicubic":
                return self._normalise(self._pillow(to_rgb(image)).float() / 255)
            pixels = _from_pillow(to_rgb(image))
        else:
            pixels = torch.as_tensor(image)
            pixels = pixels.permute(2, 0, 1) if pixels.ndim == 3 else pixels
        if pixels.ndim != 3 or pixels.shape[0] != 3 or pixels.dtype != torch.uint8:
            raise ValueError(
                f"image must be uint8, an (H, W, 3) array or a (3, H, W) tensor, got "
                f"{tuple(pixels.shape)} of {pixels.dtype}"
            )
        if self.info.interpolation == "bicubic":
            height, width = self._resized(pixels.shape[1], pixels.shape[2])
            pixels = centre_crop(pillow_bicubic(pixels, height, width), self.info.crop)
            return self._normalise(pixels.float() / 255)
        scaled = scale_to_cover(pixels.float()[None] / 255, self.info.cover)
        return self._normalise(crop(scaled, self.info.crop, 1)[0])

    def _pillow(self, image: Image) -> Tensor:
        from PIL.Image import Resampling

        height, width = self._resized(image.height, image.width)
        if (width, height) != image.size:
            image = image.resize((width, height), Resampling.BICUBIC)
        return centre_crop(_from_pillow(image), self.info.crop)

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """With torchvision's ``Resize``'s rounding."""
        return covering(
            height, width, self.info.cover, lambda length, other, side: int(side * length / other)
        )

    def _normalise(self, pixels: Tensor) -> Tensor:
        mean, std = (pixels.new_tensor(v)[:, None, None] for v in (self.info.mean, self.info.std))
        pixels = pixels.flip(0) if self.info.channel_order == "BGR" else pixels
        return (pixels - mean) / std


class ClipTransform:
    """A video to its test views: (views, 3, T, H, W) float32, all crops of a clip in turn.

    Args:
        info: of a clip model.

    Raises:
        ValueError: ``info`` is of an image model.
    """

    def __init__(self, info: ModelInfo) -> None:
        if info.task != "clip":
            raise ValueError(f"info must be of a clip model, {info.name} takes pictures")
        self.info = info
        # PySlowFast's Kinetics loader scales while decoding, its SSv2 loader does not.
        self.decoded_cover = info.cover if info.interpolation == "area" else None

    def __call__(self, video: str | os.PathLike[str] | Any, fps: float = 30.0) -> Tensor:
        """Prepare one video.

        Args:
            video: a file, or (N, H, W, 3) uint8 frames as an array or tensor.
            fps: frames a second of an array; a file knows its own.

        Raises:
            MediaError: a file that is no video, or ends before its first frame.
            ValueError: frames of another shape or type.
        """
        if isinstance(video, (str, os.PathLike)):
            with Video(video, self.decoded_cover) as opened:
                clips = self.read(opened)
        else:
            frames = torch.as_tensor(video)
            if frames.ndim != 4 or not len(frames) or frames.dtype != torch.uint8:
                raise ValueError(
                    f"video must be (N, H, W, 3) uint8 frames, got {tuple(frames.shape)} of "
                    f"{frames.dtype}"
                )
            clips = [frames[index] for index in self.indices(len(frames), fps)]
        return torch.cat([self.prepare(clip) for clip in clips])

    def indices(self, frames: int, fps: float) -> list[Tensor]:
        """Which frames each clip takes from a video of so many: (T,) indices for each."""
        if self.info.sampling == "segments":
            times = segments(max(round(frames * 30 / fps), 1), self.info.frames)
            # The frame that is shown at each 30th of a second, times rounded as ffmpeg -r does.
            index = ((times.double() + 0.5) * (fps / 30)).ceil().long() - 1
            return [index.clamp(0, frames - 1)]
        return [
            torch.linspace(start, end, self.info.frames).clamp(0, frames - 1).long()
            for start, end in self.spans(frames, fps)
        ]

    def spans(self, frames: float, fps: float) -> list[tuple[float, float]]:
        """First and last position of each clip, in frames (PySlowFast's ``decoder.py``)."""
        info, count = self.info, self.info.views[0]
        length = max(1.0, info.sampling_rate * info.frames / info.target_fps * fps)
        room = max(frames - length, 0)
        if info.sampling == "fraction":
            starts = [room * index / count for index in range(count)]
        elif count == 1:
            starts = [math.floor(room / 2)]
        else:
            starts = [index * math.floor(room / (count - 1)) for index in range(count)]
        return [(start, start + length - 1) for start in starts]

    def read(self, video: Video) -> list[Tensor]:
        """The frames of each clip of a file: (T, h, w, 3) uint8 for each.

        No more is held than these. Clips of a long file are sought, as PySlowFast does.

        Raises:
            MediaError: nothing could be decoded.
        """
        info, fps = self.info, video.fps
        frames = fps * (video.duration or 0.0)
        if info.sampling != "segments" and frames > info.frames * info.sampling_rate:
            clips = [self._between(video, *span) for span in self.spans(frames, fps)]
            found = [clip for clip in clips if clip is not None]
            if len(found) == len(clips):
                return found
        # Short, of unknown length, or broken before its end: what can be decoded is counted first.
        count = sum(1 for _ in video.frames())
        if not count:
            raise MediaError(f"{video.file}: no frame could be decoded")
        wanted = self.indices(count, fps)
        every = torch.cat(wanted).unique()
        picked = pick(video, video.frames(), every)
        if picked is None:
            raise MediaError(f"{video.file}: could be decoded only once")
        return [picked[torch.searchsorted(every, index)] for index in wanted]

    def _between(self, video: Video, start: float, end: float) -> Tensor | None:
        """The clip between two positions, in frames; None where nothing is there."""
        frames = video.frames(start / video.fps, end / video.fps)
        index = torch.linspace(0, end - start, self.info.frames).clamp(min=0).long()
        return pick(video, frames, index)

    def prepare(self, frames: Tensor) -> Tensor:
        """(T, h, w, 3) uint8 frames of one clip -> (crops, 3, T, H, W) float32."""
        mean, std = torch.tensor(self.info.mean), torch.tensor(self.info.std)
        frames = frames.flip(-1) if self.info.channel_order == "BGR" else frames
        clip = (frames.float() / 255 - mean.to(frames.device)) / std.to(frames.device)
        clip = scale_to_cover(clip.permute(3, 0, 1, 2), self.info.cover)
        places = (0, 1, 2) if self.info.views[1] == 3 else (1,)
        return torch.stack([crop(clip, self.info.crop, place) for place in places])


def create_transform(info: ModelInfo) -> ImageTransform | ClipTransform:
    """What prepares the inputs of a model: ``create_transform(model.info)("photo.jpg")``."""
    return ImageTransform(info) if info.task == "image" else ClipTransform(info)


def pick(video: Video, frames: Iterable[Any], index: Tensor) -> Tensor | None:
    """Frames of a stream by their (T,) rising numbers in it; the last stands in for those beyond.

    Returns:
        (T, h, w, 3) uint8, or None where the stream is empty.
    """
    wanted, kept, last, number = set(index.tolist()), {}, None, -1
    for number, frame in enumerate(frames):
        last = frame.picture
        if number in wanted:
            kept[number] = video.to_tensor(last)
    if last is None:
        return None
    kept[number] = video.to_tensor(last)
    return torch.stack([kept[min(i, number)] for i in index.tolist()])


def segments(frames: int, count: int) -> Tensor:
    """The middle frames of ``count`` equal parts: (count,) indices (PySlowFast's ``ssv2.py``)."""
    size = (frames - 1) / count
    bounds = [round(size * part) for part in range(count + 1)]
    return torch.tensor([(a + b) // 2 for a, b in pairwise(bounds)])


def _from_pillow(image: Image) -> Tensor:
    """An RGB image as (3, H, W) uint8."""
    data = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return data.view(image.height, image.width, 3).permute(2, 0, 1)
