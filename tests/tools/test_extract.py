"""``mvitv2 extract``: what rows hold, in every format; what is refused."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mvitv2_core import MViTClassifier
from mvitv2_core.media import Video
from mvitv2_core.transforms import ClipTransform, ImageTransform
from mvitv2_slowfast.model_info import read_info
from mvitv2_tools.extract import read_features
from mvitv2_tools.extract.settings import FEATURES, FORMATS
from tests.media_files import frame_number, write_video
from tests.tools.conftest import TINY_CLIP, TINY_STILL, loading_cfg, slowfast_run
from tests.tools.extracting import (
    STRIDE,
    clip_model,
    contents,
    extract,
    still_model,
    write_pictures,
    write_videos,
)

pytest.importorskip("av", reason="videos need PyAV: pip install av")
pytest.importorskip("PIL", reason="pictures need Pillow: pip install Pillow")
SPAN = 20  # frames at 30 a second: four, every fifth


@pytest.fixture(params=FORMATS)
def format(request: pytest.FixtureRequest) -> str:
    if request.param == "parquet":
        pytest.importorskip("pyarrow", reason="Parquet needs pyarrow: pip install pyarrow")
    if request.param == "safetensors":
        pytest.importorskip("safetensors", reason="pip install safetensors to run")
    return request.param


def windows(path: Path, least: float = SPAN / 2) -> list[torch.Tensor]:
    """Each window's (1, 3, T, H, W), by the transform alone, from all frames of a video."""
    transform = ClipTransform(replace(read_info(loading_cfg(TINY_CLIP), "any"), views=(1, 1)))
    with Video(path, transform.decoded_cover) as video:
        frames = torch.stack([video.to_tensor(frame.picture) for frame in video.frames()])
    clips, number = [], 0
    while (first := round(number * STRIDE * 30)) <= len(frames) - least:
        index = first + torch.linspace(0, SPAN - 1, 4).long()
        clips.append(transform.prepare(frames[index.clamp(max=len(frames) - 1)]))
        number += 1
    return clips


@torch.inference_mode()
def expected(model: MViTClassifier, clip: torch.Tensor, features: str) -> torch.Tensor:
    """One row, from what the model's blocks give."""
    tokens, thw = model.tokens(clip)
    if features == "pooled":
        taken = []
        hook = model.head.register_forward_pre_hook(lambda head, given: taken.append(given[0]))
        model(clip)
        hook.remove()
        return taken[0][0]
    grid = model.norm(tokens)[:, int(model.config.cls_token) :].reshape(*thw, -1)
    return grid if features == "grid" else grid.mean(dim=(1, 2))


@pytest.mark.parametrize("features", FEATURES)
def test_rows_of_videos(format: str, features: str, tmp_path: Path) -> None:
    model = clip_model(tmp_path / "run")
    videos = write_videos(tmp_path / "videos", 75, 8)
    out = tmp_path / "out"
    arguments = ("--features", features, "--format", format, "--stride", STRIDE, "--batch", 3)
    assert extract(tmp_path / "run", videos, "--out", out, *arguments) == 1  # one is broken
    found = {rows.name: rows for rows in read_features(out)}
    assert set(found) == {"0", "1"}
    for name, count in (("0", 22), ("1", 1)):
        clips, rows = windows(videos / f"{name}.mp4"), found[name]
        assert len(rows) == count
        if name == "1":  # shorter than half a window: one row, as there is no other
            clips = windows(videos / "1.mp4", least=0)[:1]
        for clip, row in zip(clips, rows.features, strict=True):
            wanted = expected(model, clip, features)
            # Another number of clips at a time: the last bits may differ.
            assert torch.allclose(torch.from_numpy(row.copy()), wanted, rtol=1e-4, atol=1e-5)
        assert rows.paths == [str(videos / f"{name}.mp4")] * count
        assert rows.times is not None and (rows.cells is None) == (features == "pooled")
        assert np.allclose(rows.times[:, 0], np.arange(count) * STRIDE)
        total = 75 / 30 if name == "0" else 8 / 30
        assert np.allclose(rows.times[:, 1], np.minimum(rows.times[:, 0] + SPAN / 30, total))
        if rows.cells is not None:  # two of them: four frames, two a cell
            middle = np.minimum(rows.times[:, 0] + SPAN / 60, rows.times[:, 1])
            assert np.allclose(rows.cells[:, 1], middle)
            assert (rows.cells[:, [0, 2]] == rows.times).all()
    report = json.loads((out / "report.json").read_text())
    assert report["inputs"] == 3 and report["rows"] == 23
    assert [row["path"] for row in report["problems"]] == [str(videos / "broken.mp4")]


