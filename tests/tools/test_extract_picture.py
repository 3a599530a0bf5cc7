"""The picture of a video's features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mvitv2_tools.extract import picture
from tests.media_files import frame_number, write_video
from tests.tools.extracting import clip_model, extract, still_model, write_pictures

pytest.importorskip("matplotlib", reason="pip install matplotlib to run")
pytest.importorskip("av", reason="videos need PyAV: pip install av")


def test_arithmetic() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(20, 6)) * [9, 5, 3, 0.1, 0.1, 0.1]
    vectors -= vectors.mean(axis=0)
    found = picture.similarity(vectors)
    assert np.allclose(np.diag(found), 1) and np.allclose(found, found.T)
    a, b = vectors[3], vectors[5]
    assert np.isclose(found[3, 5], a @ b / np.sqrt((a @ a) * (b @ b)))
    colours = picture.components(vectors)
    assert colours.shape == (20, 3) and colours.min() == 0 and colours.max() == 1
    # The first is the axis of the largest spread, whichever way it points.
    assert abs(np.corrcoef(colours[:, 0], vectors[:, 0])[0, 1]) > 0.95


@pytest.mark.parametrize("features", ["pooled", "grid"])
def test_picture(features: str, tmp_path: Path) -> None:
    from PIL import Image

    clip_model(tmp_path / "run")
    video = write_video(tmp_path / "a.mp4", frame_number(60, 64, 48))
    out, target = tmp_path / "out", tmp_path / "a.png"
    arguments = ("--stride", 0.2, "--features", features)
    assert extract(tmp_path / "run", video, "--out", out, *arguments) == 0
    picture.main([str(out), "--to", str(target), "--marks", "0.5"])
    assert np.asarray(Image.open(target)).std() > 20


def test_no_video(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    still_model(tmp_path / "run")
    pictures = write_pictures(tmp_path / "pictures", 2)
    extract(tmp_path / "run", pictures, "--out", tmp_path / "out")
    with pytest.raises(SystemExit):
        picture.main([str(tmp_path / "out"), "--to", "a.png"])
    assert "holds no video" in capsys.readouterr().err
