"""``mvitv2 explain``: drawings of pictures and videos, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mvitv2_core import MViTClassifier, cli
from mvitv2_core.explain import attention_maps, attention_rollout, grad_cam
from mvitv2_core.explain.grad_cam import METHODS
from mvitv2_slowfast.config import read_config
from mvitv2_slowfast.model_info import read_info
from mvitv2_tools.classify import Classifier
from mvitv2_tools.explain import CAMS, Method, beside, draw, pixels_of
from tests.media_files import frame_number, picture, write_video
from tests.tools.conftest import TINY_CLIP, TINY_STILL, Result, loading_cfg, slowfast_run

Image = pytest.importorskip("PIL.Image", reason="pictures need Pillow: pip install Pillow")
av = pytest.importorskip("av", reason="videos need PyAV: pip install av")
pytest.importorskip("matplotlib", reason="colours need matplotlib: pip install matplotlib")
pytest.importorskip("tqdm", reason="progress needs tqdm: pip install tqdm")

EXPLAIN = EntryPoint("explain", "mvitv2_tools.explain:add_explain", cli.COMMANDS)


@pytest.fixture
def explain(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.setattr(cli, "entry_points", lambda group: [EXPLAIN] * (group == EXPLAIN.group))

    def run(*arguments: object) -> Result:
        capsys.readouterr()
        code = cli.main(["explain", "--device", "cpu", *map(str, arguments)])
        return Result(code, *capsys.readouterr())

    return run


@pytest.fixture
def still(tmp_path: Path) -> Path:
    """A trainer's folder with a still model, and two pictures of one name beside it."""
    slowfast_run(tmp_path / "run", loading_cfg(TINY_STILL))
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Image.fromarray(picture(60, 50, seed=len(folder))).save(tmp_path / folder / "one.png")
    return tmp_path


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--stage", 1, "--target", 3],
        ["--method", "hires-cam", "--block", 0],
        ["--method", "attention"],
        ["--method", "attention", "--block", 0, "--query", "0,2,3"],
        ["--method", "rollout", "--query", "mean"],
    ],
)
def test_pictures(explain: Any, still: Path, options: list[object]) -> None:
    out = still / "out"
    result = explain(still / "run", still / "a", still / "b", "--out", out, *options)
    assert result.code == 0, result.err
    assert sorted(path.name for path in out.iterdir()) == ["one.jpg", "one_2.jpg"]
    assert len(result.out.splitlines()) == 2 and "class " in result.out
    with Image.open(out / "one.jpg") as drawn:  # 32 x 32, seven times as large, twice
        assert drawn.size == (2 * 224, 224 + 26)


def test_a_video(explain: Any, tmp_path: Path) -> None:
    cfg = loading_cfg(TINY_CLIP)
    slowfast_run(tmp_path / "run", cfg)
    write_video(tmp_path / "v.mp4", frame_number(40, 48, 40))
    for method in ("taylor", "attention", "rollout"):
        result = explain(
            tmp_path / "run", tmp_path / "v.mp4", "--out", tmp_path / "out", "--method", method
        )
        assert result.code == 0, result.err
        with av.open(str(tmp_path / "out" / "v.mp4")) as video:
            frames, rate = list(video.decode(video=0)), video.streams.video[0].average_rate
        info = read_info(cfg, "v")
        assert len(frames) == info.frames == 4 and frames[0].width == 2 * 224
        assert float(rate) == pytest.approx(6.0)  # every 5th of 30


@pytest.mark.parametrize("clips, crops, middle", [(1, 1, 0), (1, 3, 1), (2, 3, 4), (10, 3, 16)])
def test_middle_clip_and_its_central_crop(clips: int, crops: int, middle: int) -> None:
    """Each view is of one grey, which the drawing shows."""
    cfg = loading_cfg(TINY_CLIP)
    info = replace(read_info(cfg, "v"), views=(clips, crops))
    predictor = Classifier(MViTClassifier(read_config(cfg)), info, None, torch.device("cpu"))
    greys = 8 * torch.arange(clips * crops, dtype=torch.uint8)
    views = [predictor.clip.prepare(grey.expand(4, 32, 32, 3))[0] for grey in greys]
    frames, _ = draw(predictor, torch.stack(views), Method("attention", 0, "cls"))
    assert (frames[0][:32, :32] == 8 * middle).all()


def test_what_is_refused(explain: Any, still: Path) -> None:
    def says(message: str, *options: object) -> None:
        result = explain(still / "run", still / "a", "--out", still / "out", *options)
        assert result.code == 2 and message in result.err, result.err

    says("block must be from -3 to 2", "--block", 3)
    says("--stage must be from 1 to 2", "--stage", 0)
    says("--target must be from 0 to 4", "--target", 5)
    says("no --block, no --stage", "--method", "rollout", "--block", 0)
    says("--query goes with attention", "--query", "mean")
    says("--target goes with taylor, grad-cam", "--method", "attention", "--target", 1)
    says("--query must have 3 numbers", "--method", "attention", "--query", "1,2")
    says("indices of the grid", "--method", "attention", "--query", "0,99,0")
    (still / "a" / "bad.png").write_bytes(b"no picture")
    result = explain(still / "run", still / "a", "--out", still / "out")
    assert result.code == 1 and "bad.png" in result.err and (still / "out/one.jpg").is_file()
    assert explain(still / "run", still / "none", "--out", still / "out").code == 2


def test_maps_are_those_of_the_core(still: Path) -> None:
    model = slowfast_run(still / "again", loading_cfg(TINY_STILL))
    x = torch.randn(1, 3, 32, 32)
    query = "cls" if model.config.cls_token else "mean"
    expected = attention_maps(model, x, 1, [query]).grid[:, 0].mean(dim=1)
    assert torch.equal(Method("attention", 1, query).maps(model, x), expected)
    assert set(CAMS) == set(METHODS)
    for cam in CAMS:
        expected = grad_cam(model, x, 2, 0, cam)
        assert torch.equal(Method(cam, 0, target=2).maps(model, x), expected)
    assert torch.equal(Method("rollout", 2, query).maps(model, x), attention_rollout(model, x))


def test_pixels_are_the_input_again() -> None:
    """Normalising is undone, in either order of channels."""
    info = read_info(loading_cfg(TINY_STILL), "x")
    pixels = torch.randint(256, (1, 32, 32, 3), dtype=torch.uint8)
    mean, std = torch.tensor(info.mean), torch.tensor(info.std)
    order = pixels.flip(-1) if info.channel_order == "BGR" else pixels
    x = ((order / 255 - mean) / std).permute(3, 0, 1, 2)
    assert torch.equal(pixels_of(x, info), pixels)
    assert torch.equal(pixels_of(x[:, 0], info), pixels)


def test_bright_where_the_map_is() -> None:
    heat = np.zeros((32, 32))
    heat[:16, :16] = 1
    drawing = beside(np.zeros((32, 32, 3), np.uint8), heat, "words").astype(int).sum(axis=-1)
    over = drawing[:224, 224:]
    assert not drawing[:224, :224].any() and over[:112, :112].min() > over[112:].max() + 100