def test_rows_of_pictures(format: str, tmp_path: Path) -> None:
    """Groups of four, batches of three; in float16."""
    model = still_model(tmp_path / "run")
    pictures = write_pictures(tmp_path / "pictures", 9)
    out, options = tmp_path / "out", ("--group", 4, "--batch", 3, "--dtype", "float16")
    assert extract(tmp_path / "run", pictures, "--out", out, "--format", format, *options) == 1
    groups = list(read_features(out))
    assert [len(rows) for rows in groups] == [4, 4, 1]
    transform = ImageTransform(read_info(loading_cfg(TINY_STILL), "any"))
    for rows in groups:
        assert rows.times is None and rows.cells is None and rows.features.dtype == np.float16
        for path, row in zip(rows.paths, rows.features, strict=True):
            wanted = expected(model, transform(path)[None], "pooled").half()
            found = torch.from_numpy(np.array(row))
            assert torch.allclose(found.float(), wanted.float(), atol=2e-3)
    names = [Path(path).name for rows in groups for path in rows.paths]
    assert names == [f"{i}.png" for i in range(9)]


def test_files_for_other_readers(tmp_path: Path) -> None:
    """safetensors' and pyarrow's own readers find paths, times and the model."""
    safetensors = pytest.importorskip("safetensors", reason="pip install safetensors to run")
    parquet = pytest.importorskip("pyarrow.parquet", reason="pip install pyarrow to run")
    clip_model(tmp_path / "run")
    video = write_video(tmp_path / "a.mp4", frame_number(40, 64, 48))
    for format in ("safetensors", "parquet"):
        arguments = ("--features", "grid", "--format", format, "--stride", 0.2)
        assert extract(tmp_path / "run", video, "--out", tmp_path / format, *arguments) == 0
    table = parquet.read_table(tmp_path / "parquet" / "a.parquet")
    assert table.column_names == ["path", "start", "end", "cells", "model", "features"]
    rows = table.to_pylist()
    assert {row["path"] for row in rows} == {str(video)}
    assert {row["model"] for row in rows} == {"checkpoint_epoch_00001.pyth"}
    shape = json.loads(table.schema.metadata[b"shape"])
    with safetensors.safe_open(tmp_path / "safetensors" / "a.safetensors", "np") as file:
        assert json.loads(file.metadata()["paths"]) == [str(video)]
        assert file.metadata()["model"] == "checkpoint_epoch_00001.pyth"
        features = file.get_tensor("features")
        times, cells = file.get_tensor("times"), file.get_tensor("cells")
    assert (np.array([row["features"] for row in rows], "f4").reshape(-1, *shape) == features).all()
    assert ([[row["start"], row["end"]] for row in rows] == times).all()
    assert ([row["cells"] for row in rows] == cells).all()


def test_other_windows_have_as_many_frames(tmp_path: Path) -> None:
    """A window twice as long takes frames twice as far apart."""
    from mvitv2_tools.extract.job import Job
    from mvitv2_tools.extract.settings import Settings
    from mvitv2_tools.find_model import Options
    from mvitv2_tools.inputs import Input

    clip_model(tmp_path / "run")
    frames = frame_number(80, 64, 48)
    video = write_video(tmp_path / "a.mp4", frames)
    for window in (1 / 3, 2 / 3, 4 / 3):
        settings = Settings(window=window)
        extractor = Job(str(tmp_path / "run"), Options(device="cpu"), settings, "").extractor()
        index = extractor.clip.indices(round(window * 30), 30.0)[0]
        assert index.tolist() == torch.linspace(0, window * 30 - 1, 4).long().tolist()
        parts = list(extractor.read_video(Input(str(video), "video"), {}))
        assert len(parts) - 1 == 80 / 30 // window
        held = list(extractor.read_video(Input(str(video), "video"), {str(video): 2}))
        assert [part.span for part in held] == [part.span for part in parts[2:]]
        for part, other in zip(held[:-1], parts[2:-1], strict=True):
            assert torch.equal(part.data, other.data)


