"""Resizing and cropping, each equal to one published transform's."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def pillow_bicubic(pixels: Tensor, height: int, width: int) -> Tensor:
    """(C, h, w) uint8 -> (C, height, width) uint8, equal to Pillow's ``resize`` with ``BICUBIC``.

    Pillow's arithmetic: first along rows, then along columns, each with weights of 22 bits and
    rounded to 8 bits (its ``Resample.c``). Products and sums are whole numbers below 2**53, which
    float64 holds exactly. Recent versions of Pillow begin with the columns where a picture is
    more than twice as tall as wide and shrinks: there the intermediate rounding differs.
    """
    for axis, size in ((2, width), (1, height)):
        if pixels.shape[axis] != size:
            weights = _bicubic_weights(pixels.shape[axis], size).to(pixels.device)
            total = pixels.movedim(axis, -1).double() @ weights.T
            rounded = ((total + (1 << 21)) / (1 << 22)).floor().clamp(0, 255)
            pixels = rounded.to(torch.uint8).movedim(-1, axis)
    return pixels


def _bicubic_weights(length: int, size: int) -> Tensor:
    """(size, length) float64: whole numbers, in units of 2**-22."""
    scale = length / size
    stretch = max(scale, 1.0)
    centres = (torch.arange(size, dtype=torch.float64) + 0.5) * scale
    first = (centres - 2 * stretch + 0.5).clamp(min=0).long()
    last = (centres + 2 * stretch + 0.5).clamp(max=length).long()
    places = torch.arange(length)
    inside = (places >= first[:, None]) & (places < last[:, None])
    x = ((places - centres[:, None] + 0.5) * (1 / stretch)).abs()
    near = ((1.5 * x - 2.5) * x) * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    weights = torch.where(x < 1, near, torch.where(x < 2, far, 0.0)) * inside
    weights = weights * (1 / weights.sum(dim=1, keepdim=True)) * (1 << 22)
    return (weights + 0.5 * weights.sign()).trunc()


def covering(
    height: int, width: int, cover: tuple[int, int], scaled: Callable[[int, int, int], int]
) -> tuple[int, int]:
    """The size of (height, width) scaled, its aspect kept, until it just covers another.

    Args:
        height, width: of a picture.
        cover: (H, W); for a square that is the length of the picture's shorter side.
        scaled: ``scaled(length, other, side)`` is the length of a side where the other one becomes
            ``side``, rounded as one of the published transforms does.
    """
    if width * cover[0] <= height * cover[1]:
        return max(scaled(height, width, cover[1]), cover[0]), cover[1]
    return cover[0], max(scaled(width, height, cover[0]), cover[1])


def scale_to_cover(images: Tensor, cover: tuple[int, int]) -> Tensor:
    """(N, C, h, w) floats scaled until they just cover (H, W), the longer side rounded down.

    Bilinear without antialiasing (PySlowFast's ``random_short_side_scale_jitter``, for a square).
    """

    def scaled(length: int, other: int, side: int) -> int:
        return length if other == side else math.floor(length / other * side)

    height, width = images.shape[2:]
    size = covering(height, width, cover, scaled)
    if size == (height, width):
        return images
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False)


def centre_crop(image: Tensor, size: tuple[int, int]) -> Tensor:
    """(C, h, w) -> (C, H, W), with torchvision's ``CenterCrop``'s rounding.

    Raises:
        ValueError: the image is smaller than the crop.
    """
    height, width = image.shape[1:]
    _check_covers(height, width, size)
    top, left = round((height - size[0]) / 2), round((width - size[1]) / 2)
    return image[:, top : top + size[0], left : left + size[1]]


def crop(images: Tensor, size: tuple[int, int], place: int) -> Tensor:
    """(N, C, h, w) -> (N, C, H, W), cut out along the side that has more room.

    Args:
        images: at least as large as the crop.
        size: (H, W).
        place: 0 for the left or top, 1 for the centre, 2 for the right or bottom
            (PySlowFast's ``uniform_crop``, whose crops are square).

    Raises:
        ValueError: the images are smaller than the crop.
    """
    height, width = images.shape[2:]
    _check_covers(height, width, size)
    top, left = math.ceil((height - size[0]) / 2), math.ceil((width - size[1]) / 2)
    if height - size[0] > width - size[1]:
        top = (0, top, height - size[0])[place]
    else:
        left = (0, left, width - size[1])[place]
    return images[:, :, top : top + size[0], left : left + size[1]]


def _check_covers(height: int, width: int, size: tuple[int, int]) -> None:
    # A negative offset would count from the far end, and give a sliver.
    if height < size[0] or width < size[1]:
        raise ValueError(f"a crop of {size} needs at least as many pixels, got {height, width}")
