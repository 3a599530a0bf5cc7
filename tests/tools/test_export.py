"""``mvitv2 export``: files that give what the model gives, at sizes that were not the example's."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mvitv2_core import cli, create_model
from mvitv2_tools.classify import Classifier
from mvitv2_tools.export import command, to_onnx, to_package
from mvitv2_tools.export.command import compare, export
from mvitv2_tools.export.subject import classifier_subject
from tests.compare import error, randomize
from tests.tools.conftest import TINY_CLIP, TINY_STILL, loading_cfg, slowfast_run
from tests.tools.exported import small_subject

ROOT = Path(__file__).parents[2]
EXPORT = EntryPoint("export", "mvitv2_tools.export.command:add_export", cli.COMMANDS)
ONNX = ("onnx", "onnxscript", "onnxruntime")
# As a person runs a file, in a process that has torch alone.
READ_PT2 = """
import json, sys
import torch
extra = {"mvitv2.json": ""}
program = torch.export.load(sys.argv[1], extra_files=extra).module()
torch.save(program(torch.load(sys.argv[2])), sys.argv[3])
print(extra["mvitv2.json"])
assert not any(name.startswith("mvitv2") for name in sys.modules)
"""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``run(MODEL, OUT, ...)``: the exit code of ``mvitv2 export``."""
    monkeypatch.setattr(cli, "entry_points", lambda group: [EXPORT] * (group == EXPORT.group))
    return lambda *arguments: cli.main(["export", *map(str, arguments)])


def need_onnx() -> None:
    for package in ONNX:
        pytest.importorskip(package, reason=f"ONNX needs {package}: pip install 'mvitv2[onnx]'")


def still_run(folder: Path) -> torch.nn.Module:
    """A run of PySlowFast with a classifier of images of two blocks."""
    cfg = loading_cfg(
        {**TINY_STILL, "MVIT.DEPTH": 2, "MVIT.POOL_Q_STRIDE": TINY_STILL["MVIT.POOL_Q_STRIDE"][:2]}
    )
    return slowfast_run(folder, cfg, epoch=1)


