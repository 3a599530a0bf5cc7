"""Kills at any moment: a run that is ended leaves the files of one that nobody interrupted."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from mvitv2_core.checkpoint.files import whole_file
from mvitv2_tools.extract import folder, read_features, work
from tests.media_files import frame_number, write_video
from tests.tools.extracting import (
    STRIDE,
    clip_model,
    contents,
    extract,
    start,
    still_model,
    write_pictures,
    write_videos,
)

pytest.importorskip("av", reason="videos need PyAV: pip install av")
FORMATS = ("npy", "safetensors", "parquet")


class Killed(BaseException):
    """No handler of the program takes it."""


class Moments:
    """Stands for ``whole_file``; dies at the chosen one of all moments of all files.

    A file has three: nothing of it is written, all of it is written beside its place, it is in
    its place.
    """

    def __init__(self, chosen: int | None) -> None:
        self.chosen, self.count = chosen, 0

    def moment(self) -> None:
        if self.count == self.chosen:
            raise Killed
        self.count += 1

    @contextmanager
    def __call__(self, path: str, name: str = "") -> Iterator[str]:
        self.moment()
        with whole_file(path, name) as target:
            yield target
            self.moment()
        self.moment()


def dies_at(moment: int | None, monkeypatch: pytest.MonkeyPatch, run: Callable[[], int]) -> int:
    """Run, and die at a moment; returns how many there were."""
    moments = Moments(moment)
    with monkeypatch.context() as patch:
        patch.setattr(folder, "whole_file", moments)
        patch.setattr(work, "whole_file", moments)
        patch.setattr(work, "PART_ROWS", 8)
        if moment is None:
            assert run() == 1  # a file is broken
        else:
            with pytest.raises(Killed):
                run()
    return moments.count


@pytest.fixture
def parts_of_8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "PART_ROWS", 8)


@pytest.mark.parametrize("format", FORMATS)
def test_every_moment_of_every_file(
    format: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    parts_of_8: None,
    tally: Callable[..., None],
) -> None:
    if format == "parquet":
        pytest.importorskip("pyarrow", reason="Parquet needs pyarrow: pip install pyarrow")
    model, videos = tmp_path / "run", write_videos(tmp_path / "videos", 80, 9)
    clip_model(model)

    def run(name: str) -> int:
        arguments = ("--stride", STRIDE, "--batch", 3, "--format", format)
        return extract(model, videos, "--out", tmp_path / name, *arguments)

    count = dies_at(None, monkeypatch, lambda: run("whole"))
    whole = contents(tmp_path / "whole")
    # Settings, plan, two parts of six rows each and more, rows, three tasks that are done, report.
    assert count >= 3 * 10 and f"0.{format}" in whole
    for moment in range(0, count, 1 if format == "npy" else 4):
        name = f"killed_{moment}"
        dies_at(moment, monkeypatch, lambda name=name: run(name))
        assert run(name) == 1
        assert contents(tmp_path / name) == whole, moment
        tally("kills of an extraction at a moment of a file, resumed to the same bytes")


def test_killed_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts_of_8: None
) -> None:
    """Every run dies a little later than the one before; no work is lost for ever."""
    videos = write_videos(tmp_path / "videos", 80, 9)
    clip_model(tmp_path / "run")
    arguments = (tmp_path / "run", videos, "--stride", STRIDE, "--batch", 3, "--out")
    assert extract(*arguments, tmp_path / "whole") == 1
    kills = 0
    while True:
        try:
            dies_at(5, monkeypatch, lambda: extract(*arguments, tmp_path / "killed"))
        except pytest.fail.Exception:  # it ended before the sixth moment
            break
        kills += 1
    assert kills > 3
    assert extract(*arguments, tmp_path / "killed") == 1
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_part_is_not_computed_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts_of_8: None
) -> None:
    from mvitv2_tools.extract.extractor import Extractor

    videos = write_videos(tmp_path / "videos", 80)
    (videos / "broken.mp4").unlink()
    clip_model(tmp_path / "run")
    arguments = (tmp_path / "run", videos, "--stride", STRIDE, "--batch", 3, "--out")
    real, sizes = Extractor.features, []

    def counted(self: Extractor, batch: object) -> object:
        if len(sizes) == 5:
            raise Killed
        sizes.append(len(batch))  # type: ignore[arg-type]
        return real(self, batch)  # type: ignore[arg-type]

    monkeypatch.setattr(Extractor, "features", counted)
    with pytest.raises(Killed):
        extract(*arguments, tmp_path / "out")
    assert sizes == [3] * 5 and len(list((tmp_path / "out/.parts/0").iterdir())) == 2
    sizes.clear()
    monkeypatch.setattr(Extractor, "features", lambda *a: sizes.append(len(a[1])) or real(*a))
    assert extract(*arguments, tmp_path / "out") == 0
    (rows,) = read_features(tmp_path / "out")
    assert len(rows) == 24 and sizes == [3] * 4  # twelve rows were there
    assert not list((tmp_path / "out/.parts").iterdir())


def test_a_damaged_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts_of_8: None) -> None:
    """Rows of what can be decoded, and the problem; the same after a kill."""
    clip_model(tmp_path / "run")
    options = {"container_options": {"movflags": "+faststart"}}
    video = write_video(tmp_path / "cut.mp4", frame_number(90, 160, 120), **options)
    video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    arguments = (tmp_path / "run", video, "--stride", STRIDE, "--batch", 3, "--out")
    dies_at(10, monkeypatch, lambda: extract(*arguments, tmp_path / "killed"))
    for name in ("whole", "killed"):
        assert extract(*arguments, tmp_path / name) == 1
        (rows,) = read_features(tmp_path / name)
        assert 6 < len(rows) < 24
        assert "damaged, rows end before that" in (tmp_path / name / "report.json").read_text()
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_two_runs_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second is refused, for as long as the first is there."""
    from filelock import FileLock

    monkeypatch.setitem(sys.modules, "fcntl", None)  # Windows has none
    videos, out = write_videos(tmp_path / "videos", 20), tmp_path / "out"
    clip_model(tmp_path / "run")
    out.mkdir()
    with FileLock(out / folder.LOCK):
        assert extract(tmp_path / "run", videos, "--out", out) == 2
        assert "another run works in it" in capsys.readouterr().err
    assert extract(tmp_path / "run", videos, "--out", out) == 1


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_killed_ten_times(format: str, tmp_path: Path, tally: Callable[..., None]) -> None:
    """SIGKILL at random moments, from the start of the process on, of videos and of pictures."""
    if format == "parquet":
        pytest.importorskip("pyarrow", reason="Parquet needs pyarrow: pip install pyarrow")
    clip_model(tmp_path / "clip")
    still_model(tmp_path / "still")
    draw = random.Random(FORMATS.index(format))
    inputs = {
        "clip": (write_videos(tmp_path / "videos", *[300] * 4), "--stride", 1 / 30, "--batch", 2),
        "still": (write_pictures(tmp_path / "pictures", 250), "--group", 7, "--batch", 2),
    }
    for model, (files, *options) in inputs.items():
        arguments = (tmp_path / model, files, *options, "--format", format, "--out")
        out = tmp_path / f"{model}_killed"
        for _ in range(10):
            process = start(*arguments, out, part_rows=32)
            # So many files later than the last kill, and a little more: while it loads, while it
            # works, while it writes, on a machine of any speed.
            files_later = draw.choice([0, 0, 1, 2, 3, 4])
            wait_for_files(out, files_later)
            time.sleep(draw.uniform(0, 0.2 if files_later else 1.5))
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
            assert process.returncode == -signal.SIGKILL  # it had not ended
            tally(f"kills of an extraction of {model}s at random moments")
        for name in (out, tmp_path / f"{model}_whole"):
            process = start(*arguments, name, part_rows=32)
            process.communicate()
            assert process.returncode == 1
        assert contents(out) == contents(tmp_path / f"{model}_whole")


def wait_for_files(folder: Path, count: int) -> None:
    """Until so many files have come to be there that are not there now."""
    before = set(folder.rglob("*"))
    new: set[Path] = set()
    until = time.monotonic() + 300
    while len(new) < count and time.monotonic() < until:
        with suppress(FileNotFoundError):  # parts that were put together meanwhile
            new |= {path for path in folder.rglob("*") if path.name[:1] != "."} - before
        time.sleep(0.002)
    assert len(new) >= count
