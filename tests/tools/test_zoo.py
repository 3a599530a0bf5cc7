"""Every official name through ``create_model``, its transform and ``mvitv2 predict``.

The files have the official names and shapes, random values, and lie where the download would put
them. Pictures and clips are small, the models whole: H takes 8 GiB of memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mvitv2_core import create_model, create_transform
from mvitv2_core.labels import read_labels
from mvitv2_core.model_info import OFFICIAL
from mvitv2_core.models import PLAIN, list_models
from tests.media_files import picture, write_video
from tests.tools.conftest import Predict
from tests.tools.official import detector_shapes, place_official

ROOT = Path(__file__).parents[2]
Image = pytest.importorskip("PIL.Image", reason="pictures need Pillow: pip install Pillow")
pytest.importorskip("av", reason="videos need PyAV: pip install av")
DETECTORS = [name for name, row in OFFICIAL.items() if row.config is None]
CLASSIFIERS = [name for name in OFFICIAL if name not in DETECTORS]
CLASSES = {"COCO": 80, "LVIS": 1203}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """``$TORCH_HOME``; its files, of up to 3 GB, do not stay."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    yield tmp_path
    for file in tmp_path.rglob("checkpoints/*"):
        file.unlink()


def test_the_zoo_is_whole() -> None:
    """What is tried below is what MODEL_ZOO.md names and what ``list_models`` gives."""
    text = (ROOT / "MODEL_ZOO.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == set(OFFICIAL)
    assert set(list_models()) == {*CLASSIFIERS, *PLAIN}


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers(name: str, predict: Predict, home: Path) -> None:
    place_official(name, home)
    model = create_model(name, weights=True)
    info, path = model.info, home / "a.png"
    if info.task == "clip":  # of one frame: all views in time are alike, and one is enough
        path = write_video(home / "a.mp4", picture(96, 64)[None])
    else:
        Image.fromarray(picture(96, 64)).save(path)
    views = create_transform(info)(path)
    assert views.shape[-len(info.input_size) :] == info.input_size
    with torch.inference_mode():
        clips = views if info.task == "clip" else views[None]
        crops = torch.cat([model(view[None]) for view in clips[: info.views[1]]])
    expected, order = crops.softmax(dim=1).mean(dim=0).sort(descending=True)
    del model
    result = predict(name, path, "--json", "--batch", 1)
    assert result.code == 0, result.err
    labels = result.rows[0]["labels"]
    assert [label["index"] for label in labels] == order[:5].tolist()
    assert [label["probability"] for label in labels] == pytest.approx(
        expected[:5].tolist(), abs=2e-6
    )
    names = read_labels(info.labels) if info.labels else {}
    assert [label["label"] for label in labels] == [
        names[i] if info.labels else None for i in order[:5].tolist()
    ]
    assert info.labels or "--labels FILE" in result.err


@pytest.mark.parametrize("name", DETECTORS)
def test_recipes_of_detectors(name: str) -> None:
    """Each is found, and has a backbone of the official names and shapes."""
    pytest.importorskip("detectron2", reason="detectors need detectron2: make setup")
    assert any(key.startswith("roi_heads.") for key in detector_shapes(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTORS)
def test_detectors(name: str, predict: Predict, home: Path) -> None:
    pytest.importorskip("detectron2", reason="detectors need detectron2: make setup")
    pytest.importorskip("cv2", reason="detectron2's visualizer needs opencv-python-headless")
    from detectron2.data import MetadataCatalog

    place_official(name, home)
    Image.fromarray(picture(160, 120)).save(home / "a.png")
    result = predict(name, home / "a.png", "--json", "--score", 0)
    assert result.code == 0, result.err
    data = {"COCO": "coco_2017_val", "LVIS": "lvis_v1_val"}[OFFICIAL[name].task]
    names = MetadataCatalog.get(data).thing_classes
    assert len(names) == CLASSES[OFFICIAL[name].task]
    objects = result.rows[0]["objects"]
    assert objects
    for found in objects:
        assert found["label"] == names[found["index"]] and found["mask"]["size"] == [120, 160]
        left, top, right, bottom = found["box"]
        assert 0 <= left <= right <= 160 and 0 <= top <= bottom <= 120
