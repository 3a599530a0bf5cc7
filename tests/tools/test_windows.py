"""Windows of long videos: which frames they take, in one pass."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from mvitv2_core.media import Video
from mvitv2_core.transforms import ClipTransform
from mvitv2_tools.windows import read_windows
from tests.media_files import INFO, frame_number, lit, write_video

pytest.importorskip("av", reason="videos need PyAV: pip install av")
FRAMES = 100


@pytest.mark.parametrize("fps", [30, Fraction(30000, 1001), 25])
@pytest.mark.parametrize(("length", "stride"), [(1.0, 1.0), (0.8, 0.4), (0.7, 1.3), (1.6, 1.6)])
def test_each_window_is_a_video_of_its_own(
    fps: Fraction | int, length: float, stride: float, tmp_path: Path
) -> None:
    """The frames are those that the transform takes from the window cut out of the video."""
    frames = frame_number(FRAMES, 200, 40)
    path = write_video(tmp_path / "a.mp4", frames, fps)
    transform = ClipTransform(replace(INFO, views=(2, 1)))
    size = round(length * float(fps))
    with Video(path) as video:
        given = [
            (window, clips) for window, clips in read_windows(video, transform, length, stride)
        ]
    count = 0
    for number, (window, clips) in enumerate(given):
        start = round(number * stride * float(fps))
        assert window.start == pytest.approx(number * stride)
        expected = transform.indices(size, float(fps))
        for clip, index in zip(clips, expected, strict=True):
            numbers = [min(start + i, FRAMES - 1) for i in index.tolist()]
            assert lit(clip, FRAMES) == numbers, (number, window)
        count += 1
    left = [FRAMES - i * stride * float(fps) for i in range(100)]
    assert count == sum(round(n) >= round(length * float(fps) / 2) for n in left)
    assert given[-1][0].end <= FRAMES / float(fps) + 1e-6


def test_shorter_than_a_window(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", frame_number(5, 64, 48))
    transform = ClipTransform(INFO)
    with Video(path) as video:
        given = list(read_windows(video, transform, 10.0, 10.0))
    assert len(given) == 1 and given[0][0].end == pytest.approx(5 / 30)
    assert all(clip.shape == (4, 48, 64, 3) for clip in given[0][1])


def test_gaps_show_the_frame_before(tmp_path: Path) -> None:
    """Frames 20 to 39 are missing in the file: frame 19 stays on the screen."""
    av = pytest.importorskip("av")
    frames, path = frame_number(60, 120, 48), tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.height, stream.width, stream.pix_fmt = 48, 120, "yuv420p"
        stream.options = {"crf": "8", "bf": "0"}
        for number, pixels in enumerate(frames):
            if not 20 <= number < 40:
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, 30)
                container.mux(stream.encode(frame))
        container.mux(stream.encode())
    transform = ClipTransform(replace(INFO, views=(1, 1)))
    with Video(path) as video:
        video.fps = 30.0
        windows = list(read_windows(video, transform, 1.0, 1.0))
    shown = [n if not 20 <= n < 40 else 19 for n in range(60)]
    for number, (_, clips) in enumerate(windows):
        index = transform.indices(30, 30.0)[0] + 30 * number
        assert lit(clips[0], 60) == [shown[i] for i in index.tolist()]


def test_memory_does_not_grow(tmp_path: Path) -> None:
    """No more frames are alive than two windows take."""
    path = write_video(tmp_path / "a.mp4", frame_number(FRAMES, 64, 48))
    transform, alive = ClipTransform(INFO), []

    class Counting(Video):
        def to_tensor(self, picture: object) -> torch.Tensor:
            pixels = super().to_tensor(picture)
            import weakref

            weakref.finalize(pixels, alive.pop)
            alive.append(1)
            return pixels

    most = 0
    with Counting(path) as video:
        for _ in read_windows(video, transform, 0.7, 0.7):
            most = max(most, len(alive))
    assert 0 < most <= 2 * 3 * 4