def test_names_and_new_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two inputs never share a file; what is new gets tasks of its own, what is done stays."""
    clip_model(tmp_path / "run")
    for name in ("a/clip.mp4", "b/Clip.mp4", "b/report.mp4", "b/{0} x.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_video(tmp_path / name, frame_number(20, 64, 48))
    out = tmp_path / "out"
    assert extract(tmp_path / "run", tmp_path / "a", "--out", out) == 0
    first = contents(out)
    assert extract(tmp_path / "run", tmp_path / "a", tmp_path / "b", "--out", out) == 0
    names = [rows.name for rows in read_features(out)]
    assert names == ["clip", "Clip_2", "report_2", "_0_x"]
    after = contents(out)
    assert first["clip.npy"] == after["clip.npy"] and first["clip.json"] == after["clip.json"]
    monkeypatch.chdir(tmp_path)  # relative paths are the same inputs
    assert extract("run", "a", "b/Clip.mp4", "--out", "out") == 0
    assert contents(out) == after


def test_groups_of_pictures_stay(tmp_path: Path) -> None:
    """A picture that is new in the middle of a folder leaves the groups of before alone."""
    still_model(tmp_path / "run")
    pictures = write_pictures(tmp_path / "pictures", 5)
    (pictures / "broken.png").unlink()
    out, options = tmp_path / "out", ("--group", 3)
    (pictures / "2.png").rename(tmp_path / "2.png")
    assert extract(tmp_path / "run", pictures, "--out", out, *options) == 0
    first = contents(out)
    (tmp_path / "2.png").rename(pictures / "2.png")
    assert extract(tmp_path / "run", pictures, "--out", out, *options) == 0
    groups = [[Path(path).stem for path in rows.paths] for rows in read_features(out)]
    assert groups == [["0", "1", "3"], ["4"], ["2"]]
    assert contents(out)["pictures_00000.npy"] == first["pictures_00000.npy"]


def test_changed_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that changed after its rows were made is named, and what to do."""
    clip_model(tmp_path / "run")
    videos = write_videos(tmp_path / "videos", 20)
    out = tmp_path / "out"
    assert extract(tmp_path / "run", videos, "--out", out) == 1
    capsys.readouterr()
    write_video(videos / "0.mp4", frame_number(30, 64, 48))
    for options in ([], ["--retry"]):
        assert extract(tmp_path / "run", videos, "--out", out, *options) == 2
        error = capsys.readouterr().err
        assert f"{videos}/0.mp4 changed" in error and f"remove {out}/0.json" in error
    (out / "0.json").unlink()
    assert extract(tmp_path / "run", videos, "--out", out) == 1
    (videos / "0.mp4").unlink()  # what is gone keeps its rows
    assert extract(tmp_path / "run", videos, "--out", out) == 1
    assert len(list(read_features(out))) == 1


