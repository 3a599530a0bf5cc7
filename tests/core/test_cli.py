"""The command ``mvitv2``."""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import BinaryIO

import pytest
import torch
from torch import Tensor

from mvitv2_core import MViTClassifier, MViTConfig, cli
from mvitv2_core.checkpoint import CheckpointError, convert_state_dict, read_checkpoint
from mvitv2_core.checkpoint.hub import OFFICIAL
from mvitv2_core.checkpoint.write import check_target, write_checkpoint
from tests.compare import randomize
from tests.structures import small

COMMANDS = ("inspect", "convert", "inflate", "diff", "cost")


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    """A T for images of 64, which is recognised as such."""
    return randomize(MViTClassifier(MViTConfig.variant("T", (64, 64), num_classes=7))).state_dict()


@pytest.fixture
def image(tmp_path: Path, published: dict[str, Tensor]) -> Path:
    torch.save({"model_state": published, "epoch": 3}, tmp_path / "T.pyth")
    return tmp_path / "T.pyth"


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


def test_as_a_program(tmp_path: Path) -> None:
    """The module runs, and its exit code is the command's."""
    command = [sys.executable, "-m", "mvitv2_core.cli", "inspect", str(tmp_path / "none.pyth")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 2 and not result.stdout
    assert result.stderr == f"mvitv2: {tmp_path}/none.pyth: no such file\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples_that_parse(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(command, "--help")
    assert caught.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    examples = [line.split("  (")[0].split() for line in lines if line.startswith("  mvitv2 ")]
    assert examples
    for example in examples:
        options = cli._parser().parse_args(example[1:])
        assert options.run.__name__ == f"_{command}"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out/1.jpg"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB."),
    ],
)
def test_what_stops_a_run_is_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And exit code 2: 1 is that of a run that came to its end."""

    def stop(_: object) -> int:
        raise error

    monkeypatch.setattr(cli, "_inspect", stop)
    assert run("inspect", "x.pyth") == 2
    assert capsys.readouterr().err == f"mvitv2: {error}\n"


def test_inspect(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", image, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    expected = {
        "container": "torch",
        "weights_under": "model_state",
        "beside_the_weights": ["epoch"],
        "format": "image",
        "variant": "T",
        "kind": "images",
        "depths": [1, 2, 5, 2],
        "width_grows_in": "attention",
        "cls_token": False,
        "num_classes": 7,
        "input_size": [64, 64],
        "tensors": 242,
        "unusual": [],
    }
    assert {key: facts[key] for key in expected} == expected
    assert facts["parameters"] == sum(v.numel() for v in read_checkpoint(image).state.values())
    assert run("inspect", image) == 0
    text = capsys.readouterr().out
    assert re.search(r"^variant +T$", text, re.M) and re.search(r"^unusual +nothing$", text, re.M)


def test_inspect_says_what_is_unusual(
    tmp_path: Path, published: dict[str, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    state = dict(published)
    state["norm.weight"] = torch.full_like(state["norm.weight"], float("nan"))
    state["blocks.0.mlp.fc1.weight"] = torch.zeros_like(state["blocks.0.mlp.fc1.weight"])
    state["head.projection.bias"] = state["head.projection.bias"].half()
    state["stranger"] = torch.zeros(2)
    state = {name: v for name, v in state.items() if not name.startswith("blocks.4.")}
    torch.save(state, tmp_path / "odd.pth")
    assert run("inspect", tmp_path / "odd.pth", "--json") == 0
    assert json.loads(capsys.readouterr().out)["unusual"] == [
        "not float32: head.projection.bias",
        "NaN or infinite values: norm.weight",
        "all zero: blocks.0.mlp.fc1.weight",
        "no tensors for blocks [4]",
        "outside of the model: stranger",
    ]


def test_convert_and_diff(tmp_path: Path, image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("convert", image, tmp_path / "t.safetensors", "--to", "timm") == 0
    out = capsys.readouterr().out
    assert "242 loaded" in out and "stages.2.blocks.0.shortcut_proj_attn.weight" in out
    assert run("diff", image, tmp_path / "t.safetensors") == 0
    assert capsys.readouterr().out == "242 of 242 tensors are equal\n"
    back = tmp_path / "back.pkl"
    arguments = ("convert", tmp_path / "t.safetensors", back, "--to", "detectron2", "--prefix")
    assert run(*arguments, "--quiet") == 0
    assert capsys.readouterr().out == f"{tmp_path}/t.safetensors: 238 loaded, 4 unused\n"
    content = pickle.loads(back.read_bytes())
    assert content["matching_heuristics"] is True and content["__author__"]
    assert all(name.startswith("backbone.bottom_up.blocks.") for name in list(content["model"])[2:])
    assert run("diff", image, back) == 1
    out = capsys.readouterr().out
    assert "238 of 242 tensors are equal" in out and out.count("only in a") == 4


def test_diff_sees_the_smallest_change(
    tmp_path: Path, published: dict[str, Tensor], image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = {name: value.clone() for name, value in published.items()}
    state["norm.bias"][3] = torch.nextafter(state["norm.bias"][3], torch.tensor(9.0))
    state["norm.weight"] = state["norm.weight"][:5]
    write_checkpoint(tmp_path / "b.pth", state)
    assert run("diff", image, tmp_path / "b.pth") == 1
    out = capsys.readouterr().out
    assert re.search(r"norm.bias +768 +768 +largest \d", out)
    assert re.search(r"norm.weight +768 +5 +shape", out) and "240 of 242" in out


def test_convert_to_another_size(tmp_path: Path, image: Path) -> None:
    out = tmp_path / "out.pyth"
    assert run("convert", image, out, "--to", "image", "--size", "96x128") == 0
    state = read_checkpoint(out).state
    assert state["blocks.0.attn.rel_pos_h"].shape[0] == 2 * 24 - 1
    assert state["blocks.0.attn.rel_pos_w"].shape[0] == 2 * 32 - 1


def test_inflate(
    tmp_path: Path,
    image: Path,
    published: dict[str, Tensor],
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "clip.pyth"
    assert run("inflate", image, out, "--frames", 8, "--size", 96, "--no-cls-token", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["counts"]["inflated"] == 41 and report["counts"]["new"] == 0
    state = read_checkpoint(out).state
    model = MViTClassifier(MViTConfig.variant("T", (8, 96, 96), num_classes=7, cls_token=False))
    model.load_state_dict(state, strict=True)
    assert run("convert", out, tmp_path / "back.pyth", "--to", "image", "--size", 64) == 2
    assert "must have 3 sizes" in capsys.readouterr().err
    back, _ = convert_state_dict(state, "image")
    assert torch.equal(back["patch_embed.proj.weight"], published["patch_embed.proj.weight"])
    assert run("inflate", image, out, "--classes", 400, "--force", "--quiet") == 0
    assert "3 new, 2 unused" in capsys.readouterr().out


def test_inflate_of_an_unpublished_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(MViTClassifier(small("T")).state_dict(), tmp_path / "small.pth")
    assert run("inflate", tmp_path / "small.pth", tmp_path / "out.pth") == 2
    assert "--variant or --config is needed" in capsys.readouterr().err
    # A reader of configs, as an adapter registers it.
    monkeypatch.setattr(cli, "entry_points", lambda group: [READER] * (group == READER.group))
    arguments = ("inflate", tmp_path / "small.pth", tmp_path / "out.pth", "--config")
    assert run(*arguments, "x.json") == 2
    assert "nothing installed reads .json configs" in capsys.readouterr().err
    recipe = tmp_path / "frames8.yaml"
    recipe.touch()
    assert run(*arguments, recipe, "--frames", 8, "--no-cls-token") == 2
    assert "does not go with --frames, --no-cls-token" in capsys.readouterr().err
    assert run(*arguments, tmp_path / "frames9.yaml") == 2
    assert "frames9.yaml: no such file, nor a recipe in" in capsys.readouterr().err
    assert run(*arguments, recipe) == 0
    state = read_checkpoint(tmp_path / "out.pth").state
    MViTClassifier(small("T", 8)).load_state_dict(state, strict=True)


def read_toy_config(path: Path) -> MViTConfig:
    assert path.name == "frames8.yaml"
    return small("T", 8)


READER = EntryPoint("yaml", f"{__name__}:read_toy_config", cli.CONFIG_READERS)


def test_never_over_an_existing_file(
    tmp_path: Path, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.pth"
    out.write_text("precious")
    for command in (("convert", image, out, "--to", "timm"), ("inflate", image, out)):
        assert run(*command) == 2
        assert f"{out}: exists already; use --force" in capsys.readouterr().err
        assert out.read_text() == "precious"
        assert run(*command, "--force", "--quiet") == 0
        assert out.stat().st_size > 1e6
        out.write_text("precious")
    # In place: what is read is mapped from the file that is replaced.
    assert run("convert", image, image, "--to", "timm", "--force", "--quiet") == 0
    assert "stages.0.blocks.0.norm1.weight" in read_checkpoint(image).state


@pytest.mark.parametrize(
    ("command", "format"), [("convert", "detectron2"), ("inflate", "slowfast")]
)
def test_help_offers_the_endings_that_are_taken(
    command: str, format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(command, "--help")
    told = capsys.readouterr().out.split("  OUT ")[1].split("options:")[0]
    with pytest.raises(CheckpointError, match="must end in") as caught:
        check_target(tmp_path / "x.txt", format)
    allowed = str(caught.value).split("must end in")[1]
    assert re.findall(r"\.\w+", told) == re.findall(r"\.\w+", allowed)


def test_writes_whole_files_or_none(
    tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.pth"
    out.write_text("precious")

    def full_disk(content: object, stream: BinaryIO) -> None:
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    assert run("convert", image, out, "--to", "timm", "--force") == 2
    assert f"{out}: cannot be written: No space left on device" in capsys.readouterr().err
    assert out.read_text() == "precious"
    assert {path.name for path in tmp_path.iterdir()} == {"T.pyth", "out.pth"}


def test_errors_are_one_line_and_code_2(
    tmp_path: Path, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder.pth").mkdir()
    state = read_checkpoint(image).state
    half = tmp_path / "half.pyth"
    torch.save({name: value.bfloat16() for name, value in state.items()}, half)
    bad = {
        ("convert", image, tmp_path / "x.txt", "--to", "timm"): "must end in .pyth",
        ("convert", image, tmp_path / "x.pkl", "--to", "timm"): "must end in .pyth",
        ("convert", half, tmp_path / "x.pkl", "--to", "detectron2"): "a .pkl holds no bfloat16",
        ("convert", image, tmp_path / "folder.pth", "--to", "timm"): "is a directory",
        ("convert", image, tmp_path / "no" / "x.pth", "--to", "timm"): "cannot be written",
        ("convert", image, tmp_path / "x.pth", "--to", "torchvision"): "inflate it first",
        ("convert", image, tmp_path / "x.pth", "--to", "image", "--frames", 4): "needs --size",
        ("inspect", tmp_path / "folder.pth"): "is a directory",
        ("diff", image, tmp_path / "none.pth"): "no such file",
        ("inflate", image, tmp_path / "x.pth", "--frames", 0): "positive whole numbers",
        ("inflate", image, tmp_path / "x.pth", "--variant", "S"): f"{image}: does not match",
    }
    for arguments, message in bad.items():
        assert run(*arguments) == 2, arguments
        captured = capsys.readouterr()
        assert message in captured.err and captured.err.count("\n") == 1, captured.err
    assert {path.name for path in tmp_path.iterdir()} == {"T.pyth", "folder.pth", "half.pyth"}


def test_model_zoo_lists_the_official_weights() -> None:
    """MODEL_ZOO.md and the registry tell the same, row by row."""
    root = Path(__file__).parents[2]
    text = (root / "MODEL_ZOO.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \|(.*)$", text, re.M))
    assert set(rows) == set(OFFICIAL)
    for name, row in OFFICIAL.items():
        for part in (row.url, row.task, row.published, row.recipe):
            assert part in rows[name], (name, part)


def test_inflate_by_a_pyslowfast_config(tmp_path: Path, image: Path) -> None:
    """The reader that pyproject.toml registers for YAML files, over PySlowFast's defaults."""
    root = os.environ.get("PYSLOWFAST_ROOT")
    if not root:
        pytest.skip("set PYSLOWFAST_ROOT to a checkout of PySlowFast to run")
    (tmp_path / "T.yaml").write_text(
        "MODEL: {ARCH: mvit, MODEL_NAME: MViTv2, NUM_CLASSES: 7}\n"
        "DATA: {NUM_FRAMES: 8, TRAIN_CROP_SIZE: 64}\n"
        "MVIT:\n  DEPTH: 10\n  NUM_HEADS: 1\n  EMBED_DIM: 96\n  CLS_EMBED_ON: False\n"
        "  USE_ABS_POS: False\n  REL_POS_SPATIAL: True\n  REL_POS_TEMPORAL: True\n"
        "  RESIDUAL_POOLING: True\n  DIM_MUL_IN_ATT: True\n  POOL_KVQ_KERNEL: [3, 3, 3]\n"
        "  POOL_KV_STRIDE_ADAPTIVE: [1, 8, 8]\n  PATCH_KERNEL: [3, 7, 7]\n"
        "  PATCH_STRIDE: [2, 4, 4]\n  PATCH_PADDING: [1, 3, 3]\n  MODE: conv\n"
        "  DIM_MUL: [[1, 2.0], [3, 2.0], [8, 2.0]]\n  HEAD_MUL: [[1, 2.0], [3, 2.0], [8, 2.0]]\n"
        f"  POOL_Q_STRIDE: {[[i, 1, *([2, 2] if i in (1, 3, 8) else [1, 1])] for i in range(10)]}\n"
    )
    # A process of its own: PySlowFast's cures reach into other packages.
    script = (
        "import sys; from mvitv2_core import cli; from importlib.metadata import EntryPoint\n"
        "value = 'mvitv2_slowfast.config_file:read_config_file'\n"
        "entry = EntryPoint('yaml', value, cli.CONFIG_READERS)\n"
        "cli.entry_points = lambda group: [entry] * (group == entry.group)\n"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    files = [str(image), str(tmp_path / "clip.pyth"), "--config", str(tmp_path / "T.yaml")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", script, "inflate", *files]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    state = read_checkpoint(tmp_path / "clip.pyth").state
    model = MViTClassifier(MViTConfig.variant("T", (8, 64, 64), num_classes=7, cls_token=False))
    model.load_state_dict(state, strict=True)


def test_pyproject_registers_the_command_and_the_reader() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert 'mvitv2 = "mvitv2_core.cli:main"' in text
    assert f'[project.entry-points."{cli.CONFIG_READERS}"]' in text
    assert 'yaml = "mvitv2_slowfast.config_file:read_config_file"' in text


def test_a_reader_whose_packages_are_missing(
    image: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As in an environment with the wheel alone: said in one line, with what to do."""
    entry = EntryPoint("yaml", "a_package_that_is_not_there:read", cli.CONFIG_READERS)
    monkeypatch.setattr(cli, "entry_points", lambda group: [entry] * (group == entry.group))
    assert run("inflate", image, tmp_path / "x.pyth", "--config", "Kinetics/x.yaml") == 2
    said = capsys.readouterr().err
    assert "its reader cannot be loaded: No module named 'a_package_that_is_not_there'" in said
    assert "pip install 'mvitv2[slowfast]'" in said


# Every command of pyproject.toml is there, and of the packages that torch does without none is.
TORCH_ALONE = """
import sys
for name in ("numpy", "PIL", "av", "yaml", "tqdm", "matplotlib", "safetensors", "torchvision"):
    sys.modules[name] = None
from importlib.metadata import EntryPoint
from mvitv2_core import cli
from mvitv2_tools.find_model import Options, find_model
entries = [EntryPoint("", value, cli.COMMANDS) for value in sys.argv[2:]]
cli.entry_points = lambda group: entries * (group == cli.COMMANDS)
file = sys.argv[1]
for command in (
    ["cost", "T"],
    ["inspect", file],
    ["convert", file, file + ".pth", "--to", "detectron2"],
    ["inflate", file, file + ".pyth"],
    ["diff", file, file],
):
    assert cli.main(command) == 0
assert cli.main(["predict", file, "a.jpg"]) == 2
assert cli.main(["convert", file, file + ".pkl", "--to", "detectron2"]) == 2
find_model(file, Options(device="cpu"))  # for `mvitv2 export`
cli.main(["--version"])
"""


def test_torch_alone(image: Path) -> None:
    """No command needs for its being there what another one needs for its work."""
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    values = re.findall(r'^\w+ = "(mvitv2_tools[.\w]+:\w+)"', text, re.M)
    assert len(values) == 5
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", TORCH_ALONE, str(image), *values]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    assert "a .pkl needs NumPy" in result.stderr
    assert result.stdout.splitlines()[-1].startswith("mvitv2 ")
