"""Small labelled videos on disk, and ways to spoil them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np

from tests.media_files import set_rotation, write_video

CLASSES = ("jump", "run")
FRAMES, HEIGHT, WIDTH = 48, 48, 64  # 1.6 s: longer than the toy's clip


def clip(seed: int, frames: int = FRAMES, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """(frames, height, width, 3) uint8: a bright square that crosses a dark picture."""
    rng = np.random.default_rng(seed)
    video = np.full((frames, height, width, 3), rng.integers(10, 60, 3), np.uint8)
    colour, top = rng.integers(150, 255, 3), int(rng.integers(4, height // 2))
    for index in range(frames):
        left = index * (width - 16) // max(frames - 1, 1)
        video[index, top : top + 14, left : left + 14] = colour
    return video


def make_videos(root: Path) -> Path:
    """``root/CLASS/v_CLASS_gNN_cNN.mp4``: three groups of two clips for each class."""
    for label, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for group in range(3):
            for part in range(2):
                seed = 100 * label + 10 * group + part
                write_video(root / name / f"v_{name}_g{group:02d}_c{part:02d}.mp4", clip(seed))
    return root


FIRST = "jump/v_jump_g00_c00.mp4"


def _replace(frames: np.ndarray | None = None, **options: object) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        write_video(root / FIRST, clip(999) if frames is None else frames, **options)  # type: ignore[arg-type]

    return spoil


def _cut(root: Path) -> None:
    """Half of the file, its index in front so that it still opens."""
    options = {"movflags": "faststart"}
    noisy = np.random.default_rng(0).integers(0, 255, (FRAMES, HEIGHT, WIDTH, 3)).astype(np.uint8)
    file = write_video(root / FIRST, noisy, container_options=options)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _write(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda root: (root / name).write_bytes(data) and None


def _copy(to: str) -> Callable[[Path], None]:
    return lambda root: shutil.copy(root / FIRST, root / to) and None


def _gap(root: Path) -> None:
    """Twelve frames, then two seconds of nothing, then the rest."""
    import av

    with av.open(str(root / FIRST), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for index, pixels in enumerate(clip(5)):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = index + (60 if index > 12 else 0)
            frame.time_base = Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _empty_class(root: Path) -> None:
    (root / "swim").mkdir()


def _one_group(root: Path) -> None:
    for file in (root / "run").glob("*_g0[12]_*"):
        file.unlink()


# What is done, the kind that must be found, and what its place or text must hold.
SPOILS: list[tuple[str, Callable[[Path], None], str, str]] = [
    ("text", _write(FIRST, b"no video"), "unreadable video", FIRST),
    ("empty", _write(FIRST, b""), "unreadable video", "the file is empty"),
    ("cut", _cut, "ends early", FIRST),
    ("one frame", _replace(clip(1, 1)), "single picture", FIRST),
    ("short", _replace(clip(1, 20)), "too short", "0.67 s; a clip spans 1.03 s"),
    ("blank", _replace(np.full((FRAMES, HEIGHT, WIDTH, 3), 90, np.uint8)), "blank", FIRST),
    ("frozen", _replace(clip(1, 1).repeat(FRAMES, axis=0)), "nothing moves", FIRST),
    ("gap", _gap, "gap in time", FIRST),
    ("slow", _replace(fps=5), "odd frame rate", "5 frames a second"),
    ("small", _replace(clip(1, FRAMES, 12, 16)), "small picture", "16 x 12; the crop is 32"),
    ("narrow", _replace(clip(1, FRAMES, 32, 128)), "long and narrow", "128 x 32"),
    ("turned", lambda root: set_rotation(root / FIRST, 90), "turned by a flag", "degrees"),
    ("long", _replace(clip(1, 700), fps=10), "long", "70 s; a clip"),
    ("copy", _copy("jump/v_jump_g00_c07.mp4"), "same content twice", FIRST),
    ("two labels", _copy("run/other.mp4"), "same video, two labels", "'run' and 'jump'"),
    ("stray", _copy("stray.mp4"), "file outside of a class folder", "stray.mp4"),
    ("notes", _write("jump/notes.xyz", b"x"), "file of another kind", "notes.xyz"),
    ("no videos", _empty_class, "class not in train", "'swim': 0 groups"),
    ("one group", _one_group, "class not in val", "'run': 1 groups"),
]
