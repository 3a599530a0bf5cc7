"""``mvitv2 data video``: each fault is found and named, lists and splits are PySlowFast's."""

from __future__ import annotations

import os
import random
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from mvitv2_tools.data.labelled import Item, group_of
from mvitv2_tools.data.splits import draw_split
from mvitv2_tools.data.video import WRITTEN
from mvitv2_tools.data.video_check import KINDS
from tests.tools.labelled_folders import CLASSES, FIRST, SPOILS, make_videos


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("av", reason="videos need PyAV: pip install av")
    return make_videos(tmp_path_factory.mktemp("videos") / "clips")


@pytest.fixture
def clips(made: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(made, tmp_path / "clips"))


def rows(file: Path, separator: str = " ") -> list[list[str]]:
    return [line.rsplit(separator, 1) for line in file.read_text().splitlines()]


def test_nothing_wrong(data, clips: Path, tmp_path: Path) -> None:
    """Lists as PySlowFast reads them; groups on one side; every class on both."""
    out = tmp_path / "out"
    code, said = data(
        "video", clips, "--out", out, "--model", "toy", "--batch", 4, "--device", "cpu"
    )
    assert code == 0 and "nothing wrong was found" in said, said
    assert {path.name for path in out.iterdir()} == set(WRITTEN)
    sides = {}
    for split, count in (("train", 8), ("val", 4)):
        listed = rows(out / f"{split}.csv")
        assert Counter(label for _, label in listed) == {"0": count // 2, "1": count // 2}
        for path, label in listed:
            assert (clips / path).is_file() and path.startswith(CLASSES[int(label)])
            group = re.sub(r"_c\d+\.mp4", "", path)
            assert sides.setdefault(group, split) == split
    assert (out / "test.csv").read_text() == (out / "val.csv").read_text()
    # PySlowFast measures top-5: three outputs are filled up.
    assert (out / "classes.txt").read_text() == "jump\nrun\nunused 2\nunused 3\nunused 4\n"


@pytest.mark.parametrize(
    ("spoil", "kind", "text"), [row[1:] for row in SPOILS], ids=[row[0] for row in SPOILS]
)
def test_fault_is_named(
    data, clips: Path, tmp_path: Path, spoil: Callable, kind: str, text: str, tally
) -> None:
    spoil(clips)
    out = tmp_path / "out"
    code, said = data("video", clips, "--out", out, "--model", "toy", "--batch", 2)
    written = (out / "findings.txt").read_text()
    assert f"  {kind}: " in written, written
    place = written.split(f"  {kind}: ")[1].split("\nERROR")[0].split("\nWARNING")[0]
    assert text in place, place
    assert (out / "video.yaml").exists() == (code == 0)
    if KINDS[kind].level == "error":
        assert code == 1 and "no config is written" in said
    tally("faults of labelled videos found and named")


def csv_of(folder: Path, text: str, name: str = "list.csv") -> Path:
    (folder / name).write_text(text)
    return folder / name


LIST = f"{FIRST} 0\njump/v_jump_g01_c00.mp4 0\nrun/v_run_g00_c00.mp4 1\nrun/v_run_g01_c00.mp4 1\n"
LISTS = [
    (LIST + "run/gone.mp4 1\n", "missing file", "row 5, run/gone.mp4: "),
    (LIST + "run/v_run_g02_c00.mp4\n", "row without a label", "row 5"),
    (LIST + f"{FIRST} 1\n", "one file, two labels", f"row 1, {FIRST}, '1' in list.csv, row 5"),
    (LIST + f"{FIRST} 0\n", "file listed twice", f"row 1, {FIRST} and list.csv, row 5"),
    ("path,label,split\n" + LIST.replace(" ", ",").replace("\n", ",train\n")
     + f"{FIRST},0,val\n", "train and val overlap", "the same file is in train"),
    ("path,label,split\n" + LIST.replace(" ", ",").replace("\n", ",train\n")
     + "jump/v_jump_g00_c01.mp4,0,val\n", "group on both sides", "'v_jump_g00' is in train"),
    ("path,label,split\n" + LIST.replace(" ", ",").replace("\n", ",training\n"),
     "unknown split", "'training' is not one of train, val, valid, validation, test"),
    (LIST.replace(" 1\n", " 2\n"), "class not in train", "'1': 0 groups"),
    (LIST.replace(" 1\n", " Run\n").replace(" 0\n", " run\n"), "classes alike", "'run': and 'Run'"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "kind", "part"), LISTS, ids=[row[1] for row in LISTS])
def test_fault_of_a_list_is_named(
    data, clips: Path, tmp_path: Path, text: str, kind: str, part: str, tally
) -> None:
    arguments = (csv_of(clips, text), "--out", tmp_path / "out", "--model", "toy", "--batch", 2)
    data("video", *arguments)
    written = (tmp_path / "out/findings.txt").read_text()
    assert f"  {kind}: " in written and part in written, written
    tally("faults of labelled videos found and named")


def test_every_kind_has_a_fault() -> None:
    tried = {row[2] for row in SPOILS} | {row[1] for row in LISTS}
    # Each of these has a test below; a file whose frames change size cannot be written with PyAV.
    others = {"no data", "unknown label", "path that a list cannot hold", "size changes"}
    assert tried | others == set(KINDS)


def test_no_data_unknown_labels_and_paths(data, clips: Path, tmp_path: Path) -> None:
    (tmp_path / "none/jump").mkdir(parents=True)
    code, said = data("video", tmp_path / "none", "--out", tmp_path / "a")
    assert code == 1 and "no data: 1" in said
    (clips / "names.txt").write_text("jump\n")
    options = ("--classes", clips / "names.txt", "--out", tmp_path / "b")
    code, said = data("video", csv_of(clips, LIST.replace(" 1", " swim")), *options)
    assert code == 1 and "unknown label: 2" in said and "'swim' is not one of the 1" in said
    shutil.copy(clips / FIRST, clips / "jump/with space.mp4")
    code, said = data("video", clips, "--out", tmp_path / "c", "--model", "toy", "--batch", 2)
    assert "path that a list" not in said
    assert any(",0" in line for line in (tmp_path / "c/train.csv").read_text().splitlines())
    assert 'PATH_LABEL_SEPARATOR: ","' in (tmp_path / "c/video.yaml").read_text()
    shutil.copy(clips / FIRST, clips / "jump/with, both.mp4")
    code, said = data("video", clips, "--out", tmp_path / "d", "--model", "toy", "--batch", 2)
    assert code == 1 and "path that a list cannot hold: 1" in said


def test_csv_with_a_header_names_and_its_own_split(data, clips: Path, tmp_path: Path) -> None:
    text = "video,label,split\n"
    text += "jump/v_jump_g00_c00.mp4,jump,train\nrun/v_run_g00_c00.mp4,run,train\n"
    text += "jump/v_jump_g01_c00.mp4,jump,val\nrun/v_run_g01_c00.mp4,run,val\n"
    arguments = (csv_of(clips, text), "--out", tmp_path / "out", "--model", "toy", "--batch", 2)
    assert data("video", *arguments)[0] == 0
    prefix = re.search(r'PATH_PREFIX: "(.*)"', (tmp_path / "out/video.yaml").read_text())
    assert prefix is not None and Path(prefix[1]) == clips
    assert rows(tmp_path / "out/val.csv") == [
        ["jump/v_jump_g01_c00.mp4", "0"],
        ["run/v_run_g01_c00.mp4", "1"],
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "is empty"), ("a,b,c\nd,e,f\n", r"has 3 columns: its first row must name them")],
)
def test_lists_that_cannot_be_read(data, tmp_path: Path, text: str, message: str) -> None:
    code, said = data("video", csv_of(tmp_path, text), "--out", tmp_path / "out")
    assert code == 2 and re.search(message, said)


