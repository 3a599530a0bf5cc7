"""The toy sets are what PySlowFast reads, repeat by seed, and hide the class from any one frame."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

av = pytest.importorskip("av", reason="needs PyAV: pip install 'mvitv2[slowfast]'")
Image = pytest.importorskip("PIL.Image", reason="needs Pillow: pip install Pillow")
pytest.importorskip("tqdm", reason="needs tqdm: pip install tqdm")

from projects.video import scenes, toy_kinetics  # noqa: E402

PER_CLASS = {"train": 2, "val": 1, "test": 1}


@pytest.fixture(scope="module")
def kinetics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kinetics")
    toy_kinetics.make_kinetics(folder, PER_CLASS, seed=3)
    return folder


def read_list(folder: Path, split: str) -> list[tuple[str, int]]:
    rows = [line.split(" ") for line in (folder / f"{split}.csv").read_text().splitlines()]
    assert all(len(row) == 2 for row in rows)
    return [(name, int(label)) for name, label in rows]


def decode(path: Path) -> np.ndarray:
    with av.open(str(path)) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def track(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centroid (T, 2: x, y) and area (T) of what differs from the background, in pixels.

    The background is smooth, so it is fitted as a plane to the picture's border.
    """
    height, width = frames.shape[1:3]
    y, x = np.mgrid[:height, :width]
    plane = np.stack([np.ones(height * width), x.ravel(), y.ravel()], 1)
    centres, areas = [], []
    for frame in frames.astype(float):
        pixels = frame.reshape(-1, 3)
        kept = np.ones(len(pixels), bool)
        for _ in range(4):  # the shape's pixels fall out as outliers
            fit = plane @ np.linalg.lstsq(plane[kept], pixels[kept], rcond=None)[0]
            kept = np.abs(pixels - fit).max(1) < 16
        shape = ~kept
        centres.append([x.ravel()[shape].mean(), y.ravel()[shape].mean()])
        areas.append(shape.sum())
    return np.array(centres), np.array(areas)


def motion_of(frames: np.ndarray) -> str:
    """The motion, told from the shape's track alone."""
    centres, areas = track(frames)
    (dx, dy), path = centres[-1] - centres[0], np.abs(np.diff(centres, axis=0)).sum()
    if path > 2.0 * (abs(dx) + abs(dy)) and path > 40:
        return "circle"
    if abs(dx) > 20:
        return "right" if dx > 0 else "left"
    if abs(dy) > 20:
        return "down" if dy > 0 else "up"
    if max(areas[0], areas[-1]) > 3 * min(areas[0], areas[-1]):
        return "grow" if areas[-1] > areas[0] else "shrink"
    return "still"


def test_lists_have_the_form_pyslowfast_reads(kinetics: Path) -> None:
    names = []
    for split, count in PER_CLASS.items():
        text = (kinetics / f"{split}.csv").read_text()
        assert all(re.fullmatch(r"videos/\w+\.mp4 [0-7]", line) for line in text.splitlines())
        rows = read_list(kinetics, split)
        assert Counter(label for _, label in rows) == dict.fromkeys(range(8), count)
        names += [name for name, _ in rows]
    assert len(set(names)) == len(names) == 8 * 4
    assert {f"videos/{path.name}" for path in (kinetics / "videos").iterdir()} == set(names)
    assert (kinetics / "classes.txt").read_text().split() == list(scenes.MOTIONS)


def test_clips_decode_and_move_as_labelled(kinetics: Path) -> None:
    for split in PER_CLASS:
        for name, label in read_list(kinetics, split):
            with av.open(str(kinetics / name)) as file:
                stream = file.streams.video[0]
                assert stream.codec_context.name == "h264"
                assert (stream.frames, float(stream.average_rate)) == (48, 30.0)
            frames = decode(kinetics / name)
            assert frames.shape == (48, 80, 100, 3)
            assert motion_of(frames[::3]) == scenes.MOTIONS[label], name


def test_decoded_frames_are_those_drawn(kinetics: Path) -> None:
    clips = toy_kinetics.draw_clips("val", PER_CLASS["val"], seed=3)
    for clip in clips:
        error = np.abs(decode(kinetics / clip.name).astype(float) - clip.frames())
        assert error.mean() < 4.0, clip.name  # H.264 loses colour at edges, not whole shapes


def test_same_seed_same_files(kinetics: Path, tmp_path: Path) -> None:
    toy_kinetics.make_kinetics(tmp_path / "again", PER_CLASS, seed=3)
    assert digests(tmp_path / "again") == digests(kinetics)
    toy_kinetics.make_kinetics(tmp_path / "other", PER_CLASS, seed=4)
    videos, others = digests(kinetics / "videos"), digests(tmp_path / "other" / "videos")
    assert videos.keys() == others.keys()
    assert not set(videos.values()) & set(others.values())


def test_splits_share_no_look() -> None:
    looks = [
        clip.look for split in toy_kinetics.SPLITS for clip in toy_kinetics.draw_clips(split, 50)
    ]
    assert len(set(looks)) == len(looks)


