"""Crops and pictures of drawn sizes: what comes out has the crop's size, and is cut from a picture
that was made no larger than it must be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import strategies as st

from mvitv2_core import create_model
from mvitv2_core.media import scaled_size
from mvitv2_core.model_info import clip_info, image_info
from mvitv2_core.resize import centre_crop, crop
from mvitv2_core.transforms import ClipTransform, ImageTransform, create_transform
from tests.draws import drawn, examples

sizes = st.tuples(st.integers(1, 60), st.integers(1, 60))


@examples(100, 1000, 20000)
def test_the_output_is_the_crop(count: int, tally: Callable[..., None]) -> None:
    @drawn(count, sizes, sizes, st.sampled_from((256, 224)), st.booleans())
    def check(size: tuple[int, int], given: tuple[int, int], resize: int, bicubic: bool) -> None:
        pixels = torch.zeros(2, *given, 3, dtype=torch.uint8)
        image = replace(image_info("any", 3), resize=resize).sized(size)
        image = image if bicubic else replace(image, interpolation="bilinear")
        assert ImageTransform(image)(pixels[0].permute(2, 0, 1)).shape == (3, *size)
        clip = replace(clip_info("any", 3, (2, 224, 224)), resize=resize, views=(1, 3))
        clip = clip.sized((2, *size))
        assert ClipTransform(clip)(pixels).shape == (3, 3, 2, *size)
        # While decoding too, and one side is not a pixel longer than what must be covered.
        width, height = scaled_size(given[1], given[0], clip.cover)
        assert height >= size[0] and width >= size[1]
        assert height == clip.cover[0] or width == clip.cover[1]

    check()
    tally("sizes drawn, of pictures and models' inputs", count)


def test_crops_that_are_not_square() -> None:
    with torch.device("meta"):
        model = create_model("mvitv2_tiny", input_size=(160, 192))
    assert model.info.cover == (182, 218)
    transform = create_transform(model.info)
    assert transform(torch.zeros(3, 500, 500, dtype=torch.uint8)).shape == (3, 160, 192)


def test_too_small_for_the_crop() -> None:
    """A negative offset counted from the far end, and a sliver came out."""
    with pytest.raises(ValueError, match=r"a crop of \(4, 8\) needs .* got \(8, 7\)"):
        centre_crop(torch.zeros(3, 8, 7), (4, 8))
    with pytest.raises(ValueError, match=r"a crop of \(4, 8\) needs .* got \(3, 9\)"):
        crop(torch.zeros(1, 3, 3, 9), (4, 8), 1)
    with pytest.raises(ValueError, match=r"resize must be at least .* \(224, 224\), got 200"):
        replace(image_info("any", 3), resize=200)
