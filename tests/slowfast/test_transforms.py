"""Core's clips and pictures against PySlowFast's own loaders in test mode, tensor by tensor."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

from mvitv2_core.model_info import ModelInfo, official_info
from mvitv2_core.transforms import ClipTransform, ImageTransform
from mvitv2_slowfast.model_info import read_info
from tests.media_files import frame_number, picture, write_video
from tests.slowfast.launch import ROOT, needs_pyslowfast

pytestmark = needs_pyslowfast


def official_cfg(recipe: str, folder: Path, **options: Any) -> Any:
    """PySlowFast's own config file, for the data in ``folder``."""
    from slowfast.config.defaults import get_cfg

    cfg = get_cfg()
    cfg.set_new_allowed(True)  # its SSv2 recipes hold a key that its defaults lack
    cfg.merge_from_file(f"{ROOT}/configs/{recipe}.yaml")
    cfg.DATA.PATH_TO_DATA_DIR = cfg.DATA.PATH_PREFIX = str(folder)
    for key, value in options.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return cfg


def loaded(dataset: Any, video: int, views: int) -> torch.Tensor:
    """All views of one video as the loader gives them: (views, 3, T, H, W)."""
    return torch.stack([dataset[video * views + view][0][0] for view in range(views)])


@pytest.fixture(scope="module", autouse=True)
def pyslowfast() -> None:
    """Importable, with the cures that it needs."""
    from mvitv2_slowfast.plugin import connect

    connect()


KINETICS = {
    "mvitv2_small_16x4_k400": "Kinetics/MVITv2_S_16x4",
    "mvitv2_base_32x3_k400": "Kinetics/MVITv2_B_32x3",
    "mvitv2_large_40x3_k400": "Kinetics/MVITv2_L_40x3_test",
}
SOMETHING = {
    "mvitv2_small_16x4_ssv2": "SSv2/MVITv2_S_16x4",
    "mvitv2_base_32x3_ssv2": "SSv2/MVITv2_B_32x3",
    "mvitv2_large_40x3_ssv2": "SSv2/MVITv2_L_40x3",
}


@pytest.mark.parametrize(("name", "recipe"), [*KINETICS.items(), *SOMETHING.items()])
def test_infos_are_those_of_the_official_configs(name: str, recipe: str, tmp_path: Path) -> None:
    """What ``ModelInfo`` says is what PySlowFast's own file, read as a trainer's, says."""
    info = official_info(name)
    read = read_info(official_cfg(recipe, tmp_path), name)
    origin = ("labels", "source", "licence", "published", "recipe")
    assert replace(read, **{key: getattr(info, key) for key in origin}) == info
    assert info.recipe == f"PySlowFast configs/{recipe}.yaml"


# Frames, width, height, rate: long and short, wide and tall, of odd rates and odd sizes.
VIDEOS = {
    "long": (160, 340, 256, 30),
    "tall": (110, 90, 160, 25),
    "film": (90, 214, 120, Fraction(24000, 1001)),
    "ntsc": (90, 161, 123, Fraction(30000, 1001)),
    "fast": (150, 160, 120, 60),
    "short": (40, 160, 120, 30),
    "one": (1, 160, 120, 30),
}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kinetics")
    for name, (frames, width, height, rate) in VIDEOS.items():
        write_video(folder / f"{name}.mp4", frame_number(frames, width, height), rate)
    (folder / "test.csv").write_text("".join(f"{name}.mp4 0\n" for name in VIDEOS))
    return folder


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] if "large" in n else []) for n in KINETICS],
)
def test_kinetics(name: str, videos: Path) -> None:
    """Every view of every video, bit for bit, with the official configs."""
    from slowfast.datasets.kinetics import Kinetics

    info = official_info(name)
    dataset = Kinetics(official_cfg(KINETICS[name], videos), "test")
    transform = ClipTransform(info)
    chosen = VIDEOS if name.startswith("mvitv2_small") else ("long", "tall")
    for index, video in enumerate(VIDEOS):
        if video in chosen:
            ours = transform(videos / f"{video}.mp4")
            theirs = loaded(dataset, index, info.views[0] * info.views[1])
            assert torch.equal(ours, theirs), video