def test_wrong_options(data, clips: Path, tmp_path: Path) -> None:
    for options, message in (
        (["--share", 1.5], "--share must be above 0 and below 1"),
        (["--group", "("], "is no regular expression"),
        (["--batch", 99], "--batch must be at most the 8"),
    ):
        code, said = data("video", clips, "--out", tmp_path / "out", "--model", "toy", *options)
        assert code == 2 and message in said, said
    code, said = data("video", clips, "--out", clips / "out")
    assert code == 2 and "must not lie in" in said
    code, said = data("video", tmp_path / "nowhere", "--out", tmp_path / "out")
    assert code == 2 and "no such folder or file" in said


def test_an_old_training_is_not_taken_for_a_new_one(data, clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "run/checkpoints").mkdir(parents=True)
    (out / "run/checkpoints/checkpoint_epoch_00001.pyth").touch()
    arguments = ("video", clips, "--out", out, "--model", "toy", "--batch", 4, "--device", "cpu")
    code, said = data(*arguments)
    assert code == 2 and "holds a training" in said and not (out / "video.yaml").exists()
    assert data(*arguments, "--check-only")[0] == 0
    assert data(*arguments, "--force")[0] == 0


@pytest.mark.parametrize("read", ["train.csv", "test.csv", "classes.txt"])
def test_nothing_that_is_read_is_written_over(data, clips: Path, tmp_path: Path, read: str) -> None:
    """Neither with --force, and nothing else is written; checking alone is allowed."""
    out = tmp_path / "out"
    out.mkdir()
    train, val = csv_of(clips, LIST), csv_of(clips, LIST, "other.csv")
    arguments = {
        "train.csv": (out / read, "--root", clips),
        "test.csv": (train, out / read, "--root", clips),
        "classes.txt": (train, val, "--classes", out / read),
    }[read]
    text = "a\nb\n" if read == "classes.txt" else LIST
    (out / read).write_text(text)
    shared = ("--out", out, "--model", "toy", "--batch", 1, "--device", "cpu")
    code, said = data("video", *arguments, *shared, "--force")
    assert code == 2 and f"{out / read} would be written over" in said, said
    assert [path.name for path in out.iterdir()] == [read]
    data("video", *arguments, *shared, "--check-only")
    assert sorted(path.name for path in out.iterdir()) == sorted(["findings.txt", read])
    assert (out / read).read_text() == text


