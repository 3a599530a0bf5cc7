"""``mvitv2 data ava`` and ``images``: faults found and named, layouts as PySlowFast reads them."""

from __future__ import annotations

import csv
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from mvitv2_tools.data.ava import WRITTEN as AVA_WRITTEN
from mvitv2_tools.data.ava_boxes import KINDS as AVA_KINDS
from mvitv2_tools.data.images import KINDS as IMAGE_KINDS
from mvitv2_tools.data.images import WRITTEN as IMAGES_WRITTEN
from mvitv2_tools.data.labelled import KINDS as LABELLED_KINDS
from tests.media_files import picture, write_video
from tests.tools.labelled_folders import clip

needs_pyslowfast = pytest.mark.skipif(
    not os.environ.get("PYSLOWFAST_ROOT"),
    reason="needs PySlowFast: set PYSLOWFAST_ROOT to a checkout",
)
HEADER = "video,second,x1,y1,x2,y2,label\n"


@pytest.fixture(scope="session")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three videos of two seconds, and a csv of four boxes in each."""
    root = tmp_path_factory.mktemp("ava")
    (root / "videos").mkdir()
    text = HEADER
    for number in range(3):
        frames = np.concatenate([clip(10 * number, 30), clip(10 * number + 1, 30)])
        write_video(root / f"videos/m {number}.mp4", frames)
        for second in range(2):
            text += f"m {number},{second},0.1,0.1,0.6,0.8,walk\n"
            text += f"m {number}.mp4,{second},0.5,0.2,0.9,0.9,fall down\n"
    (root / "boxes.csv").write_text(text.replace(".mp4,", ","))
    return root


@pytest.fixture
def ava(three: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(three, tmp_path / "raw"))


def run_ava(data, raw: Path, out: Path, *options: object) -> tuple[int, str]:
    arguments = (raw / "boxes.csv", raw / "videos", "--out", out, "--model", "toy", "--batch", 2)
    return data("ava", *arguments, *options)


def test_ava_layout(data, ava: Path, tmp_path: Path) -> None:
    """Second 0 is AVA's 902, and frame (902 - 900) x 30 of the list is the video's first."""
    from PIL import Image

    out = tmp_path / "out"
    code, said = run_ava(data, ava, out)
    assert code == 0 and "nothing wrong was found" in said, said
    assert {path.name for path in out.iterdir()} == set(AVA_WRITTEN)
    sides = {}
    for split in ("train", "val"):
        rows = list(csv.reader((out / f"annotations/ava_{split}_v2.2.csv").open()))
        assert {row[1] for row in rows} == {"0902", "0903"} and {row[6] for row in rows} == {
            "1",
            "2",
        }
        listed = (out / f"frame_lists/{split}.csv").read_text().splitlines()[1:]
        names = {row[0] for row in rows}
        for name in names:
            mine = [line.split()[3] for line in listed if line.split()[0] == name]
            assert len(mine) == 120 and all((out / "frames" / path).is_file() for path in mine)
            assert mine[60] == f"{name}/{name}_000000.jpg"
            assert mine[90] == f"{name}/{name}_000030.jpg"
            sides[name] = split
    assert len(sides) == 3 and list(sides.values()).count("val") == 1
    # The scene changes at second 1: the frame listed for it is the new scene's first.
    with Image.open(out / "frames/m_0/m_0_000030.jpg") as image:
        assert np.abs(np.asarray(image, int) - clip(1, 30)[0]).mean() < 6
    with Image.open(out / "frames/m_0/m_0_000029.jpg") as image:
        assert np.abs(np.asarray(image, int) - clip(0, 30)[29]).mean() < 6
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.jpg")}
    assert run_ava(data, ava, out)[0] == 0
    assert before == {p: p.stat().st_mtime_ns for p in out.rglob("*.jpg")}


def test_ava_frames_are_those_of_the_video(data, ava: Path, tmp_path: Path) -> None:
    """A video that changed is written anew, and so are frames of nobody knows what."""
    from PIL import Image

    out = tmp_path / "out"
    assert run_ava(data, ava, out)[0] == 0
    write_video(ava / "videos/m 0.mp4", clip(77, 75))
    (out / "frames/m_1/source.txt").unlink()
    kept = {p: p.stat().st_mtime_ns for p in (out / "frames").rglob("*.jpg")}
    code, said = run_ava(data, ava, out)
    assert code == 0, said
    assert len(list((out / "frames/m_0").glob("*.jpg"))) == 75
    with Image.open(out / "frames/m_0/m_0_000000.jpg") as image:
        assert np.abs(np.asarray(image, int) - clip(77, 75)[0]).mean() < 6
    same = {p.parent.name for p, time in kept.items() if p.stat().st_mtime_ns == time}
    assert same == {"m_2"} and not list((out / "frames").glob(".*"))


def test_ava_check_only(data, ava: Path, tmp_path: Path) -> None:
    """Nothing but findings.txt, although every video is decoded."""
    (ava / "videos/m 1.mp4").write_bytes(b"no video")
    with (ava / "boxes.csv").open("a") as file:
        file.write("m 0,7,0.1,0.1,0.6,0.8,walk\n")
    code, said = run_ava(data, ava, tmp_path / "out", "--check-only")
    assert code == 1 and "unreadable video: 1" in said and "second 7 of 2.0" in said
    assert [path.name for path in (tmp_path / "out").rglob("*")] == ["findings.txt"]


@pytest.mark.parametrize("gpus", [0, 2])
def test_ava_config(data, ava: Path, tmp_path: Path, gpus: int) -> None:
    """One clip on each GPU in the test: PySlowFast demands it, and frames differ in width."""
    import yaml

    assert run_ava(data, ava, tmp_path / "out", "--gpus", gpus)[0] == 0
    written = yaml.safe_load((tmp_path / "out/ava.yaml").read_text())
    assert written["TRAIN"]["BATCH_SIZE"] == 2 and written["TEST"]["BATCH_SIZE"] == max(1, gpus)


@pytest.mark.parametrize("task", ["ava", "images", "video"])
def test_gpus_are_looked_at_first(data, tmp_path: Path, task: str) -> None:
    """Before any file is opened, or written: there is none."""
    given = (tmp_path, *([tmp_path] * (task == "ava")), "--out", tmp_path / "out", "--model", "toy")
    for options, message in (
        (("--batch", 3, "--gpus", 2), "--batch must be a multiple of the 2 GPUs, got 3"),
        (("--gpus", -1), "--gpus must be 0 or more, got -1"),
    ):
        code, said = data(task, *given, *options)
        assert code == 2 and message in said and not (tmp_path / "out").exists(), said
    code, said = data(task, *given, "--batch", 3, "--gpus", 2, "--check-only")
    assert "--batch" not in said


AVA_FAULTS = [
    ("m 0,x,0.1,0.1,0.6,0.8,walk", "bad row", "row 14"),
    ("m 0,1,0.1,0.1,0.6,0.8,", "bad row", "row 14"),
    ("m 0,nan,0.1,0.1,0.6,0.8,walk", "bad row", "row 14"),
    ("m 0,1,10,10,60,80,walk", "box in pixels", "(10.0, 10.0, 60.0, 80.0)"),
    ("m 0,1,0.6,0.1,0.1,0.8,walk", "bad box", "(0.6, 0.1"),
    ("m 0,1,-0.01,0.1,0.0,0.8,walk", "bad box", "(-0.01, 0.1"),
    ("m 0,0.5,0.1,0.1,0.6,0.8,walk", "second out of range", "0.5"),
    ("m 0,999,0.1,0.1,0.6,0.8,walk", "second out of range", "999"),
    ("m 0,7,0.1,0.1,0.6,0.8,walk", "box after the end", "second 7 of 2.0"),
    ("gone,1,0.1,0.1,0.6,0.8,walk", "missing file", "gone in"),
    ("m 0,1,0.1,0.1,0.6,0.8,walk", "duplicate row", "second 1, walk"),
    ("m 0,1,0.1,0.1,0.6,0.8,swim", "class not in", "'swim'"),
]


@pytest.mark.parametrize(("row", "kind", "text"), AVA_FAULTS, ids=[f[1] for f in AVA_FAULTS])
def test_ava_fault_is_named(
    data, ava: Path, tmp_path: Path, row: str, kind: str, text: str, tally
) -> None:
    with (ava / "boxes.csv").open("a") as file:
        file.write(f"{row}\n")
    run_ava(data, ava, tmp_path / "out")
    written = (tmp_path / "out/findings.txt").read_text()
    assert f"  {kind}" in written and text in written, written
    tally("faults of AVA boxes found and named")


def test_ava_files_and_lists(data, ava: Path, tmp_path: Path) -> None:
    """What is wrong with files, with a second list, and with no list at all."""
    (ava / "videos/m 1.mp4").write_bytes(b"no video")
    write_video(ava / "videos/extra.mp4", clip(5))
    write_video(ava / "videos/m_0.mp4", clip(6, 40))
    (ava / "val.csv").write_text(
        f"{HEADER}m 0,0,0.1,0.1,0.6,0.8,walk\nm_0,0,0.1,0.1,0.6,0.8,walk\n"
    )
    (ava / "names.txt").write_text("walk\nrun\n")
    options = ("--val-boxes", ava / "val.csv", "--classes", ava / "names.txt")
    code, said = run_ava(data, ava, tmp_path / "out", *options)
    assert code == 1
    for kind in ("unreadable video: 1", "video without boxes: 1", "video on both sides: 1",
                 "unknown label: 6", "two videos of one name: 2", "class not in train: 1",
                 "class not in val: 1"):  # fmt: skip
        assert f"  {kind}" in said, said
    shutil.copy(ava / "names.txt", ava / "classes.txt")
    code, said = run_ava(data, ava, ava, "--classes", ava / "classes.txt")
    assert code == 2 and "would be written over" in said and not (ava / "frames").exists()
    rows = (f"m 0,1,0.1,0.1,0.6,0.8,action {number}\n" for number in range(81))
    (ava / "boxes.csv").write_text(HEADER + "".join(rows))
    code, said = run_ava(data, ava, tmp_path / "many")
    assert code == 1 and "  too many actions: 1" in said and "there are 81" in said, said
    (ava / "boxes.csv").write_text(HEADER)
    assert "no data: 1" in run_ava(data, ava, tmp_path / "none")[1]
    (ava / "boxes.csv").write_text("video,second\n")
    code, said = run_ava(data, ava, tmp_path / "none")
    assert code == 2 and "must name x1, y1, x2, y2, label" in said


def test_ava_splits(data, ava: Path, tmp_path: Path) -> None:
    """A column of the boxes; a row of a split that is none is not drawn into another."""
    first, *others = (ava / "boxes.csv").read_text().splitlines()
    splits = {"m 0": "train", "m 1": "Validation", "m 2": "testing"}
    text = [f"{first},split", *(f"{row},{splits[row[:3]]}" for row in others)]
    (ava / "boxes.csv").write_text("\n".join(text))
    code, said = run_ava(data, ava, tmp_path / "out")
    assert code == 1 and "unknown split: 4" in said and "'testing' is not one of train," in said
    assert "train: 1 videos, 4 boxes\nval: 1 videos, 4 boxes" in said


def test_every_ava_kind_is_there() -> None:
    assert {kind for _, kind, _ in AVA_FAULTS} - {"class not in"} <= set(AVA_KINDS)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """``CLASS/NUMBER.png``: ten of two classes."""
    from PIL import Image

    root = tmp_path / "flowers"
    for label, name in enumerate(("rose", "tulip")):
        (root / name).mkdir(parents=True)
        for index in range(10):
            pixels = picture(70, 66, seed=100 * label + index)
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    return root


def test_images_layout(data, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("images", pictures, "--out", out, "--model", "toy", "--batch", 4)
    for _ in range(2):  # again: links are replaced
        code, said = data(*arguments)
        assert code == 0 and "nothing wrong was found" in said, said
    assert {path.name for path in out.iterdir()} == set(IMAGES_WRITTEN)
    for split, count in (("train", 8), ("val", 2), ("test", 2)):
        assert sorted(p.name for p in (out / split).iterdir()) == ["n00000001", "n00000002"]
        links = sorted((out / split).rglob("*.png"))
        assert len(links) == 2 * count and all(link.is_symlink() for link in links)
        for link in links:
            name = {"n00000001": "rose", "n00000002": "tulip"}[link.parent.name]
            assert link.resolve().parent == pictures / name
    assert (out / "classes.txt").read_text().split("\n")[:3] == ["rose", "tulip", "unused 2"]
    (out / "train/n00000001/mine.png").write_bytes(b"x")
    code, said = data(*arguments)
    assert code == 2 and "holds files that are not links" in said
    assert (out / "train/n00000001/mine.png").exists()


@pytest.mark.parametrize("by_csv", [False, True])
def test_links_that_are_read_are_not_removed(
    data, pictures: Path, tmp_path: Path, by_csv: bool
) -> None:
    """Folders of links look like those of an earlier run."""
    out = tmp_path / "data"
    for split in ("train", "val"):
        for file in pictures.rglob("*.png"):
            link = out / split / file.relative_to(pictures)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file)
    sources = [out / "train", out / "val"]
    if by_csv:
        paths = [link.relative_to(out) for link in out.rglob("*.png")]
        (out / "list.csv").write_text("".join(f"{p},{p.parent.name}\n" for p in paths))
        sources = [out / "list.csv"]
    before = sorted(out.rglob("*"))
    code, said = data("images", *sources, "--out", out, "--model", "toy", "--batch", 1, "--force")
    assert code == 2 and "would be written over" in said and sorted(out.rglob("*")) == before


def test_image_faults_are_named(data, pictures: Path, tmp_path: Path) -> None:
    from PIL import Image

    (pictures / "rose/0.png").write_bytes(b"no picture")
    shutil.copy(pictures / "rose/1.png", pictures / "tulip/other.png")
    Image.fromarray(picture(40, 30)).save(pictures / "rose/2.png")
    deep = np.arange(70 * 66, dtype=np.uint16).reshape(66, 70)
    Image.fromarray(deep).save(pictures / "rose/4.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture(70, 66, seed=7)).save(pictures / "rose/3.png", exif=exif)
    code, said = data("images", pictures, "--out", tmp_path / "out", "--model", "toy")
    assert code == 1
    for kind in set(IMAGE_KINDS) - set(LABELLED_KINDS):
        assert f"  {kind}: 1" in said, said


@pytest.mark.slow
@needs_pyslowfast
def test_pyslowfast_trains_ava(data, run, ava: Path, tmp_path: Path) -> None:
    """Its unmodified run_net.py trains and measures mean AP on the boxes of a csv."""
    assert run_ava(data, ava, tmp_path / "out", "--epochs", 1)[0] == 0
    said = run("-m", "mvitv2_slowfast.run_net", "--cfg", tmp_path / "out/ava.yaml")
    assert '"mode": "test"' in said and '"map"' in said


@pytest.mark.slow
@needs_pyslowfast
def test_pyslowfast_trains_images(data, run, pictures: Path, tmp_path: Path) -> None:
    """Its unmodified run_net.py trains; predict names the classes."""
    out = tmp_path / "out"
    arguments = ("images", pictures, "--out", out, "--model", "toy", "--batch", 4, "--epochs", 1)
    assert data(*arguments)[0] == 0
    said = run("-m", "mvitv2_slowfast.run_net", "--cfg", out / "images.yaml")
    assert '"_type": "val_epoch"' in said
    said = run("-m", "mvitv2_core.cli", "predict", out / "run", pictures / "rose/1.png")
    assert "rose" in said and "tulip" in said
    weights = next((out / "run/checkpoints").glob("*.pyth"))
    again = tmp_path / "again"
    arguments = (*arguments[:3], again, *arguments[4:], "--weights", weights)
    assert data(*arguments)[0] == 0
    said = run("-m", "mvitv2_slowfast.run_net", "--cfg", again / "images.yaml",
               "--opts", "MODEL.NUM_CLASSES", "8")  # fmt: skip
    assert "MVITV2.IMAGE_CHECKPOINT" in said and '"_type": "val_epoch"' in said
