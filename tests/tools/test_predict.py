"""``mvitv2 predict`` with classifiers: official names, files, PySlowFast's folders, bad inputs."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fvcore.common.config import CfgNode

from mvitv2_core import MViTClassifier, MViTConfig, cli, create_model
from mvitv2_core.labels import read_labels
from mvitv2_core.model_info import OFFICIAL, ModelInfo
from mvitv2_core.transforms import ClipTransform, ImageTransform
from mvitv2_slowfast.model_info import read_info
from mvitv2_tools import find_model as find_model_module
from mvitv2_tools import predict as predict_module
from mvitv2_tools.answers import Answer, Label
from mvitv2_tools.draw import plot_labels, shortest_names
from mvitv2_tools.feed import Part
from mvitv2_tools.inputs import Input
from tests.compare import randomize
from tests.media_files import frame_number, picture, set_rotation, write_video
from tests.tools.conftest import TINY_CLIP, TINY_STILL, Predict, loading_cfg, slowfast_run
from tests.tools.official import place_official

Image = pytest.importorskip("PIL.Image", reason="pictures need Pillow: pip install Pillow")
pytest.importorskip("av", reason="videos need PyAV: pip install av")


@pytest.fixture(scope="module")
def tiny_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """$TORCH_HOME with a file of the official names and shapes where the download puts it."""
    home = tmp_path_factory.mktemp("home")
    place_official("mvitv2_tiny_in1k", home)
    return home


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of five pictures of several sizes."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index, size in enumerate([(100, 80), (64, 64), (80, 120), (300, 260), (57, 90)]):
        Image.fromarray(picture(*size, seed=index)).save(folder / f"{index}.png")
    return folder


def probabilities(model: torch.nn.Module, info: ModelInfo, path: Path) -> torch.Tensor:
    """What the model says when called by hand."""
    with torch.no_grad():
        if info.task == "image":
            return model(ImageTransform(info)(path)[None]).softmax(dim=1)[0]
        return model(ClipTransform(info)(path)).softmax(dim=1).mean(dim=0)


def check(row: dict, expected: torch.Tensor, names: list[str] | None = None) -> None:
    values, order = expected.sort(descending=True)
    got = [label["probability"] for label in row["labels"]]
    assert got == pytest.approx(values[: len(got)].tolist(), abs=2e-6)
    assert [label["index"] for label in row["labels"]] == order[: len(got)].tolist()
    if names is not None:
        assert [label["label"] for label in row["labels"]] == [names[i] for i in order[: len(got)]]


def test_official_name(
    predict: Predict, tiny_home: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name in, the answers of create_model and its transform out, whatever the batch."""
    monkeypatch.setenv("TORCH_HOME", str(tiny_home))
    model = create_model("mvitv2_tiny_in1k", weights=True)
    result = predict("mvitv2_tiny_in1k", pictures, "--json", "--batch", 2)
    assert result.code == 0 and len(result.rows) == 5
    names = read_labels("imagenet-1k")
    for row in result.rows:
        check(row, probabilities(model, model.info, Path(row["input"])), names)
    text = predict("mvitv2_tiny_in1k", pictures / "1.png", "--topk", 2, "--quiet")
    lines = text.out.splitlines()
    first = result.rows[1]["labels"][0]
    assert lines[0] == str(pictures / "1.png") and len(lines) == 3 and text.err == ""
    assert lines[1] == f"{100 * first['probability']:7.2f} %  {first['label']}"


