"""Pictures to tensors: against torchvision's composition as facebookresearch/mvit's test uses it,
and files of every kind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mvitv2_core.media import MediaError, open_image
from mvitv2_core.model_info import image_info, official_info
from mvitv2_core.resize import pillow_bicubic
from mvitv2_core.transforms import ImageTransform
from tests.media_files import picture

Image = pytest.importorskip("PIL.Image", reason="pictures need Pillow: pip install Pillow")
SIZES = [(100, 80), (80, 100), (333, 500), (640, 480), (256, 256), (300, 256), (57, 401), (20, 31)]


def composed(image: Image.Image, size: int = 224) -> torch.Tensor:
    """What facebookresearch/mvit does: Resize(int(size / 0.875), 3), CenterCrop, Normalize."""
    transforms = pytest.importorskip("torchvision.transforms", reason="compared with torchvision")
    chain = [
        # 3, as it is written there, is Pillow's bicubic.
        transforms.Resize(int(1 / 0.875 * size), interpolation=Image.Resampling(3)),
        transforms.CenterCrop(size),
        transforms.ToTensor(),
        transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ]
    return transforms.Compose(chain)(image.convert("RGB"))


@pytest.mark.parametrize("size", SIZES)
def test_equals_the_published_test(size: tuple[int, int], tmp_path: Path) -> None:
    """Bit for bit from files, Pillow images, arrays and tensors."""
    transform = ImageTransform(official_info("mvitv2_tiny_in1k"))
    pixels = picture(*size)
    image = Image.fromarray(pixels)
    expected = composed(image)
    assert torch.equal(transform(image), expected)
    path = tmp_path / "a.png"
    image.save(path)
    assert torch.equal(transform(path), expected) and torch.equal(transform(str(path)), expected)
    image.save(tmp_path / "a.jpg", quality=80)
    assert torch.equal(transform(tmp_path / "a.jpg"), composed(Image.open(tmp_path / "a.jpg")))
    assert torch.equal(transform(pixels), expected)
    assert torch.equal(transform(torch.from_numpy(pixels).permute(2, 0, 1)), expected)


@pytest.mark.parametrize("size", [(7, 5), (33, 52), (224, 31), (122, 194)])
def test_pillow_bicubic(size: tuple[int, int]) -> None:
    """97 wide, 61 high: both ways shrunk, both ways enlarged, and one of each."""
    pixels = picture(97, 61) // 128 * 255  # the hardest edges
    height, width = size
    expected = np.array(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))
    got = pillow_bicubic(torch.from_numpy(pixels).permute(2, 0, 1), height, width)
    assert torch.equal(got.permute(1, 2, 0), torch.from_numpy(expected))


def test_tall_pictures() -> None:
    """Where Pillow's version decides which axis is first, a few levels at the edges differ."""
    transform = ImageTransform(official_info("mvitv2_tiny_in1k"))
    pixels = picture(300, 900)
    difference = (transform(pixels) - transform(Image.fromarray(pixels))).abs()
    levels = difference * 255 * torch.tensor(transform.info.std)[:, None, None]
    assert levels.max() < 4.01 and levels.mean() < 0.5


def test_other_sizes() -> None:
    image = Image.fromarray(picture(500, 333))
    for size in (64, 160, 384):
        transform = ImageTransform(image_info("any", 10).sized((size, size)))
        assert torch.equal(transform(image), composed(image, size))


def test_bilinear_of_pyslowfast() -> None:
    """Its loader without augmentation: floats, bilinear, crop from the rounded-up centre."""
    info = replace(image_info("any", 10), resize=32, interpolation="bilinear", input_size=(32, 32))
    pixels = picture(51, 40)
    floats = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    scaled = torch.nn.functional.interpolate(floats[None], (32, 40), mode="bilinear")
    mean, std = (torch.tensor(v)[:, None, None] for v in (info.mean, info.std))
    expected = (scaled[0, :, :, 4:36] - mean) / std
    assert torch.equal(ImageTransform(info)(Image.fromarray(pixels)), expected)
    assert torch.equal(ImageTransform(info)(pixels), expected)


def test_orientation(tmp_path: Path) -> None:
    """EXIF's eight orientations show the same picture."""
    upright = Image.fromarray(picture(60, 40))
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    for orientation, turn in undo.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / f"{orientation}.png"
        upright.transpose(turn).save(path, exif=exif)
        assert np.array_equal(np.array(open_image(path)), np.array(upright)), orientation


def test_modes(tmp_path: Path) -> None:
    pixels = picture(60, 40)
    grey = pixels[..., 0]
    rgb = Image.fromarray(pixels)

    def read(name: str, image: Image.Image) -> np.ndarray:
        image.save(tmp_path / name)
        return np.array(open_image(tmp_path / name))

    alpha = np.dstack([pixels, np.full(grey.shape, 90, np.uint8)])
    assert np.array_equal(read("alpha.png", Image.fromarray(alpha)), pixels)
    three = np.dstack([grey] * 3)
    assert np.array_equal(read("grey.png", Image.fromarray(grey)), three)
    wide = grey.astype(np.uint16) * 256 + 77
    assert np.array_equal(read("grey16.png", Image.fromarray(wide)), three)
    assert np.array_equal(read("grey16.tif", Image.fromarray(wide)), three)
    cmyk = read("cmyk.tif", rgb.convert("CMYK"))
    assert np.abs(cmyk.astype(int) - pixels).max() <= 1
    jpeg = read("cmyk.jpg", rgb.convert("CMYK"))
    assert np.abs(jpeg.astype(int) - pixels).mean() < 12
    bilevel = np.array(rgb.convert("1").convert("RGB"))
    assert np.array_equal(read("bilevel.png", rgb.convert("1")), bilevel)
    palette = rgb.convert("P")
    assert np.array_equal(read("palette.gif", palette), np.array(palette.convert("RGB")))
    with pytest.raises(MediaError, match=r"float\.tif: a picture of floating point"):
        read("float.tif", Image.fromarray(grey.astype(np.float32)))
    with pytest.raises(MediaError, match=r"int\.tif: grey values from \d+ to 255 are no 16-bit"):
        read("int.tif", Image.fromarray(grey.astype(np.int32)))  # else it would be black


def test_files_that_are_no_pictures(tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "whole.png")
    data = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("no picture")
    for name in ("cut.png", "empty.png", "text.jpg", "missing.png"):
        with pytest.raises(MediaError, match=name):
            open_image(tmp_path / name)
    with pytest.raises(MediaError):
        open_image(tmp_path)


def test_what_is_refused() -> None:
    transform = ImageTransform(image_info("any", 10))
    for wrong in (np.zeros((4, 4)), np.zeros((4, 4, 3)), torch.zeros(4, 4, 3, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="image must be uint8"):
            transform(wrong)
    with pytest.raises(ValueError, match="takes clips"):
        ImageTransform(official_info("mvitv2_small_16x4_k400"))