def test_other_sampling(videos: Path) -> None:
    """Without offset sampling, and with three crops of one clip."""
    from slowfast.datasets.kinetics import Kinetics

    options = {"DATA__USE_OFFSET_SAMPLING": False, "TEST__NUM_ENSEMBLE_VIEWS": 3}
    cfg = official_cfg(KINETICS["mvitv2_small_16x4_k400"], videos, **options)
    info = official_info("mvitv2_small_16x4_k400")
    fraction = replace(info, sampling="fraction", views=(3, 1))
    assert_equal(fraction, Kinetics(cfg, "test"), videos)
    cfg.merge_from_list(["TEST.NUM_ENSEMBLE_VIEWS", 1, "DATA.USE_OFFSET_SAMPLING", True])
    cfg.merge_from_list(["TEST.NUM_SPATIAL_CROPS", 3])
    assert_equal(replace(info, views=(1, 3), resize=224), Kinetics(cfg, "test"), videos)


def assert_equal(info: ModelInfo, dataset: Any, folder: Path) -> None:
    for index, video in enumerate(VIDEOS):
        ours = ClipTransform(info)(folder / f"{video}.mp4")
        assert torch.equal(ours, loaded(dataset, index, info.views[0] * info.views[1])), video


@pytest.mark.parametrize("size", ["small_16x4", pytest.param("large_40x3", marks=pytest.mark.slow)])
def test_something_something(size: str, tmp_path: Path) -> None:
    """From the same frames, which that loader reads as pictures: bit for bit."""
    cv2 = pytest.importorskip("cv2", reason="PySlowFast reads pictures with OpenCV")
    from slowfast.datasets.ssv2 import Ssv2

    rows = ["original_vido_id video_id frame_id path labels\n"]
    clips = {"a": frame_number(50, 320, 240), "b": frame_number(9, 240, 320)}
    for video, (name, frames) in enumerate(clips.items()):
        (tmp_path / name).mkdir()
        for number, frame in enumerate(frames):
            cv2.imwrite(str(tmp_path / name / f"{number}.png"), frame[..., ::-1])
            rows.append(f'{name} {video} {number} {name}/{number}.png ""\n')
    (tmp_path / "val.csv").write_text("".join(rows))
    truth = [{"id": name, "template": "Moving [something]"} for name in clips]
    (tmp_path / "something-something-v2-validation.json").write_text(json.dumps(truth))
    labels = json.dumps({"Moving something": "0"})
    (tmp_path / "something-something-v2-labels.json").write_text(labels)
    recipe = {"small_16x4": "MVITv2_S_16x4", "large_40x3": "MVITv2_L_40x3"}[size]
    dataset = Ssv2(official_cfg(f"SSv2/{recipe}", tmp_path), "test")
    transform = ClipTransform(official_info(f"mvitv2_{size}_ssv2"))
    for index, frames in enumerate(clips.values()):
        assert torch.equal(transform(frames, fps=30), loaded(dataset, index, 3))


@pytest.mark.parametrize("augmented", [True, False])
def test_pictures(augmented: bool, tmp_path: Path) -> None:
    """Its ImageNet loader, with AUG.ENABLE as the recipes have it and without."""
    from PIL import Image
    from slowfast.datasets.imagenet import Imagenet

    from mvitv2_core.model_info import image_info

    for index, size in enumerate([(100, 80), (75, 130), (64, 64)]):
        folder = tmp_path / "val" / f"n{index:08d}"
        folder.mkdir(parents=True)
        Image.fromarray(picture(*size)).save(folder / "0.png")
    options = {"DATA__TEST_CROP_SIZE": 32, "DATA__TRAIN_CROP_SIZE": 36, "AUG__ENABLE": augmented}
    cfg = official_cfg("Kinetics/MVITv2_S_16x4", tmp_path, **options)
    dataset = Imagenet(cfg, "val")
    info = replace(
        image_info("any", 3),
        mean=(0.45,) * 3,
        std=(0.225,) * 3,
        input_size=(32, 32),
        resize=36,
        interpolation="bicubic" if augmented else "bilinear",
    )
    for index in range(3):
        ours = ImageTransform(info)(tmp_path / "val" / f"n{index:08d}" / "0.png")
        theirs = dataset[index][0]
        theirs = theirs[0] if isinstance(theirs, list) else theirs
        assert torch.equal(ours, theirs.reshape(ours.shape)), index
