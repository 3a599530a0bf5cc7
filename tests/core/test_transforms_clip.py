"""Videos to clips: files of every kind. tests/slowfast/test_transforms.py compares them with
PySlowFast's own loaders."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from mvitv2_core.media import MediaError, Video, open_image, scaled_size
from mvitv2_core.model_info import official_info
from mvitv2_core.transforms import ClipTransform
from tests.media_files import INFO, frame_number, lit, set_rotation, write_video

pytest.importorskip("av", reason="videos need PyAV: pip install av")


# 4 frames, every 5th: spans 20 frames at 30 a second.
def read(path: Path, info=INFO, scaled: bool = True) -> list[torch.Tensor]:
    transform = ClipTransform(info)
    with Video(path, transform.decoded_cover if scaled else None) as video:
        return transform.read(video)


def test_views_in_time(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", frame_number(60, 120, 80))
    clips = read(path, scaled=False)
    assert [lit(clip, 60) for clip in clips] == [
        [0, 6, 12, 19],
        [20, 26, 32, 39],
        [40, 46, 52, 59],
    ]
    views = ClipTransform(INFO)(path)
    assert views.shape == (3, 3, 4, 32, 32) and views.dtype == torch.float32
    three = ClipTransform(replace(INFO, views=(3, 3)))(path)
    assert three.shape == (9, 3, 4, 32, 32) and torch.equal(three[1::3], views)


@pytest.mark.parametrize(
    ("fps", "step"),
    [(15, 2.5), (60, 10), (Fraction(30000, 1001), 5), (Fraction(24000, 1001), 4), (7, 7 / 6)],
)
def test_frame_rates(fps: Fraction | int, step: float, tmp_path: Path) -> None:
    """A clip spans the same time whatever the rate."""
    path = write_video(tmp_path / "a.mp4", frame_number(90, 184, 40), fps=fps)
    clip = read(path, replace(INFO, views=(1, 1)), scaled=False)[0]
    numbers = lit(clip, 90)
    length = 4 * step
    start = int((90 - length) / 2)
    expected = [start + int((length - 1) * i / 3) for i in range(4)]
    assert np.abs(np.array(numbers) - expected).max() <= 1


def test_short_and_single(tmp_path: Path) -> None:
    """Shorter than a clip: the last frame is repeated, as PySlowFast does."""
    clips = read(write_video(tmp_path / "a.mp4", frame_number(10, 100, 40)), scaled=False)
    assert [lit(clip, 10) for clip in clips] == [[0, 6, 9, 9]] * 3
    single = read(write_video(tmp_path / "b.mp4", frame_number(1, 100, 40)))
    assert all(clip.shape == (4, 40, 100, 3) for clip in single)
    assert all(torch.equal(clip[0], clip[3]) for clip in single)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_flag(degrees: int, tmp_path: Path) -> None:
    """The stored frames are turned so that the picture is the upright one."""
    frames = frame_number(30, 64, 48)
    upright = read(write_video(tmp_path / "upright.mp4", frames, bf="0"), scaled=False)
    stored = np.ascontiguousarray(np.rot90(frames, degrees // 90, axes=(1, 2)))
    path = write_video(tmp_path / "turned.mp4", stored, bf="0")
    wrong = read(path, scaled=False)
    set_rotation(path, degrees)
    turned = read(path, scaled=False)
    assert turned[0].shape == upright[0].shape
    close = [(a.float() - b.float()).abs().mean() for a, b in zip(turned, upright, strict=True)]
    assert max(close) < 6  # the codec's own loss, other blocks
    if degrees == 180:
        assert (wrong[0].float() - upright[0].float()).abs().mean() > 20
    assert ClipTransform(INFO)(path).shape == (3, 3, 4, 32, 32)


@pytest.mark.parametrize("degrees", [0, 90])
def test_crops_that_are_not_square(degrees: int, tmp_path: Path) -> None:
    """Scaled while decoding, before the file's flag turns it."""
    path = write_video(tmp_path / "a.mp4", frame_number(40, 160, 120), bf="0")
    if degrees:
        set_rotation(path, degrees)
    info = replace(INFO.sized((4, 64, 32)), views=(3, 3))
    width, height = (120, 160) if degrees else (160, 120)
    scale = max(info.cover[0] / height, info.cover[1] / width)
    for clip in read(path, info):
        assert clip.shape == (4, round(height * scale), round(width * scale), 3)
    assert ClipTransform(info)(path).shape == (9, 3, 4, 64, 32)