def test_retry(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What could not be read is said again, and read again where that is asked for."""
    clip_model(tmp_path / "run")
    videos = write_videos(tmp_path / "videos", 20)
    out, file = tmp_path / "out", videos / "broken.mp4"
    assert extract(tmp_path / "run", videos, "--out", out) == 1
    before = contents(out)
    assert extract(tmp_path / "run", videos, "--out", out) == 1
    assert extract(tmp_path / "run", videos, "--out", out, "--retry") == 1
    assert contents(out) == before
    assert "0.npy" in before and file.name.replace("mp4", "npy") not in before
    write_video(file, frame_number(30, 64, 48))  # mended
    assert extract(tmp_path / "run", videos, "--out", out) == 2
    assert f"{file} had a problem, and changed: give --retry" in capsys.readouterr().err
    assert extract(tmp_path / "run", videos, "--out", out, "--retry") == 0
    assert extract(tmp_path / "run", videos, "--out", out) == 0
    assert {rows.name for rows in read_features(out)} == {"0", "broken"}


def test_retry_of_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A group is made anew for the one that was mended, but not over another one that changed."""
    still_model(tmp_path / "run")
    pictures, out = write_pictures(tmp_path / "pictures", 3), tmp_path / "out"
    arguments = (tmp_path / "run", pictures, "--out", out, "--retry")
    assert extract(*arguments) == 1
    whole = (pictures / "0.png").read_bytes()
    (pictures / "broken.png").write_bytes(whole)
    (pictures / "0.png").write_bytes(whole + b" ")
    assert extract(*arguments) == 2
    assert f"{pictures}/0.png changed after its rows were made" in capsys.readouterr().err
    (pictures / "0.png").unlink()
    os.utime(pictures / "broken.png")
    assert extract(*arguments) == 1  # 0.png is gone
    (rows,) = read_features(out)
    assert [Path(path).stem for path in rows.paths] == ["1", "2", "broken"]


def test_a_file_that_changes_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no rows, and the next run takes it as it is then."""
    from mvitv2_tools.extract.extractor import Extractor

    clip_model(tmp_path / "run")
    video = write_video(tmp_path / "a.mp4", frame_number(40, 64, 48))
    out, real = tmp_path / "out", Extractor.features

    def touching(self: Extractor, batch: torch.Tensor) -> np.ndarray:
        os.utime(video, (1, 1))
        return real(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Extractor, "features", touching)
        assert extract(tmp_path / "run", video, "--out", out) == 1
    assert not list(read_features(out))
    assert "changed while it was read" in (out / "report.json").read_text()
    assert extract(tmp_path / "run", video, "--out", out) == 0
    assert len(list(read_features(out))) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["clip", "videos", "--stride", "0"], "--stride must be above 0"),
        (["clip", "videos", "--window", "0"], "--window must be above 0 seconds\n"),
        (["ssv2", "videos"], "and be given: checkpoint_epoch_00003.pyth spreads its frames"),
        (["clip", "videos", "--workers", "2"], "--workers need --engine ray"),
        (["still", "pictures", "--window", "1"], "--window is for videos"),
        (["still", "pictures", "--features", "frames"], "--features frames is for clips"),
        (["clip", "videos", "--out", "pictures"], "must be new, empty, or an earlier"),
        (["clip", "videos", "--out", "pictures/0.png"], "--out"),
        (["clip", "videos", "--out", "done", "--batch", "2"], "batch 8 there, 2 here"),
        (["clip", "videos", "--out", "done", "--dtype", "float16"], "dtype float32 there"),
        (["still", "pictures", "--out", "done"], "weights"),
        (["none.pyth", "videos"], "none.pyth: no such file"),
    ],
)
def test_refused(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    clip_model(tmp_path / "clip")
    still_model(tmp_path / "still")
    slowfast_run(tmp_path / "ssv2", loading_cfg(TINY_CLIP, TEST__DATASET="ssv2"))
    write_pictures(tmp_path / "pictures", 1)
    write_videos(tmp_path / "videos", 20)
    if "done" in arguments:
        assert extract("clip", "videos", "--out", "done") == 1
    capsys.readouterr()
    out = [] if "--out" in arguments else ["--out", "out"]
    assert extract(*arguments, *out) == 2
    assert message in capsys.readouterr().err


def test_kinds_that_the_model_does_not_take(tmp_path: Path) -> None:
    """Named in the report; the others have their rows."""
    clip_model(tmp_path / "run")
    videos, pictures = write_videos(tmp_path / "v", 20), write_pictures(tmp_path / "p", 2)
    assert extract(tmp_path / "run", videos, pictures, "--out", tmp_path / "out") == 1
    problems = json.loads((tmp_path / "out" / "report.json").read_text())["problems"]
    assert len(problems) == 4 and len(list(read_features(tmp_path / "out"))) == 1
    assert "is a picture, and checkpoint_epoch_00001.pyth takes videos" in str(problems)