def test_taken_up_again(kinetics: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (kinetics / "videos").iterdir()}
    hashes = digests(kinetics)
    lost = kinetics / "videos" / "val_0002.mp4"
    lost.unlink()
    (kinetics / "videos" / ".mvitv2-0123456789ab.tmp").write_text("half a file")
    toy_kinetics.make_kinetics(kinetics, PER_CLASS, seed=3)
    assert digests(kinetics) == hashes
    after = {path: path.stat().st_mtime_ns for path in (kinetics / "videos").iterdir()}
    assert {path for path in before if before[path] != after[path]} == {lost}


def test_other_settings_in_the_same_folder_are_refused(kinetics: Path) -> None:
    with pytest.raises(ValueError, match="other settings"):
        toy_kinetics.make_kinetics(kinetics, PER_CLASS, seed=5)
    with pytest.raises(ValueError, match="per_class"):
        toy_kinetics.make_kinetics(kinetics, {"train": 1, "val": 0, "test": 1})


def test_nothing_of_others_is_removed(tmp_path: Path) -> None:
    """Not in a folder that may be anybody's, and not under other names than the project's."""
    from projects.video import files

    (tmp_path / "a").mkdir()
    ours, theirs = tmp_path / "a" / ".mvitv2-0123456789ab.tmp", tmp_path / "a" / ".notes.tmp"
    for file in (ours, theirs):
        file.touch()
    files.claim_folder(tmp_path, {"set": "x"})
    assert ours.exists() and theirs.exists()
    with pytest.raises(ValueError, match="other settings"):
        files.claim_folder(tmp_path, {"set": "y"})
    assert ours.exists() and theirs.exists()
    files.claim_folder(tmp_path, {"set": "x"})
    assert theirs.exists() and not ours.exists()


def test_failed_write_leaves_nothing(tmp_path: Path) -> None:
    from projects.video import files

    def fail(path: Path) -> None:
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        files.write_atomic(tmp_path / "file", fail)
    assert list(tmp_path.iterdir()) == []


def test_middle_frame_is_the_same_whatever_the_motion() -> None:
    for clip in toy_kinetics.draw_clips("train", 1):
        variants = [replace(clip, motion=motion).frames() for motion in scenes.MOTIONS]
        for frames in variants:
            assert np.array_equal(frames[24], variants[0][24])
        assert len({frames[-1].tobytes() for frames in variants}) == len(scenes.MOTIONS)


def test_look_is_independent_of_the_class() -> None:
    """Shape, colour, size, place, background: chi-squared and means over 4,000 clips.

    The clips are fixed by the seed. Bounds are those of p = 0.001, divided among the tests made.
    """
    stats = pytest.importorskip("scipy.stats", reason="needs scipy: pip install scipy")
    clips = toy_kinetics.draw_clips("train", 500)
    labels = np.array([clip.label for clip in clips])
    columns = {
        "shape": np.array([scenes.SHAPES.index(clip.look.shape) for clip in clips]),
    }
    for name, values in {
        "red": [clip.look.colour[0] for clip in clips],
        "green": [clip.look.colour[1] for clip in clips],
        "blue": [clip.look.colour[2] for clip in clips],
        "background": [sum(clip.look.background) for clip in clips],
        "size": [clip.look.radius for clip in clips],
        "x": [clip.look.centre[0] for clip in clips],
        "y": [clip.look.centre[1] for clip in clips],
        "angle": [clip.look.angle for clip in clips],
    }.items():
        columns[name] = np.digitize(values, np.quantile(values, [0.25, 0.5, 0.75]))
    for name, column in columns.items():
        table = np.zeros((len(scenes.MOTIONS), column.max() + 1))
        np.add.at(table, (labels, column), 1)
        assert table.min() > 0, name
        p = stats.chi2_contingency(table).pvalue
        assert p > 0.001 / len(columns), (name, p)


def test_toy_imagenet_is_laid_out_by_class(tmp_path: Path) -> None:
    toy_kinetics.make_imagenet(tmp_path, {"train": 3, "val": 2}, seed=1)
    for split, count in (("train", 3), ("val", 2)):
        folders = sorted(path.name for path in (tmp_path / split).iterdir())
        assert folders == [f"n{k:08d}" for k in range(1, len(scenes.SHAPES) + 1)]
        for folder in folders:
            pictures = sorted((tmp_path / split / folder).iterdir())
            assert len(pictures) == count
            for path in pictures:
                with Image.open(path) as picture:
                    assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (80, 80))
    hashes = digests(tmp_path)
    toy_kinetics.make_imagenet(tmp_path, {"train": 3, "val": 2}, seed=1)
    assert digests(tmp_path) == hashes
    pictures = [value for name, value in hashes.items() if name.endswith(".jpg")]
    assert len(set(pictures)) == len(pictures) == 5 * len(scenes.SHAPES)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="motion must be one of"):
        scenes.pose("sideways", 0.0)
    look = replace(scenes.draw_look(np.random.default_rng(0)), shape="hexagon")
    with pytest.raises(ValueError, match="shape must be one of"):
        scenes.paint(np.zeros((8, 8, 3)), look)
