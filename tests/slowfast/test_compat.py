"""The cures, one by one, and finding PySlowFast."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mvitv2_slowfast import compat, video_io
from mvitv2_slowfast.locate import PySlowFastError, find_root
from tests.slowfast.launch import ROOT, needs_pyslowfast, python

RUN = ("-m", "mvitv2_slowfast.run_net", "--cfg", "x.yaml")


@contextmanager
def without(package: str) -> Iterator[None]:
    """``package`` as if never imported; what is imported meanwhile goes away again."""

    def loaded() -> dict[str, ModuleType]:
        return {n: m for n, m in sys.modules.items() if n.split(".")[0] == package}

    before = loaded()
    for name in before:
        del sys.modules[name]
    try:
        yield
    finally:
        for name in loaded():
            del sys.modules[name]
        sys.modules.update(before)


def old_release(folder: Path) -> Path:
    """A package laid out as slowfast 1.0 on PyPI: models without a registry."""
    models = folder / "slowfast" / "models"
    models.mkdir(parents=True)
    for path in (folder / "slowfast" / "__init__.py", models / "__init__.py"):
        path.write_text("")
    (models / "model_builder.py").write_text("def build_model(cfg): ...\n")
    return folder


def test_imports_and_builds_without_pyslowfast(tmp_path: Path) -> None:
    code = (
        "import sys, mvitv2_slowfast, torch; from tests.slowfast_cfg import make_cfg; "
        "from tests.golden_data import load; "
        "case = load('slowfast_k400_s_like'); "
        "model = mvitv2_slowfast.MViTv2(make_cfg(case['overrides'])); "
        "print(model([torch.zeros(case['input_shape'])]).shape); "
        "print(sorted(m for m in sys.modules if m.split('.')[0] in "
        "('slowfast', 'pytorchvideo', 'detectron2', 'vision', 'av')))"
    )
    result = python("-c", code, cwd=tmp_path, root="")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["torch.Size([2, 7])", "[]"]
    assert result.stderr == ""


def test_roi_head_without_pyslowfast(tmp_path: Path) -> None:
    code = (
        "import mvitv2_slowfast; from tests.slowfast_cfg import make_cfg; "
        "from tests.golden_data import load; "
        "mvitv2_slowfast.MViTv2(make_cfg(load('slowfast_ava_detection_head')['overrides']))"
    )
    result = python("-c", code, cwd=tmp_path, root="")
    assert result.returncode != 0
    assert "DETECTION.ENABLE needs PySlowFast's RoI head: set PYSLOWFAST_ROOT" in result.stderr


def test_launcher_without_pyslowfast(tmp_path: Path) -> None:
    result = python(*RUN, cwd=tmp_path, root="")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("PySlowFast was not found") and "git clone" in line


@pytest.mark.parametrize("how", ["variable", "importable"])
def test_launcher_with_the_old_release(how: str, tmp_path: Path) -> None:
    folder = old_release(tmp_path)
    # ``python -m`` puts the working folder on the path: there the old release is importable.
    result = python(*RUN, cwd=folder, root=str(folder) if how == "variable" else "")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "is too old: it has no MODEL_REGISTRY" in line and "git clone" in line


def test_wrong_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYSLOWFAST_ROOT", str(tmp_path))
    with pytest.raises(PySlowFastError, match=r"holds no slowfast/__init__\.py"):
        find_root()
    result = python(*RUN, cwd=tmp_path, root=str(tmp_path))
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1


@needs_pyslowfast
def test_a_missing_package_is_named(tmp_path: Path) -> None:
    (tmp_path / "simplejson.py").write_text("raise ImportError('No module named simplejson')")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import mvitv2_slowfast"
    result = python("-c", code, cwd=tmp_path)
    assert result.returncode == 0  # the model works without the trainer
    assert "MViTv2 is not registered" in result.stderr and "simplejson" in result.stderr


@needs_pyslowfast
def test_cures_do_nothing_the_second_time() -> None:
    from mvitv2_slowfast.plugin import connect

    before = list(compat.applied)
    assert connect() == Path(ROOT).resolve()
    assert compat.applied == before


def test_video_reader_and_cuda_cures_are_idempotent(monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.io

    monkeypatch.setattr(compat, "applied", [])
    for name in ("_probe_video_from_memory", "_read_video_from_memory"):
        monkeypatch.delattr(torchvision.io, name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "synchronize", torch.cuda.current_device)
    monkeypatch.setattr(torch.cuda, "set_device", torch.cuda.current_device)
    for _ in range(2):
        compat.cure_video_reader()
        compat.cure_cuda_calls()
    assert torchvision.io._read_video_from_memory is video_io.read_video_from_memory
    assert torch.cuda.synchronize() is None and torch.cuda.set_device(3) is None
    assert len(compat.applied) == 2


def test_cuda_calls_are_left_alone_with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    def original() -> None: ...

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", original)
    compat.cure_cuda_calls()
    assert torch.cuda.synchronize is original


def test_vision_package(tmp_path: Path) -> None:
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "thing.py").write_text("VALUE = 3\n")
    with without("vision"):
        compat.cure_vision_package(tmp_path)
        from vision.fair.slowfast.tools import thing

        assert thing.VALUE == 3


def test_detectron2_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(compat, "applied", [])
    with without("detectron2"):
        compat.cure_detectron2()
        compat.cure_detectron2()
        from detectron2.layers import ROIAlign
        from detectron2.utils.visualizer import Visualizer
    from torchvision.ops import roi_align

    assert len(compat.applied) == 1
    grid = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[0.0, 3, 3, 40, 50]])
    align = ROIAlign([7, 7], spatial_scale=1 / 8, sampling_ratio=0, aligned=True)
    expected = roi_align(grid, boxes, [7, 7], 1 / 8, 0, True)
    assert torch.equal(align(grid, boxes), expected)
    with pytest.raises(ImportError, match="need detectron2"):
        type("Ours", (Visualizer,), {})(None)


def test_soft_target_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 5, generator=generator)
    target = torch.rand(4, 5, generator=generator)
    loss = compat.SoftTargetCrossEntropyLoss(normalize_targets=False)
    assert loss(logits, target) == pytest.approx(F.cross_entropy(logits, target).item())
    normal = target / target.sum(dim=1, keepdim=True)
    loss = compat.SoftTargetCrossEntropyLoss()
    assert loss(logits, target) == pytest.approx(F.cross_entropy(logits, normal).item())
    classes = torch.tensor([1, -100, 4, 0])
    assert loss(logits, classes) == pytest.approx(F.cross_entropy(logits, classes).item())
    each = compat.SoftTargetCrossEntropyLoss(reduction="none")(logits, classes)
    assert torch.allclose(each, F.cross_entropy(logits, classes, reduction="none"))
    with pytest.raises(ValueError, match="reduction must be mean or none"):
        compat.SoftTargetCrossEntropyLoss(reduction="sum")


def clip_bytes(fps: int = 30, frames: int = 48, b_frames: bool = True) -> torch.Tensor:
    """An H.264 clip of grey frames, each 5 brighter than the one before."""
    av = pytest.importorskip("av", reason="reading clips needs PyAV: pip install av")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.options = {"crf": "1", "bf": "3" if b_frames else "0", "g": "12"}
        for step in range(frames):
            grey = np.full((64, 96, 3), 5 * step, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())
    return torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)


def steps(frames: torch.Tensor) -> list[int]:
    """Which frames of ``clip_bytes`` these are."""
    return (frames.float().mean(dim=(1, 2, 3)) / 5).round().int().tolist()


@pytest.mark.parametrize("b_frames", [True, False])
def test_probe_and_read_by_time(b_frames: bool) -> None:
    data = clip_bytes(b_frames=b_frames)
    meta = video_io.probe_video_from_memory(data)
    assert meta.has_video and not meta.has_audio
    assert meta.video_fps == 30 and meta.video_duration == pytest.approx(48 / 30)
    unit = meta.video_timebase
    pts = Fraction(1, 30) / unit  # of one frame

    def read(first: int, last: int, **options: int) -> torch.Tensor:
        frames, sound = video_io.read_video_from_memory(
            data,
            video_pts_range=(int(first * pts), int(last * pts) if last >= 0 else -1),
            video_timebase_numerator=unit.numerator,
            video_timebase_denominator=unit.denominator,
            **options,
        )
        assert sound.shape == (0,)
        return frames

    assert steps(read(0, -1)) == list(range(48))
    assert steps(read(17, 31)) == list(range(17, 32))
    assert steps(read(40, 90)) == list(range(40, 48))
    assert read(90, 95).shape == (0,)
    assert read(3, 3).shape == (1, 64, 96, 3) and read(3, 3).dtype == torch.uint8
    assert read(3, 3, video_min_dimension=32).shape == (1, 32, 48, 3)
    # 37.5 rounds up, and a frame just past the end counts: torchvision's own rules.
    assert read(3, 3, video_min_dimension=25).shape == (1, 25, 38, 3)
    late = (int(17 * pts), int(31 * pts) - 1)
    fraction = {"video_timebase_numerator": unit.numerator}
    fraction["video_timebase_denominator"] = unit.denominator
    frames, _ = video_io.read_video_from_memory(data, video_pts_range=late, **fraction)
    assert steps(frames) == list(range(17, 32))
    assert read(3, 3, video_width=20, video_height=10).shape == (1, 10, 20, 3)
    with pytest.raises(ValueError, match="video_width and video_height"):
        read(3, 3, video_width=20)
    with pytest.raises(ValueError, match="read_audio_stream"):
        read(3, 3, read_audio_stream=1)


def test_no_video_and_damaged_video() -> None:
    av = pytest.importorskip("av", reason="reading clips needs PyAV: pip install av")
    with pytest.raises(av.error.FFmpegError):
        video_io.probe_video_from_memory(torch.zeros(100, dtype=torch.uint8))
    data = clip_bytes()
    frames, _ = video_io.read_video_from_memory(data, read_video_stream=False)
    assert frames.shape == (0,)


@needs_pyslowfast
def test_top5_of_few_classes() -> None:
    from slowfast.utils.metrics import topks_correct

    preds = torch.tensor([[0.1, 0.9], [0.8, 0.2]])
    top1, top5 = topks_correct(preds, torch.tensor([1, 1]), (1, 5))
    assert (top1, top5) == (1, 2)
    many = torch.eye(7)
    assert [int(n) for n in topks_correct(many, torch.arange(7), (1, 5))] == [7, 7]