def test_plain_checkpoint(predict: Predict, tmp_path: Path) -> None:
    """A file that says nothing of its config: what its tensors show, and the labels given."""
    model = randomize(MViTClassifier(MViTConfig.variant("T", (64, 64), num_classes=3))).eval()
    torch.save(model.state_dict(), tmp_path / "own.pth")
    (tmp_path / "names.json").write_text('["one", "two", "three"]')
    Image.fromarray(picture()).save(tmp_path / "a.png")
    arguments = (tmp_path / "own.pth", tmp_path / "a.png", "--json")
    result = predict(*arguments, "--labels", tmp_path / "names.json")
    info = replace(create_model("mvitv2_tiny", input_size=64, num_classes=3).info)
    check(result.rows[0], probabilities(model, info, tmp_path / "a.png"), ["one", "two", "three"])
    unnamed = predict(*arguments)
    assert unnamed.rows[0]["labels"][0]["label"] is None and "--labels" in unnamed.err
    assert predict(*arguments[:2]).out.splitlines()[1].split("%  ")[1].startswith("class ")
    (tmp_path / "labels.txt").write_text("a\nb\nc\n")  # beside the weights: found
    assert predict(*arguments).rows[0]["labels"][0]["label"] in "abc"
    lightning = {f"model.{name}": value for name, value in model.state_dict().items()}
    torch.save({"epoch": 1, "state_dict": lightning}, tmp_path / "own.ckpt")
    assert predict(tmp_path / "own.ckpt", *arguments[1:]).out == predict(*arguments).out
    wrong = predict(*arguments, "--labels", "coco")
    assert wrong.code == 2 and "80 labels do not fit 3 classes" in wrong.err


@pytest.mark.parametrize("size", [(64, 64), (4, 64, 64)])
def test_plain_name_with_a_file(size: tuple[int, ...], predict: Predict, tmp_path: Path) -> None:
    """Classes, size and frames are the file's: the same answers as for the file alone."""
    model = randomize(MViTClassifier(MViTConfig.variant("T", size, num_classes=3)))
    torch.save(model.state_dict(), tmp_path / "own.pth")
    Image.fromarray(picture()).save(tmp_path / "a.png")
    write_video(tmp_path / "a.mp4", frame_number(30, 80, 64))
    given = tmp_path / ("a.png" if len(size) == 2 else "a.mp4")
    result = predict("mvitv2_tiny", given, "--weights", tmp_path / "own.pth", "--json")
    assert result.code == 0, result.err
    assert "3 classes" in result.err and len(result.rows[0]["labels"]) == 3
    assert result.out == predict(tmp_path / "own.pth", given, "--json").out
    other = predict("mvitv2_small", given, "--weights", tmp_path / "own.pth")
    assert other.code == 2 and "own.pth: is no mvitv2_small: it holds MViTv2-T" in other.err