def test_folders_that_look_like_splits(data, clips: Path, tmp_path: Path) -> None:
    """train and test are no classes; train and car are."""
    arguments = ("--out", tmp_path / "out", "--model", "toy", "--batch", 1, "--device", "cpu")
    root = tmp_path / "root"
    shutil.copytree(clips, root / "train")
    shutil.copytree(clips, root / "test")
    code, said = data("video", root, *arguments)
    assert code == 2 and "give the folders of training and of validation" in said
    (root / "test").rename(root / "val")
    for old, new in (("train", "training"), ("val", "dev")):
        (root / old).rename(root / new)
        code, said = data("video", root, *arguments)
        assert code == 2 and f"{new}" in said and "must be called train and val" in said, said
        (root / new).rename(root / old)
    (root / "annotations").mkdir()
    code, said = data("video", root, *arguments, "--check-only")
    assert "2 classes" in said and "train: 12 videos" in said, said
    vehicles = tmp_path / "vehicles"
    vehicles.mkdir()
    for name, old in zip(("train", "car"), CLASSES, strict=True):
        shutil.copytree(clips / old, vehicles / name)
    code, said = data("video", vehicles, *arguments)
    assert code == 0, said
    assert (tmp_path / "out/classes.txt").read_text().startswith("car\ntrain\n")


def test_weights_of_an_image_model_are_inflated(data, clips: Path, tmp_path: Path) -> None:
    """A file's tensors say what it is; image weights bring their colours."""
    import torch
    import yaml

    from mvitv2_core import create_model

    arguments = ("video", clips, "--batch", 4, "--device", "cpu")
    for name, frames in (("image", None), ("clip", 16)):
        file, out = tmp_path / f"{name}.pyth", tmp_path / name
        model = create_model("mvitv2_small", num_classes=3, frames=frames)
        torch.save({"model_state": model.state_dict()}, file)
        assert data(*arguments, "--out", out, "--weights", file)[0] == 0
        written = yaml.safe_load((out / "video.yaml").read_text())
        if frames:
            assert written["TRAIN"]["CHECKPOINT_FILE_PATH"] == str(file)
            assert "MEAN" not in written["DATA"] and not written["MVITV2"]["IMAGE_CHECKPOINT"]
        else:
            assert written["MVITV2"]["IMAGE_CHECKPOINT"] == str(file)
            assert written["DATA"]["MEAN"] == [0.485, 0.456, 0.406]