def test_containers_without_a_length(tmp_path: Path) -> None:
    frames = frame_number(60, 120, 80)
    whole = read(write_video(tmp_path / "a.mp4", frames, bf="0"), scaled=False)
    for name in ("a.mkv", "a.ts", "a.h264", "a.avi"):
        clips = read(write_video(tmp_path / name, frames, bf="0"), scaled=False)
        numbers = [lit(clip, 60) for clip in clips]
        expected = [lit(clip, 60) for clip in whole]
        assert np.abs(np.array(numbers) - np.array(expected)).max() <= 1, name


@pytest.mark.parametrize("group", ["250", "40"])
def test_sought_between_key_frames(group: str, tmp_path: Path) -> None:
    """MPEG-TS has no index: what lies before the next key frame is found all the same."""
    frames = frame_number(90, 360, 80)
    path = write_video(tmp_path / "a.ts", frames, g=group, keyint_min=group)
    with Video(path) as video:
        for _ in range(2):  # from where the file stands, and from its start again
            assert sum(1 for _ in video.frames()) == 90
        for first, last in ((2.4, 2.5), (0.5, 0.6), (1.2, 1.3)):
            shown = [video.to_tensor(f.picture) for f in video.frames(first, last)]
            numbers = lit(torch.stack(shown), 90)
            assert numbers == list(range(round(first * 30), round(last * 30) + 1))


def test_a_late_start_is_no_damage(tmp_path: Path) -> None:
    """Matroska's tag says when a stream ends, not how long it is."""
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 120, 80, "yuv420p"
        for index, frame in enumerate(frame_number(60, 120, 80)):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts, picture.time_base = 5000 + round(index * 1000 / 30), Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    with Video(tmp_path / "a.mkv") as video:
        assert video.duration == pytest.approx(2.0, abs=0.05)
        assert sum(1 for _ in video.frames()) == 60 and video.broken == ""


def test_broken_tail(tmp_path: Path) -> None:
    """What can be decoded is used, and the reader says that the file is broken."""
    frames = frame_number(90, 160, 120)
    path = write_video(tmp_path / "a.mkv", frames)
    data = path.read_bytes()
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(data[: int(len(data) * 0.6)])
    numbers = [lit(clip, 90) for clip in read(cut, scaled=False)]
    assert numbers[0][0] == 0 and max(map(max, numbers)) < 70
    assert all(a <= b for clip in numbers for a, b in pairwise(clip))
    with Video(cut) as video:
        ClipTransform(INFO).read(video)
        assert video.broken.startswith("of 3.0 s, ")
    with Video(cut) as video:  # its first second is whole, but a part that reaches the end is not
        assert list(video.frames(0.0, 1.0)) and not video.broken
        assert list(video.frames(1.0, 2.5)) and video.broken
    # With its index in front, an MP4 that was cut off ends quietly.
    options = {"container_options": {"movflags": "+faststart"}}
    data = write_video(tmp_path / "front.mp4", frames, **options).read_bytes()
    (tmp_path / "front.mp4").write_bytes(data[: int(len(data) * 0.6)])
    with Video(tmp_path / "front.mp4") as video:
        numbers = [lit(clip, 90) for clip in ClipTransform(INFO).read(video)]
        assert video.broken.startswith("of 3.0 s, ") and numbers[0][0] == 0
    with Video(path) as video:
        ClipTransform(INFO).read(video)
        assert sum(1 for _ in video.frames()) == 90 and video.broken == ""
    # An MP4 without its index holds nothing that can be found.
    path = write_video(tmp_path / "a.mp4", frames)
    (tmp_path / "cut.mp4").write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(MediaError, match=r"cut\.mp4: cannot be read as a video"):
        read(tmp_path / "cut.mp4")


