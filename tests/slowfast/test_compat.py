"""The cures, one by one, and finding PySlowFast."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F

from mvitv2_slowfast import compat, roi_align, video_io
from mvitv2_slowfast.locate import PySlowFastError, find_root
from mvitv2_slowfast.pytorchvideo_names import SoftTargetCrossEntropyLoss
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
def test_connect_does_what_the_launcher_does() -> None:
    """Doing it again, or launching after it, changes nothing."""
    from mvitv2_slowfast import run_net
    from mvitv2_slowfast.plugin import connect

    assert connect() == Path(ROOT).resolve()
    from slowfast.datasets import loader
    from slowfast.models import optimizer
    from slowfast.utils import checkpoint, meters
    from vision.fair.slowfast.tools import test_net, train_net, visualization

    mended = [
        *((loader, "build_dataset"), (optimizer, "construct_optimizer")),
        *((checkpoint, "save_checkpoint"), (checkpoint, "load_checkpoint")),
        *((train_net, "train_epoch"), (test_net, "perform_test")),
        *((visualization, "run_visualization"), (meters.TestMeter, "update_stats")),
    ]
    before = [getattr(owner, name) for owner, name in mended], list(compat.applied)
    for (owner, name), found in zip(mended, before[0], strict=True):
        # A wrapped function passes for its original, but for its code.
        code = getattr(found, "func", found).__code__.co_filename
        assert "mvitv2_slowfast" in code, (owner, name)
    connect()
    run_net.prepare()
    assert ([getattr(owner, name) for owner, name in mended], compat.applied) == before


@needs_pyslowfast
def test_connect_without_a_trainer(tmp_path: Path) -> None:
    """A package alone: its loaders are of use, and the launcher says what is missing."""
    (tmp_path / "slowfast").symlink_to(Path(ROOT, "slowfast"))
    code = (
        "import sys; from mvitv2_slowfast.plugin import connect; connect(); "
        "import slowfast.datasets.loader; "
        "assert not [name for name in sys.modules if '.tools.' in name and 'fair' in name]; "
        "from mvitv2_slowfast import run_net; run_net.prepare()"
    )
    result = python("-c", code, cwd=tmp_path, root=str(tmp_path))
    assert result.returncode == 2, result.stderr
    assert "has no tools/run_net.py: git clone" in result.stderr


@pytest.mark.parametrize("names", [False, True])
def test_video_reader_and_cuda_cures_are_idempotent(
    names: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchvision has neither the readers' names nor what is behind them; or names alone."""
    import torchvision.io

    monkeypatch.setattr(compat, "applied", [])
    for name in ("_probe_video_from_memory", "_read_video_from_memory"):
        monkeypatch.delattr(torchvision.io, name, raising=False)
        if names:
            monkeypatch.setattr(torchvision.io, name, lambda *_: None, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "synchronize", torch.cuda.current_device)
    monkeypatch.setattr(torch.cuda, "set_device", torch.cuda.current_device)
    for _ in range(2):
        compat.cure_video_reader()
        compat.cure_cuda_calls()
    assert torchvision.io._read_video_from_memory is video_io.read_video_from_memory
    assert torch.cuda.synchronize() is None and torch.cuda.set_device(3) is None
    assert len(compat.applied) == 2


def test_a_video_reader_that_works_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.io

    monkeypatch.setattr(torch.ops.video_reader, "probe_video_from_memory", 1, raising=False)
    monkeypatch.setattr(torchvision.io, "_read_video_from_memory", 2, raising=False)
    compat.cure_video_reader()
    assert torchvision.io._read_video_from_memory == 2


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