def test_onnx_for_any_batch_and_size(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Five sizes that were not the example's, and how inputs are prepared, in the file."""
    need_onnx()
    import onnxruntime

    model = still_run(tmp_path / "run")
    (tmp_path / "labels.txt").write_text("a\nb\nc\nd\ne\n")
    file = tmp_path / "model.onnx"
    arguments = ("--dynamic", "batch", "size", "--labels", tmp_path / "labels.txt", "--quiet")
    assert run(tmp_path / "run", file, *arguments) == 0
    assert capsys.readouterr().out.count("of the largest output") == 3
    session = onnxruntime.InferenceSession(file)
    assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    for shape in ((1, 32, 32), (2, 40, 24), (3, 64, 64), (1, 51, 37), (1, 156, 100)):
        x = torch.randn(shape[0], 3, *shape[1:])
        (got,) = session.run(["logits"], {"images": x.numpy()})
        with torch.no_grad():
            assert error(torch.from_numpy(got), model(x)) < 1e-5, shape
    kept = session.get_modelmeta().custom_metadata_map
    assert json.loads(kept["labels"]) == list("abcde")
    assert json.loads(kept["mean"]) == [0.45] * 3 and json.loads(kept["free"]) == ["batch", "size"]
    # A second time: refused, unless told so.
    assert run(tmp_path / "run", file) == 2 and "--force" in capsys.readouterr().err
    assert [path.name for path in tmp_path.glob(".mvitv2-*")] == []


def test_a_program_alone(run: Any, tmp_path: Path) -> None:
    """A .pt2 file of clips, read by torch alone."""
    model = slowfast_run(tmp_path / "run", loading_cfg(TINY_CLIP), epoch=1)
    file, given, found = (tmp_path / name for name in ("model.pt2", "in.pt", "out.pt"))
    assert run(tmp_path / "run", file, "--quiet") == 0
    x = torch.randn(1, 3, 4, 32, 32)
    torch.save(x, given)
    command = [
        sys.executable,
        "-I",
        "-W",
        "ignore",
        "-c",
        READ_PT2,
        *map(str, (file, given, found)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["mean"] == [0.45] * 3
    (got,) = torch.load(found)
    with torch.no_grad():
        assert error(got, model(x)) < 1e-5


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (("{run}", "a.txt"), "must end in .onnx or .pt2"),
        (("{run}", "none/a.pt2"), "its folder is not there"),
        (("{run}", "a.onnx", "--compile"), "--compile is for .pt2"),
        (("{run}", "a.onnx", "--precision", "bfloat16"), "bfloat16 is for .pt2"),
        (("{run}", "a.pt2", "--compile", "--dynamic", "size"), "--compile is for one size"),
        (("{run}", "a.pt2", "--frames", "4"), "takes images"),
        (("{run}", "a.pt2", "--random"), "name must be that of a model"),
        (("{run}", "a.pt2", "--random", "--weights", "w.pth"), "does not go with --weights"),
    ],
)
def test_what_is_refused(
    arguments: tuple[str, ...],
    cause: str,
    run: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    still_run(tmp_path / "run")
    assert run(*(word.format(run="run") for word in arguments)) == 2
    assert cause in capsys.readouterr().err


def test_packages_that_are_missing(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run("mvitv2_tiny", tmp_path / "a.onnx", "--random") == 2
    assert "ONNX needs onnx, onnxscript, onnxruntime: pip install" in capsys.readouterr().err
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert run("mvitv2_tiny", tmp_path / "a.pt2", "--random", "--compile") == 2
    assert "needs a C++ compiler" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["aoti_compile_and_package", "aoti_load_package"])
def test_private_names_of_pytorch_may_go(
    name: str,
    run: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    tally: Any,
) -> None:
    """Refused before anything is done, with what a release is to have."""
    monkeypatch.delattr(torch._inductor, name)
    assert run("mvitv2_tiny", tmp_path / "a.pt2", "--random", "--compile") == 2
    assert f"needs torch._inductor.{name}, which PyTorch 2.6" in capsys.readouterr().err
    with monkeypatch.context() as patch:  # of what windows are exported with
        patch.delattr(torch.fx.experimental, "_config")
        patch.setattr(command, "has_windows", lambda subject: True)
        with command.any_windows(small_subject("size")):
            pass
    tally("private names of PyTorch that may go", 2)


def test_pyyaml_is_missing(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PySlowFast's files hold a config, and no extra of this command brings what reads it."""
    still_run(tmp_path / "run")
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert run(tmp_path / "run", tmp_path / "a.pt2") == 2
    assert "the config in it needs PyYAML: pip install PyYAML" in capsys.readouterr().err


def of_file(file: Path, inputs: list[Tensor], compiled: bool = False) -> list[Tensor]:
    """Logits that a file gives: by onnxruntime, or in a process that has torch alone."""
    if file.suffix == ".onnx":
        return [parts[0] for parts in to_onnx.run(file, inputs)]
    return [parts[0] for parts in to_package.run(file, inputs, compiled)]


def test_a_file_that_differs_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = to_package.run

    def run(*arguments: Any) -> list[list[Tensor]]:
        return [[part + 1e-3 for part in parts] for parts in real(*arguments)]

    monkeypatch.setattr(to_package, "run", run)
    with pytest.raises(ValueError, match="differs from the model by"):
        export(small_subject(), tmp_path / "a.pt2")
    assert not list(tmp_path.iterdir())


def test_torch_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is run by a Python that has PYTHONPATH, and no use for this project in it."""
    code = f"open({str(tmp_path / 'seen')!r}, 'w')"
    (tmp_path / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    export(small_subject(), tmp_path / "a.pt2")
    assert (tmp_path / "seen").exists()
    monkeypatch.setattr(to_package, "OPEN", "import mvitv2_core")
    with pytest.raises(ValueError, match=r"does not run .* import of mvitv2_core halted"):
        to_package.run(tmp_path / "a.pt2", [], compiled=False)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
@pytest.mark.parametrize("route", [".onnx", ".pt2", ".pt2 --compile"])
def test_half_precision(route: str, precision: str, run: Any, tmp_path: Path) -> None:
    """The command compares with the model in float32; what was left undone is refused."""
    if route == ".onnx":
        need_onnx()
    still_run(tmp_path / "run")
    suffix, *more = route.split()
    refused = route == ".onnx" and precision == "bfloat16"
    file = tmp_path / f"model{suffix}"
    assert run(tmp_path / "run", file, "--precision", precision, *more) == 2 * refused
    assert file.exists() != refused


FULL_SIZES = {
    "mvitv2_tiny": [(1, 224, 256), (2, 160, 224), (1, 231, 157), (1, 320, 288), (3, 96, 128)],
    "mvitv2_small_16x4_k400": [
        *((1, 16, 192, 224), (1, 12, 128, 160), (2, 8, 112, 96), (1, 24, 160, 131)),
        (1, 16, 256, 224),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("route", [".onnx", ".pt2", ".pt2 --compile"])
@pytest.mark.parametrize("name", list(FULL_SIZES))
def test_full_size(name: str, route: str, tmp_path: Path, tally: Any) -> None:
    """T and the clip model S, each size free, at five sizes that were not the example's.

    Compiled at the example's size alone, for other inputs than the example.
    """
    if route == ".onnx":
        need_onnx()
    model: Any = randomize(create_model(name))
    classifier = Classifier(model, model.info, None, torch.device("cpu"))
    compiled, sizes = "--compile" in route, FULL_SIZES[name]
    free = ("batch", "size", *(["frames"] if model.info.task == "clip" else []))
    if compiled:
        free, sizes = (), [(1, *model.config.input_size)] * 2
    subject = classifier_subject(classifier, 1, None, None, free)
    file = tmp_path / f"model{route.split()[0]}"
    export(subject, file, compiled=compiled, free=free)
    generator = torch.Generator().manual_seed(1)
    inputs = [torch.randn(n, 3, *size, generator=generator) for n, *size in sizes]
    for x, got in zip(inputs, of_file(file, inputs, compiled), strict=True):
        with torch.no_grad():
            assert error(got, model(x)) < 1e-5, x.shape
        tally(f"exported {name}, {route}")


def detectron2_run(folder: Path) -> Any:
    """A trainer's folder of the toy detector, with a backbone away from its first values."""
    pytest.importorskip("detectron2", reason="detectors need detectron2: make setup")
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model

    from mvitv2_d2.env import setup_environment

    setup_environment()
    cfg = get_cfg()
    cfg.merge_from_file(str(ROOT / "configs/COCO/toy_mask_rcnn_mvitv2.yaml"))
    (folder / "config.yaml").write_text(cfg.dump())
    model = build_model(cfg).eval()
    randomize(model.backbone.bottom_up)
    torch.save({"model": model.state_dict()}, folder / "model_final.pth")
    return model


def test_backbone_of_a_detector(run: Any, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """With its pyramid, for one size."""
    model = detectron2_run(tmp_path)
    file = tmp_path / "backbone.pt2"
    assert run(tmp_path, file, "--dynamic", "batch", "size") == 2
    assert "more than one image" in capsys.readouterr().err
    assert run(tmp_path, file, "--size", "100") == 2
    assert "--size must be multiples of 32" in capsys.readouterr().err
    assert run(tmp_path, file, "--size", "128x160", "--quiet") == 0
    x = torch.randn(1, 3, 128, 160)
    with torch.no_grad():
        expected = list(model.backbone(x).values())
    (found,) = to_package.run(file, [x], compiled=False)
    assert max(error(a, b) for a, b in zip(found, expected, strict=True)) < 1e-5
    extra = {"mvitv2.json": ""}
    torch.export.load(file, extra_files=extra)
    metadata = json.loads(extra["mvitv2.json"])
    assert metadata["shape"] == [1, 3, 128, 160]
    assert metadata["strides"] == {f"p{n}": 2**n for n in range(2, 7)}
    assert list(metadata["strides"]) == list(model.backbone(x))  # the order of what it gives


@pytest.mark.slow
@pytest.mark.parametrize("route", [".onnx", ".pt2"])
def test_backbone_of_any_size(route: str, run: Any, tmp_path: Path, tally: Any) -> None:
    """Multiples of 32, with windows whole and filled up, and one window, unlike the example's.

    A .pt2 refuses a side of 32 pixels, of which the last grid keeps one cell.
    """
    if route == ".onnx":
        need_onnx()
    model = detectron2_run(tmp_path)
    file = tmp_path / f"backbone{route}"
    free = ["batch", "size"] if route == ".onnx" else ["size"]
    assert run(tmp_path, file, "--dynamic", *free, "--size", "160x224") == 0
    sizes = [(128, 128), (64, 192), (96, 160), (256, 320), (192, 224)]
    sizes += [(64, 32) if route == ".onnx" else (64, 64)]
    inputs = [torch.randn(1 + n % len(free), 3, *size) for n, size in enumerate(sizes)]
    read = to_onnx.run if route == ".onnx" else partial(to_package.run, compiled=False)
    for x, found in zip(inputs, read(file, inputs), strict=True):
        with torch.no_grad():
            expected = list(model.backbone(x).values())
        assert max(error(a, b) for a, b in zip(found, expected, strict=True)) < 1e-5, x.shape
        tally(f"exported backbone and pyramid, {route}")


def test_no_number_is_a_difference() -> None:
    """Wherever it stands, in the file's outputs or in both; equal maps of zeros are equal."""
    x, ones, zeros = torch.zeros(1, 3, 8, 8), torch.ones(4), torch.zeros(4)
    nan = torch.tensor([1.0, float("nan"), 1.0, 1.0])
    (line,) = compare([x], [[ones, zeros]], [[ones, zeros]], 1e-5)
    assert line == "1x3x8x8: differs by 0.0e+00 of the largest output"
    for wrong, right in ((nan, ones), (nan, nan), (ones, zeros)):
        for got, expected in (([ones, wrong], [ones, right]), ([wrong, ones], [right, ones])):
            with pytest.raises(ValueError, match=r"for 1x3x8x8 the file differs .* by (nan|inf)"):
                compare([x], [got], [expected], 1e-5)