def test_empty_files(tmp_path: Path) -> None:
    """Said so, where FFmpeg and Pillow speak of invalid data."""
    pytest.importorskip("PIL", reason="pictures need Pillow: pip install Pillow")
    (tmp_path / "a.mp4").touch()
    (tmp_path / "a.jpg").touch()
    with pytest.raises(MediaError, match=r"a\.mp4: cannot be read as a video: the file is empty"):
        read(tmp_path / "a.mp4")
    with pytest.raises(MediaError, match=r"a\.jpg: cannot be read as a picture: the file is empty"):
        open_image(tmp_path / "a.jpg")


def test_ten_bits_and_sound(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    frames = frame_number(60, 120, 80)
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 120, 80, "yuv420p10le"
        sound = container.add_stream("aac", rate=44100)
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            container.mux(stream.encode(picture.reformat(format="yuv420p10le")))
        container.mux(stream.encode())
        silence = np.zeros((1, 3 * 44100), np.float32)
        samples = av.AudioFrame.from_ndarray(silence, format="flt", layout="mono")
        samples.sample_rate = 44100
        container.mux([*sound.encode(samples), *sound.encode()])
    numbers = [lit(clip, 60) for clip in read(tmp_path / "a.mp4", scaled=False)]
    expected = [[0, 6, 12, 19], [20, 26, 32, 39], [40, 46, 52, 59]]
    assert np.abs(np.array(numbers) - expected).max() <= 1
    with av.open(str(tmp_path / "sound.m4a"), "w") as container:
        sound = container.add_stream("aac", rate=44100)
        container.mux([*sound.encode(samples), *sound.encode()])
    with pytest.raises(MediaError, match=r"sound\.m4a: holds no video"):
        Video(tmp_path / "sound.m4a")


def test_files_that_are_no_videos(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.mp4").write_bytes(b"")
    for name in ("text.mp4", "empty.mp4", "missing.mp4"):
        with pytest.raises(MediaError, match=name):
            Video(tmp_path / name)


def test_sizes() -> None:
    assert scaled_size(640, 480, (256, 256)) == (341, 256)
    assert scaled_size(480, 640, (256, 256)) == (256, 341)
    assert scaled_size(320, 240, None) == (320, 240)
    assert scaled_size(340, 256, (256, 256)) == (340, 256)
    assert scaled_size(640, 480, (100, 300)) == (300, 225)


def test_arrays() -> None:
    transform = ClipTransform(INFO)
    frames = frame_number(60, 120, 80)
    views = transform(frames)
    assert views.shape == (3, 3, 4, 32, 32)
    assert torch.equal(transform(torch.from_numpy(frames)), views)
    assert [i.tolist() for i in transform.indices(60, 60.0)] == [
        [0, 13, 26, 39],
        [10, 23, 36, 49],
        [20, 33, 46, 59],
    ]
    for wrong in (frames[0], frames.astype(np.float32), frames[:0]):
        with pytest.raises(ValueError, match="video must be"):
            transform(wrong)
    with pytest.raises(ValueError, match="takes pictures"):
        ClipTransform(official_info("mvitv2_tiny_in1k"))


def test_segments_cover_the_video() -> None:
    transform = ClipTransform(replace(INFO, sampling="segments", views=(1, 3)))
    assert transform.indices(41, 30.0)[0].tolist() == [5, 15, 25, 35]
    # Twelve frames a second are seen as the thirty that ffmpeg makes of them.
    assert transform.indices(16, 12.0)[0].tolist() == [2, 6, 9, 13]
    assert transform.indices(1, 30.0)[0].tolist() == [0, 0, 0, 0]