@pytest.mark.parametrize(
    ("place", "inside", "group"),
    [
        ("Run/v_Run_g07_c03.avi", "v_Run_g07_c03.avi", "v_Run_g07"),
        ("jump/match_clip3.mp4", "match_clip3.mp4", "match"),
        ("jump/match-Scene-001.mp4", "match-Scene-001.mp4", "match"),
        ("jump/dQw4w9WgXcQ_000012_000022.mp4", "dQw4w9WgXcQ_000012_000022.mp4", "dQw4w9WgXcQ"),
        ("jump/P01/3.mp4", "P01/3.mp4", "P01"),
        ("jump/0001.mp4", "0001.mp4", "jump/0001.mp4"),
        ("jump/cat_0001.mp4", "cat_0001.mp4", "jump/cat_0001.mp4"),
    ],
)
def test_groups_by_name(place: str, inside: str, group: str) -> None:
    assert group_of(Path(place), Path(inside), None) == group
    assert group_of(Path("jump/d3_x.mp4"), Path("d3_x.mp4"), re.compile(r"(d\d)_")) == "d3"


def test_splits_keep_groups_and_classes(tally) -> None:
    """Drawn data: groups whole, each class on both sides where it can be, shares about right."""
    rng = random.Random(0)
    for case in range(200):
        classes = [f"c{k}" for k in range(rng.randint(1, 8))]
        items = []
        for group in range(rng.randint(1, 60)):
            held = rng.sample(classes, rng.choice([1, 1, 1, min(2, len(classes))]))
            for number in range(rng.randint(1, 6)):
                name = f"{group}/{number}"
                items.append(Item(Path(name), rng.choice(held), f"g{group}", "", name))
        split = draw_split(items, 0.2, case)
        sides: dict[str, set[str]] = {}
        for item in split:
            sides.setdefault(item.group, set()).add(item.split)
        assert all(len(side) == 1 for side in sides.values())
        for name in classes:
            mine = [item for item in split if item.label == name]
            assert not mine or any(item.split == "train" for item in mine)
        shuffled = rng.sample(items, len(items))
        again = {item.path: item.split for item in draw_split(shuffled, 0.2, case)}
        assert all(again[item.path] == item.split for item in split)
        alone = [n for n in classes if len({i.group for i in items if i.label == n}) == 1]
        single = all(len({i.label for i in items if i.group == g}) == 1 for g in sides)
        if single:  # no group of several classes: every class that can be is on both sides
            for name in {item.label for item in items} - set(alone):
                assert {i.split for i in split if i.label == name} == {"train", "val"}
        tally("splits drawn by groups")


@pytest.mark.slow
@pytest.mark.skipif(
    not os.environ.get("PYSLOWFAST_ROOT"),
    reason="needs PySlowFast: set PYSLOWFAST_ROOT to a checkout",
)
def test_pyslowfast_trains_it_from_weights_of_other_classes(
    data, run, clips: Path, tmp_path: Path
) -> None:
    """Its unmodified run_net.py fine-tunes, tests and resumes; predict finds the labels."""
    import torch

    first, second = tmp_path / "first", tmp_path / "second"
    options = ("--model", "toy", "--batch", 4, "--epochs", 1)
    assert data("video", clips, "--out", first, *options)[0] == 0
    said = run("-m", "mvitv2_slowfast.run_net", "--cfg", first / "video.yaml",
               "--opts", "MODEL.NUM_CLASSES", "8")  # fmt: skip
    assert '"split": "test_final"' in said
    weights = next((first / "run/checkpoints").glob("*.pyth"))
    assert data("video", clips, "--out", second, *options, "--weights", weights)[0] == 0
    said = run("-m", "mvitv2_slowfast.run_net", "--cfg", second / "video.yaml",
               "--opts", "SOLVER.BASE_LR", "1e-12", "SOLVER.WARMUP_START_LR", "1e-13",
               "SOLVER.COSINE_END_LR", "1e-13")  # fmt: skip
    assert "Network weights head.projection.weight not loaded" in said
    before, after = (
        torch.load(f, weights_only=True)["model_state"]
        for f in (weights, next((second / "run/checkpoints").glob("*.pyth")))
    )
    same = [name for name in before if not name.startswith("head.")]
    assert all((before[name] - after[name]).abs().max() < 1e-9 for name in same)
    assert after["head.projection.weight"].shape[0] == 5
    said = run("-m", "mvitv2_core.cli", "predict", second / "run", clips / FIRST)
    assert "jump" in said and "run" in said