# Runs before anything else: detectron2 as if it were not installed.
HIDE = """
import importlib.machinery, importlib.util, pickle, sys
find = importlib.machinery.PathFinder.find_spec
importlib.machinery.PathFinder.find_spec = classmethod(
    lambda cls, name, path=None, target=None:
    None if name.split(".")[0] == "detectron2" else find(name, path, target)
)
"""
IMPORT = """
import torch, torchvision.io
calls = torch.cuda.synchronize, torch.cuda.set_device
import mvitv2_slowfast
from mvitv2_slowfast import compat
from slowfast.models import head_helper
from slowfast.models.build import MODEL_REGISTRY
assert MODEL_REGISTRY.get("MViTv2") is mvitv2_slowfast.MViTv2
assert (torch.cuda.synchronize, torch.cuda.set_device) == calls
for name in ("vision", "torchvision.transforms.functional_tensor"):
    assert name not in sys.modules, name
"""
ASK = """
def check():
    assert importlib.util.find_spec("detectron2") is None
    assert not [name for name in sys.modules if name.startswith("detectron2")]
    ours = [n for n, m in sys.modules.items() if (m.__doc__ or "").startswith("Stand-in made")]
    assert "pytorchvideo.losses" in ours
    for name in ours:
        spec = importlib.util.find_spec(name)
        assert spec.name == name and spec.origin == "mvitv2_slowfast.compat", name

check()
align = head_helper.ROIAlign([7, 7], 0.25, 0, True)
assert pickle.loads(pickle.dumps(align)).output_size == [7, 7]
from mvitv2_slowfast.plugin import connect
connect()
check()
import vision.fair.slowfast.tools.run_net
from slowfast.visualization.video_visualizer import ImgVisualizer
try:
    ImgVisualizer(None, None)
except ImportError as error:
    print(error, *compat.applied, sep="\\n")
"""


@needs_pyslowfast
def test_import_changes_no_more_than_registration_needs(tmp_path: Path) -> None:
    code = IMPORT.replace("import torch,", "import sys, torch,")
    result = python("-c", code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr


@needs_pyslowfast
def test_nobody_is_told_that_detectron2_is_installed(tmp_path: Path) -> None:
    """Neither after an import nor with every cure; every other stand-in has a spec."""
    result = python("-c", HIDE + IMPORT + ASK, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "demo and its video visualizer need detectron2" in result.stdout
    assert result.stdout.count("detectron2 is not installed: ROIAlign is torchvision's") == 1


def test_detectron2_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roi_align.importlib.util, "find_spec", lambda name: None)
    with without("detectron2"):
        with roi_align.stand_in_for_detectron2() as line:
            from detectron2.layers import ROIAlign
        assert line is not None and "detectron2" not in sys.modules
    from torchvision.ops import roi_align as operator

    grid = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[0.0, 3, 3, 40, 50]])
    align = ROIAlign([7, 7], spatial_scale=1 / 8, sampling_ratio=0, aligned=True)
    assert torch.equal(align(grid, boxes), operator(grid, boxes, [7, 7], 1 / 8, 0, True))


def test_soft_target_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 5, generator=generator)
    target = torch.rand(4, 5, generator=generator)
    loss = SoftTargetCrossEntropyLoss(normalize_targets=False)
    assert loss(logits, target) == pytest.approx(F.cross_entropy(logits, target).item())
    normal = target / target.sum(dim=1, keepdim=True)
    loss = SoftTargetCrossEntropyLoss()
    assert loss(logits, target) == pytest.approx(F.cross_entropy(logits, normal).item())
    classes = torch.tensor([1, -100, 4, 0])
    assert loss(logits, classes) == pytest.approx(F.cross_entropy(logits, classes).item())
    each = SoftTargetCrossEntropyLoss(reduction="none")(logits, classes)
    assert torch.allclose(each, F.cross_entropy(logits, classes, reduction="none"))
    with pytest.raises(ValueError, match="reduction must be mean or none"):
        SoftTargetCrossEntropyLoss(reduction="sum")


@needs_pyslowfast
def test_top5_of_few_classes() -> None:
    from mvitv2_slowfast.plugin import connect

    connect()
    from slowfast.utils.metrics import topks_correct

    preds = torch.tensor([[0.1, 0.9], [0.8, 0.2]])
    top1, top5 = topks_correct(preds, torch.tensor([1, 1]), (1, 5))
    assert (top1, top5) == (1, 2)
    many = torch.eye(7)
    assert [int(n) for n in topks_correct(many, torch.arange(7), (1, 5))] == [7, 7]