def test_pyslowfast_folder_of_clips(predict: Predict, tmp_path: Path) -> None:
    """The config is the checkpoint's own, the newest run wins, the names are the data's."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "classes.txt").write_text("a\nb\nc\nd\ne\n")
    cfg = loading_cfg(TINY_CLIP, DATA__PATH_TO_DATA_DIR=str(tmp_path / "data"))
    slowfast_run(tmp_path / "runs" / "old", cfg, seed=50)
    model = slowfast_run(tmp_path / "runs" / "new", cfg)
    for file in (tmp_path / "runs" / "old" / "checkpoints").iterdir():
        os.utime(file, (1, 1))
    video = write_video(tmp_path / "a.mp4", frame_number(60, 64, 48))
    info = read_info(cfg, "any")
    assert info.views == (2, 3) and info.resize == 32 and info.interpolation == "area"
    expected = probabilities(model, info, video)
    result = predict(tmp_path / "runs", video, "--json")
    check(result.rows[0], expected, list("abcde"))
    assert "checkpoint_epoch_00003" in result.err and str(tmp_path / "runs" / "old") in result.err
    path = tmp_path / "runs" / "new" / "checkpoints" / "checkpoint_epoch_00003.pyth"
    check(predict(path, video, "--json").rows[0], expected)
    older = path.with_name("checkpoint_epoch_00002.pyth")
    chosen = predict(tmp_path / "runs", video, "--json", "--weights", older)
    assert chosen.out == predict(older, video, "--json").out != result.out
    for model, weights, message in (
        (path, older, "does not go with a checkpoint"),
        (tmp_path / "runs" / "old", older, "must be a checkpoint of a run in"),
        (tmp_path / "runs", "none.pyth", f"must be a checkpoint of a run in {tmp_path / 'runs'}"),
    ):
        wrong = predict(model, video, "--weights", weights)
        assert wrong.code == 2 and f"--weights {weights} {message}" in wrong.err, wrong.err
    # Windows of 0.8 s: two whole ones, and the rest.
    rows = predict(path, video, "--json", "--window", 0.8).rows
    assert [row["seconds"] for row in rows] == [[0, 0.8], [0.8, 1.6], [1.6, 2.0]]
    # A stride asks for windows in a short video too, of 10 s.
    long = write_video(tmp_path / "long.mp4", frame_number(12, 64, 48), fps=1)
    rows = predict(path, long, "--json", "--stride", 4).rows
    assert [row["seconds"] for row in rows] == [[0, 10], [4, 12]]
    wrong = predict(path, video, "--window", 0, "--stride", 4)
    assert wrong.code == 2 and "--window must be above 0 beside it, got 0" in wrong.err
    wrong = predict(path, video, "--window", 0.2)
    assert wrong.code == 2 and "--window must be at least the 0.67 s" in wrong.err


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_what_the_trainer_tests_answers(decay: float, predict: Predict, tmp_path: Path) -> None:
    """The average of the weights, where the run keeps one and its test takes it."""
    cfg = loading_cfg(TINY_CLIP)
    if decay:
        cfg.MVITV2 = CfgNode({"EMA_DECAY": decay})
    model = slowfast_run(tmp_path / "run", cfg, epoch=1)
    average = randomize(MViTClassifier(model.config), seed=9).eval()
    (path,) = (tmp_path / "run" / "checkpoints").iterdir()
    content = torch.load(path, weights_only=True)
    inside = {f"module.{name}": value for name, value in average.state_dict().items()}
    torch.save({**content, "model_ema": {**inside, "n_averaged": torch.tensor(3)}}, path)
    video = write_video(tmp_path / "a.mp4", frame_number(60, 64, 48))
    chosen = average if decay else model
    expected = probabilities(chosen, read_info(cfg, "any"), video)
    check(predict(tmp_path / "run", video, "--json").rows[0], expected)


def test_every_view_counts(predict: Predict, tmp_path: Path) -> None:
    """Two clips of three are alike: the mean is over three."""
    cfg = loading_cfg(TINY_CLIP, TEST__NUM_ENSEMBLE_VIEWS=3, TEST__NUM_SPATIAL_CROPS=1)
    model = slowfast_run(tmp_path / "run", cfg)
    frames = frame_number(90, 64, 48)
    frames[:60] = frames[0]
    video = write_video(tmp_path / "a.mp4", frames, crf="0")
    expected = probabilities(model, read_info(cfg, "any"), video)
    check(predict(tmp_path / "run", video, "--json").rows[0], expected)


def test_pyslowfast_folder_of_stills(predict: Predict, pictures: Path, tmp_path: Path) -> None:
    cfg = loading_cfg(TINY_STILL, DATA__TRAIN_CROP_SIZE=32)
    model = slowfast_run(tmp_path / "run", cfg)
    info = read_info(cfg, "any")
    result = predict(tmp_path / "run", pictures, "--json", "--batch", 3)
    for row in result.rows:
        check(row, probabilities(model, info, Path(row["input"])))
    assert result.code == 0 and len(result.rows) == 5
    assert read_info(loading_cfg(TINY_STILL, AUG__ENABLE=True), "any").resize == 36


def test_official_file_by_path(predict: Predict, tiny_home: Path, pictures: Path) -> None:
    """Its settings are the published ones, whatever config its authors left in it."""
    name = "mvitv2_tiny_in1k"
    path = tiny_home / "hub" / "checkpoints" / OFFICIAL[name].file
    content = torch.load(path, weights_only=True)
    content["cfg"] = "MVIT: {DEPTH: 10}\nDATA: {MEAN: [0.0, 0.0, 0.0]}\nTEST: {}\n"
    named = path.parent.parent / path.name
    torch.save(content, named)
    result = predict(named, pictures / "0.png", "--json")
    model = create_model(name, weights=path)
    check(result.rows[0], probabilities(model, model.info, pictures / "0.png"))
    assert result.rows[0]["labels"][0]["label"] in read_labels("imagenet-1k")
    # Under another name it is a checkpoint of facebookresearch/mvit, read by its tensors.
    renamed = named.rename(named.with_name("mine.pyth"))
    assert predict(renamed, pictures / "0.png", "--json").out == result.out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"MODEL__HEAD_ACT": "none"}, "HEAD_ACT"),
        ({"TEST__DATASET": "charades"}, "TEST.DATASET must be one of kinetics, ssv2"),
        ({"TEST__NUM_SPATIAL_CROPS": 2}, "NUM_SPATIAL_CROPS must be 1 or 3"),
        ({"DETECTION__ENABLE": True}, "--boxes must name a CSV file"),
        ({"MVIT__MODE": "avg"}, "MVIT.MODE must be 'conv'"),
    ],
)
def test_configs_that_cannot_be_answered_for(
    changes: dict, message: str, predict: Predict, tmp_path: Path
) -> None:
    cfg = loading_cfg(TINY_CLIP)
    slowfast_run(tmp_path / "run", cfg, epoch=1)
    path = tmp_path / "run" / "checkpoints" / "checkpoint_epoch_00001.pyth"
    content = torch.load(path, weights_only=True)
    content["cfg"] = loading_cfg(TINY_CLIP, **changes).dump()
    torch.save(content, path)
    Image.fromarray(picture()).save(tmp_path / "a.png")
    result = predict(tmp_path / "run", tmp_path / "a.png")
    assert result.code == 2 and message in result.err and str(path) in result.err


def test_something_something_config() -> None:
    """Frames are read as BGR, and turned after normalisation."""
    changes = {"TEST__DATASET": "ssv2", "DATA__REVERSE_INPUT_CHANNEL": True}
    cfg = loading_cfg(TINY_CLIP, DATA__MEAN=[0.1, 0.2, 0.3], **changes)
    info = read_info(cfg, "any")
    assert (info.channel_order, info.mean, info.sampling) == ("RGB", (0.3, 0.2, 0.1), "segments")
    straight = read_info(loading_cfg(TINY_CLIP, TEST__DATASET="ssv2"), "any")
    assert straight.channel_order == "BGR" and straight.interpolation == "bilinear"
    frames = torch.from_numpy(frame_number(9, 40, 32))
    flipped = ClipTransform(straight)(frames.flip(-1))
    assert torch.equal(flipped, ClipTransform(replace(straight, channel_order="RGB"))(frames))


def test_unreadable_inputs(
    predict: Predict, tiny_home: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Named, the others go on, exit code 1; nothing at all: 2."""
    monkeypatch.setenv("TORCH_HOME", str(tiny_home))
    data = (pictures / "3.png").read_bytes()
    (pictures / "cut.png").write_bytes(data[: len(data) // 2])
    (pictures / "text.jpg").write_text("no picture")
    write_video(pictures / "clip.mp4", frame_number(5, 64, 48))
    result = predict("mvitv2_tiny_in1k", pictures, pictures / "none.png", "--json")
    assert result.code == 1
    by_name = {Path(row["input"]).name: row for row in result.rows}
    bad = {name for name, row in by_name.items() if "error" in row}
    assert bad == {"cut.png", "text.jpg", "clip.mp4"} and len(by_name) == 8
    assert "takes pictures" in by_name["clip.mp4"]["error"]
    assert f"{pictures}/none.png: no such file" in result.err
    for name in bad:
        assert f"mvitv2: {pictures / name}: " in result.err
    nothing = predict("mvitv2_tiny_in1k", pictures / "none.png")
    assert nothing.code == 2 and nothing.out == ""


def test_damaged_and_turned_videos(predict: Predict, tmp_path: Path) -> None:
    """A broken tail is answered for what comes before it, and said; a flag turns the picture."""
    cfg = loading_cfg(TINY_CLIP)
    model = slowfast_run(tmp_path / "run", cfg)
    videos = tmp_path / "videos"
    videos.mkdir()
    frames = frame_number(60, 64, 48)
    whole = write_video(videos / "whole.ts", frames)
    data = bytearray(whole.read_bytes())
    (videos / "cut.ts").write_bytes(data[: len(data) // 2])
    write_video(videos / "one.mp4", frames[:1])
    front = write_video(
        videos / "front.mp4",
        frame_number(60, 160, 120),
        container_options={"movflags": "+faststart"},
    )
    front.write_bytes(front.read_bytes()[: front.stat().st_size // 2])
    write_video(videos / "turned.mp4", frames)
    set_rotation(videos / "turned.mp4", 90)
    result = predict(tmp_path / "run", videos, "--json")
    info = read_info(cfg, "any")
    rows = [row for row in result.rows if "error" not in row]
    for row in rows:
        check(row, probabilities(model, info, Path(row["input"])))
    assert len(rows) == 5 and result.code == 1
    broken = {row["input"]: row["error"] for row in result.rows if "error" in row}
    assert "answered for what comes before" in broken[str(front)]
    assert set(broken) <= {str(front), str(videos / "cut.ts")}


def test_out(predict: Predict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Annotated videos, labels over time, a contact sheet; names that are alike are kept apart."""
    import av
    from matplotlib.axes import Axes
    from PIL.ImageDraw import ImageDraw

    titles, texts, text = [], [], ImageDraw.text
    monkeypatch.setattr(Axes, "set_title", lambda self, title: titles.append(title))

    def write(self: ImageDraw, place: tuple, words: str, *rest: object) -> None:
        texts.append(words)
        text(self, place, words, *rest)

    monkeypatch.setattr(ImageDraw, "text", write)

    cfg = loading_cfg(TINY_CLIP)
    slowfast_run(tmp_path / "run", cfg)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_video(tmp_path / folder / "clip.mp4", frame_number(60, 64, 48))
    out = tmp_path / "out"
    arguments = (tmp_path / "a", tmp_path / "b", "--window", 0.7, "--out", out)
    assert predict(tmp_path / "run", *arguments).code == 0
    names = {path.name for path in out.iterdir()}
    assert names == {
        *("clip.mp4", "clip_2.mp4", "clip_labels.png", "clip_2_labels.png"),
        "contact_sheet.jpg",
    }
    named = [str(Path(folder, "clip.mp4")) for folder in ("a", "b")]
    assert titles == [f"{name}: the darker, the likelier" for name in named]
    assert all(any(text.startswith(f"{name}  0:") for text in texts) for name in named)
    with av.open(str(out / "clip.mp4")) as container:
        shown = list(container.decode(video=0))
    assert len(shown) == 60 and shown[0].width == 320 and shown[0].height > 240
    for name in ("clip_labels.png", "contact_sheet.jpg"):
        assert np.array(Image.open(out / name)).std() > 5


def test_overlapping_windows_over_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A stretch under two windows is drawn once, as dark as their mean; gaps stay white."""
    from matplotlib.axes import Axes

    spans = [(0.0, 2.0), (1.0, 3.0), (2.0, 4.0), (5.0, 6.0)]
    answers = [
        Answer(Part(Input("a.mp4", "video"), span=span), [Label(0, "walk", 0.5), Label(1, "", odd)])
        for span, odd in zip(spans, [0.5, 0.25, 0.25, 0.0], strict=True)
    ]
    drawn: dict[int, list] = {0: [], 1: []}

    def barh(self: Axes, row: int, width: float, left: float, alpha: float, **rest: object) -> None:
        drawn[row].append((left, left + width, alpha))

    monkeypatch.setattr(Axes, "barh", barh)
    plot_labels(answers, tmp_path / "a.png", "a.mp4")
    edges = [(0, 1), (1, 2), (2, 3), (3, 4), (5, 6)]
    assert drawn[0] == [(*edge, 0.5) for edge in edges]
    odd = [0.5, 0.375, 0.25, 0.25, 0.0]
    assert drawn[1] == [(*edge, mean) for edge, mean in zip(edges, odd, strict=True)]


def test_shortest_names() -> None:
    paths = ["x/1/a.mov", "y/1/a.mov", "y/2/a.mov", "y/b.mov", "a.mov"]
    names = ["x/1/a.mov", "y/1/a.mov", "2/a.mov", "b.mov", "a.mov"]
    expected = {path: str(Path(name)) for path, name in zip(paths, names, strict=True)}
    assert shortest_names(paths) == expected
    assert shortest_names(paths[:1]) == {paths[0]: "a.mov"}


def test_pictures_out(predict: Predict, pictures: Path, tmp_path: Path) -> None:
    slowfast_run(tmp_path / "run", loading_cfg(TINY_STILL))
    assert predict(tmp_path / "run", pictures, "--out", tmp_path / "out").code == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["contact_sheet.jpg"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mvitv2_tiny_in1"], "did you mean mvitv2_tiny_in1k"),
        (["mvitv2_tiny"], "has no weights of its own"),
        (["none.pyth"], "none.pyth: no such file"),
        (["{tmp}"], "holds no trainer's output"),
        (["{tmp}/pictures/0.png"], "0.png: is no model by its name: MODEL comes first"),
        (["{tmp}/run", "--stride", "0"], "--stride"),
        (["{tmp}/run", "--out", "{tmp}/pictures"], "--out {tmp}/pictures must not hold inputs"),
        (["{tmp}/run", "--out", "{tmp}/pictures/0.png"], "--out {tmp}/pictures/0.png cannot be"),
    ],
)
def test_models_that_are_not_there(
    arguments: list[str], message: str, predict: Predict, pictures: Path, tmp_path: Path
) -> None:
    model, *rest = (a.format(tmp=tmp_path) for a in arguments)
    result = predict(model, pictures, *rest)
    assert result.code == 2 and result.out == ""
    assert message.format(tmp=tmp_path) in result.err


def test_windows_of_pictures(predict: Predict, pictures: Path, tmp_path: Path) -> None:
    slowfast_run(tmp_path / "run", loading_cfg(TINY_STILL))
    for argument in ("--window", "--stride"):
        result = predict(tmp_path / "run", pictures, argument, 2)
        assert result.code == 2 and "are for models of clips" in result.err


def test_interrupted(
    predict: Predict, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line instead of a trace, and the exit code that shells give."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    slowfast_run(tmp_path / "run", loading_cfg(TINY_STILL))
    monkeypatch.setattr(predict_module, "answer_all", stop)
    result = predict(tmp_path / "run", pictures, "--quiet")
    assert (result.code, result.out, result.err) == (130, "", "mvitv2: stopped\n")


def test_devices(predict: Predict, pictures: Path, tmp_path: Path) -> None:
    slowfast_run(tmp_path / "run", loading_cfg(TINY_STILL))
    for device in ("none", "cuda:99", "meta!"):
        result = predict(tmp_path / "run", pictures, "--device", device)
        assert result.code == 2 and f"--device {device} cannot be used" in result.err


def test_missing_packages(
    predict: Predict, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict_module, "what_is_missing", lambda draws: ["av", "tqdm"])
    result = predict("mvitv2_tiny_in1k", pictures)
    assert result.code == 2
    assert result.err == "mvitv2: predict needs av, tqdm: pip install 'mvitv2[predict]'\n"


def test_help_and_version(predict: Predict, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["predict", "--help"], ["--version"]):
        with pytest.raises(SystemExit) as caught:
            cli.main(arguments)
        assert caught.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    examples = [line.split("  (")[0].split(" > ")[0] for line in lines]
    examples = [line.split()[1:] for line in examples if line.startswith("  mvitv2 ")]
    assert len(examples) == 5 and lines[-1].startswith("mvitv2 ")
    for example in examples:
        assert cli._parser().parse_args(example).run is predict_module.run


def test_core_does_without_the_tools(tmp_path: Path) -> None:
    """Neither the command's module nor anything that reads media is imported by the core."""
    import subprocess

    code = (
        "import sys, mvitv2_core, mvitv2_core.transforms, mvitv2_core.cli\n"
        "found = {'mvitv2_tools', 'PIL', 'av', 'matplotlib'} & set(sys.modules)\n"
        "import json; print(json.dumps(sorted(found)))"
    )
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert json.loads(result.stdout) == [], result.stderr


def test_what_an_import_prints_is_no_answer(
    predict: Predict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As PySlowFast does, which would come before the lines of JSON."""
    slowfast_run(tmp_path / "run", loading_cfg(TINY_STILL))
    Image.fromarray(picture(40, 40)).save(tmp_path / "a.png")
    find = find_model_module._find

    def noisy(*arguments: object) -> object:
        print("Please update your PyTorchVideo")
        return find(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(find_model_module, "_find", noisy)
    result = predict(tmp_path / "run", tmp_path / "a.png", "--json")
    assert result.code == 0 and "PyTorchVideo" in result.err
    assert [json.loads(line)["input"] for line in result.out.splitlines()] == [
        str(tmp_path / "a.png")
    ]
