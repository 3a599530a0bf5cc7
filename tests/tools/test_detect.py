"""``mvitv2 predict`` with detectors: against detectron2's own predictor, and configs that ask for
more than a model."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("detectron2", reason="detectors need detectron2: make setup")
pytest.importorskip("cv2", reason="detectron2's visualizer needs opencv-python-headless")

from detectron2.config import LazyConfig, get_cfg, instantiate
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from PIL import Image

from mvitv2_core.model_info import OFFICIAL
from mvitv2_d2.env import setup_environment
from mvitv2_tools.detect import Detector
from tests.media_files import frame_number, picture, write_video
from tests.tools.conftest import Predict

ROOT = Path(__file__).parents[2]
NAMES = ["circle", "square", "triangle", "star"]


@pytest.fixture(scope="module")
def lazy_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What detectron2's lazy trainer leaves, of the demo's own config, with random weights."""
    folder = tmp_path_factory.mktemp("demo") / "training"
    folder.mkdir()
    cfg = LazyConfig.load(str(ROOT / "projects/detection/configs/toy_mask_rcnn_mvitv2.py"))
    # Random weights are sure of nothing: everything counts.
    cfg.model.roi_heads.box_predictor.test_score_thresh = 0.0
    cfg.model.roi_heads.box_predictor.test_topk_per_image = 6
    torch.manual_seed(0)
    LazyConfig.save(cfg, str(folder / "config.yaml"))
    save(instantiate(cfg.model), folder)
    return folder.parent


@pytest.fixture(scope="module")
def yaml_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What detectron2's train_net.py leaves: the whole config, and weights."""
    folder = tmp_path_factory.mktemp("yaml")
    setup_environment()
    cfg = get_cfg()
    cfg.merge_from_file(str(ROOT / "configs/COCO/toy_mask_rcnn_mvitv2.yaml"))
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.TEST.DETECTIONS_PER_IMAGE = 6
    torch.manual_seed(0)
    (folder / "config.yaml").write_text(cfg.dump())
    save(build_model(cfg), folder)
    return folder


def save(model: torch.nn.Module, folder: Path) -> None:
    for name, parameter in model.named_parameters():
        if "predictor" in name:  # initial heads hardly tell objects apart
            generator = torch.Generator().manual_seed(len(name))
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data += noise * (0.02 if "bbox" in name else 0.3)
    content = {"model": model.state_dict(), "iteration": 9, "optimizer": {"state": {}}}
    torch.save(content, folder / "model_final.pth")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index, size in enumerate([(120, 100), (120, 100), (100, 140), (64, 64)]):
        Image.fromarray(picture(*size, seed=index)).save(folder / f"{index}.png")
    return folder


def test_a_score_below_the_configs() -> None:
    """Or an object would be dropped before it is asked for; a higher score leaves it."""
    cfg = LazyConfig.load(str(ROOT / "projects/detection/configs/toy_mask_rcnn_mvitv2.py"))
    cfg.model.roi_heads.box_predictor.test_score_thresh = 0.05
    for score, expected in ((0.0, 0.0), (0.5, 0.05)):
        model = instantiate(cfg.model)
        Detector(model, [], "RGB", None, torch.device("cpu"), score)
        assert model.roi_heads.box_predictor.test_score_thresh == expected


def check(row: dict[str, Any], instances: Any) -> None:
    instances = instances[instances.scores.argsort(descending=True)]
    objects = row["objects"]
    assert len(objects) == len(instances) > 0
    assert [o["score"] for o in objects] == pytest.approx(instances.scores.tolist(), abs=1e-6)
    assert [o["index"] for o in objects] == instances.pred_classes.tolist()
    boxes = instances.pred_boxes.tensor.numpy()
    assert np.abs(np.array([o["box"] for o in objects]) - boxes).max() < 1e-3
    from pycocotools.mask import decode

    for found, mask in zip(objects, instances.pred_masks, strict=True):
        assert np.array_equal(decode(found["mask"]).astype(bool), mask.numpy())


def test_yaml_folder(predict: Predict, yaml_run: Path, pictures: Path) -> None:
    """The answers of detectron2's DefaultPredictor, also where pictures go in batches."""
    cfg = get_cfg()
    cfg.merge_from_file(str(yaml_run / "config.yaml"))
    cfg.MODEL.WEIGHTS = str(yaml_run / "model_final.pth")
    predictor = DefaultPredictor(cfg)
    result = predict(yaml_run, pictures, "--json", "--score", 0, "--batch", 3)
    assert result.code == 0 and len(result.rows) == 4
    for row in result.rows:
        bgr = np.array(Image.open(row["input"]))[:, :, ::-1]
        check(row, predictor(bgr)["instances"])
    other = yaml_run / "model_0000004.pth"
    content = torch.load(yaml_run / "model_final.pth")
    content["model"]["roi_heads.box_predictor.cls_score.bias"][0] += 3
    torch.save(content, other)
    chosen = predict(yaml_run, pictures, "--json", "--score", 0, "--weights", other)
    assert chosen.code == 0 and str(other) in chosen.err and chosen.out != result.out
    other.unlink()
    (yaml_run / "own").mkdir()
    shutil.copy(yaml_run / "model_final.pth", yaml_run / "own" / "weights.pth")
    arguments = ("--weights", yaml_run / "own" / "weights.pth", "--json", "--score", 0)
    same = predict(yaml_run / "config.yaml", pictures, *arguments)
    assert same.out == result.out
    again = predict(
        yaml_run / "own" / "weights.pth",
        pictures,
        *("--config", yaml_run / "config.yaml", "--json", "--score", 0),
    )
    assert again.out == result.out


def test_a_config_named(predict: Predict, yaml_run: Path, pictures: Path, tmp_path: Path) -> None:
    """A recipe is found from any folder, as it is as MODEL; one that is not there is named."""
    weights = tmp_path / "own.pth"
    shutil.copy(yaml_run / "model_final.pth", weights)
    for model in (weights, "mask_rcnn_mvitv2_t_3x"):
        result = predict(model, pictures, "--config", "none.yaml")
        assert result.code == 2 and "none.yaml: no such file, nor a recipe" in result.err
    recipe = "configs/COCO/toy_mask_rcnn_mvitv2.yaml"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        result = predict(weights, pictures / "0.png", "--config", recipe, "--score", 0)
    assert result.code == 0, result.err


@pytest.mark.parametrize(
    "weights",
    [
        "detectron2://ImageNetPretrained/mvitv2/MViTv2_T_in1k.pyth",
        "https://example.org/model_final.pkl",
        "mvitv2://mvitv2_tiny_in1k",
        "mvitv2_tiny_in1k",
    ],
)
def test_weights_that_are_no_detectors(
    weights: str, predict: Predict, yaml_run: Path, pictures: Path, tmp_path: Path
) -> None:
    """What a config names for its training, before anything is downloaded."""
    text = (yaml_run / "config.yaml").read_text()
    assert "  WEIGHTS: ''\n" in text
    config = tmp_path / "own.yaml"
    config.write_text(text.replace("  WEIGHTS: ''\n", f"  WEIGHTS: {weights}\n"))
    result = predict(config, pictures)
    assert result.code == 2
    assert f"{weights} is what training starts from, or a URL: give --weights FILE" in result.err
    assert "give --weights FILE" in predict(config, pictures, "--weights", weights).err


def test_official_weights_of_a_config(
    predict: Predict,
    yaml_run: Path,
    pictures: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """``mvitv2://NAME`` of a detector, as `mvitv2 data detection` writes it."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cached = OFFICIAL["mask_rcnn_mvitv2_t_3x"].cached
    cached.parent.mkdir(parents=True)
    content = torch.load(yaml_run / "model_final.pth")["model"]
    with open(cached, "wb") as stream:
        pickle.dump({"model": {k: v.numpy() for k, v in content.items()}}, stream)
    text = (yaml_run / "config.yaml").read_text()
    config = tmp_path / "own.yaml"
    config.write_text(text.replace("WEIGHTS: ''", "WEIGHTS: mvitv2://mask_rcnn_mvitv2_t_3x"))
    result = predict(config, pictures, "--json", "--score", 0)
    assert result.code == 0, result.err
    assert result.out == predict(yaml_run, pictures, "--json", "--score", 0).out


def test_lazy_folder(predict: Predict, lazy_run: Path, pictures: Path, tmp_path: Path) -> None:
    """``outputs/demo`` as it is: detectron2's model, its test-time resizing, names beside it."""
    (lazy_run / "training" / "labels.txt").write_text("\n".join(NAMES))
    cfg = LazyConfig.load(str(lazy_run / "training" / "config.yaml"))
    model = instantiate(cfg.model).eval()
    model.load_state_dict(torch.load(lazy_run / "training" / "model_final.pth")["model"])
    mapper = instantiate(cfg.dataloader.test.mapper)
    out = tmp_path / "out"
    result = predict(lazy_run, pictures, "--json", "--score", 0, "--out", out)
    for row in result.rows:
        size = Image.open(row["input"]).size
        mapped = mapper({"file_name": row["input"], "height": size[1], "width": size[0]})
        with torch.no_grad():
            expected = model([mapped])[0]["instances"]
        check(row, expected)
        assert all(o["label"] == NAMES[o["index"]] for o in row["objects"])
    assert {p.name for p in out.iterdir()} == {
        *("0.jpg", "1.jpg", "2.jpg", "3.jpg"),
        "contact_sheet.jpg",
    }
    drawn = np.array(Image.open(out / "0.jpg").resize((120, 100))).astype(int)
    assert np.abs(drawn - picture(120, 100)).mean() > 2  # boxes and masks are there
    text = predict(lazy_run, pictures / "0.png", "--score", 1)
    assert "nothing found" in text.out


def test_videos(predict: Predict, lazy_run: Path, tmp_path: Path) -> None:
    """Each how-manieth frame, drawn into a video."""
    av = pytest.importorskip("av", reason="videos need PyAV: pip install av")
    write_video(tmp_path / "a.mp4", frame_number(7, 96, 64))
    write_video(tmp_path / "b.mp4", frame_number(3, 64, 64))
    arguments = (tmp_path / "a.mp4", tmp_path / "b.mp4", "--score", 0, "--out", tmp_path / "out")
    result = predict(lazy_run, *arguments, "--json", "--every", 2)
    seconds = [row["seconds"][0] for row in result.rows]
    assert result.code == 0
    assert seconds == pytest.approx([0, 2 / 30, 4 / 30, 6 / 30, 0, 2 / 30], abs=1e-3)
    ends = [row["seconds"][1] for row in result.rows]  # never after the video's own
    assert ends == pytest.approx([n / 30 for n in (2, 4, 6, 7, 2, 3)], abs=1e-3)
    for name, frames in (("a.mp4", 4), ("b.mp4", 2)):
        with av.open(str(tmp_path / "out" / name)) as container:
            assert len(list(container.decode(video=0))) == frames
            assert float(container.streams.video[0].average_rate) == pytest.approx(15)


def test_a_strip_does_not_stop_the_others(predict: Predict, lazy_run: Path, pictures: Path) -> None:
    """Resized to the longest side allowed, nothing would be left of the other."""
    Image.fromarray(picture(3000, 3)).save(pictures / "2_strip.png")
    result = predict(lazy_run, pictures, "--json", "--score", 0)
    assert result.code == 1 and len(result.rows) == 5
    failed = [row for row in result.rows if "error" in row]
    assert [Path(row["input"]).name for row in failed] == ["2_strip.png"]
    assert "2_strip.png: 3000x3 pixels cannot be resized" in result.err


EVIL = {
    "a function to call": "model: {_target_: os.system, command: 'touch CANARY'}",
    "a function through a module": (
        "model: {_target_: torch.nn.modules.module.torch.hub.os.system, command: 'touch CANARY'}"
    ),
    "a tag": "model: !!python/object/apply:os.system ['touch CANARY']\nx: {_target_: y}",
    "a partial": (
        "model: {_target_: torch.nn.Identity, f: !!python/object/apply:functools.partial {\n"
        "  args: [!!python/name:os.system ''], state: [!!python/name:os.system '', "
        "['touch CANARY'], {}, null]}}"
    ),
    "an object": "model: {_target_: z, f: !!python/object:subprocess.Popen {args: 'touch CANARY'}}",
    "a reference": "model: {_target_: torch.nn.Sequential, x: '${evil}'}\n"
    "evil: {_target_: os.system, command: 'touch CANARY'}",
    "sharded weights": (
        "model: {_target_: mvitv2_d2.sharded.load, folder: CANARY, "
        "model: {_target_: torch.nn.Identity}}"
    ),
    "a function of torch's": (
        "model: {_target_: torch.nn.attention._fa3._fa3_import_module, module_path: CANARY}"
    ),
    "a target that gives a name": (
        "model: {path: CANARY, _target_: {_target_: {_target_: torch.nn.Identity}, "
        "input: os.mkdir}}"
    ),
    "a partial that gives a name": (
        "model: {_target_: {_target_: !!python/object/apply:functools.partial {\n"
        "  args: [!!python/name:detectron2.layers.wrappers.cat ''], state: [\n"
        "  !!python/name:detectron2.layers.wrappers.cat '', [[os.mkdir]], {}, null]}},\n"
        "  path: CANARY}"
    ),
    "a referred target": (
        "model: {_target_: '${evil}', path: CANARY}\n"
        "evil: {_target_: {_target_: torch.nn.Identity}, input: os.mkdir}"
    ),
    "a resolver's mapping": (
        "model: {_target_: torch.nn.Sequential, x: '${oc.create:\"{_target_: os.mkdir, "
        "path: CANARY}\"}'}"
    ),
    "a referred name": "model: {_target_: '${evil}', command: 'touch CANARY'}\nevil: os.system",
    "a resizing": (
        "model: {_target_: torch.nn.Identity}\ndataloader: {test: {mapper: {augmentations: "
        "[{_target_: os.system, command: 'touch CANARY'}]}}}"
    ),
}


@pytest.mark.parametrize("kind", EVIL)
def test_configs_that_run_things(
    kind: str, predict: Predict, lazy_run: Path, pictures: Path, tmp_path: Path
) -> None:
    """Nothing of them runs; the message names what was asked for, and the way to allow it."""
    canary = tmp_path / "canary"
    text = EVIL[kind].replace("CANARY", str(canary))
    if "dataloader" not in text:
        text += "\ndataloader: {test: {mapper: {augmentations: [], image_format: BGR}}}"
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(text)
    shutil.copy(lazy_run / "training" / "model_final.pth", folder)
    result = predict(folder, pictures)
    assert result.code == 2 and not canary.exists()
    assert str(folder / "config.yaml") in result.err
    assert "--trust-config" in result.err or "could not determine a constructor" in result.err


def test_yaml_config_with_tags(
    predict: Predict, yaml_run: Path, pictures: Path, tmp_path: Path
) -> None:
    """detectron2's own reader would run them."""
    canary = tmp_path / "canary"
    text = (yaml_run / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(
        f"{text}\nEXTRA: !!python/object/apply:os.system ['touch {canary}']\n"
    )
    arguments = ("--weights", yaml_run / "model_final.pth")
    result = predict(tmp_path / "config.yaml", pictures, *arguments)
    assert result.code == 2 and "constructor" in result.err and not canary.exists()


@pytest.mark.parametrize("base", ["http://127.0.0.1:9/base.yaml", "gone.yaml"])
def test_yaml_config_with_a_base_that_is_no_file(
    base: str, predict: Predict, pictures: Path, tmp_path: Path
) -> None:
    """detectron2's own reader would open an address."""
    (tmp_path / "config.yaml").write_text(f"_BASE_: {base}\nMODEL: {{}}\n")
    result = predict(tmp_path / "config.yaml", pictures, "--weights", "x.pth")
    assert result.code == 2 and base in result.err and str(tmp_path / "config.yaml") in result.err
    assert "_BASE_ must be a file" in result.err or "No such file" in result.err


def test_weights_that_do_not_fit(
    predict: Predict, lazy_run: Path, pictures: Path, tmp_path: Path
) -> None:
    shutil.copytree(lazy_run / "training", tmp_path / "run")
    path = tmp_path / "run" / "model_final.pth"
    content = torch.load(path)
    weights = content["model"]
    weights["roi_heads.box_predictor.cls_score.weight"] = torch.zeros(3, 256)
    del weights["backbone.bottom_up.blocks.0.norm1.weight"]
    weights["extra"] = torch.zeros(1)
    torch.save(content, path)
    result = predict(tmp_path / "run", pictures)
    assert result.code == 2
    for cause in ("of another shape (1)", "missing in the file (1)", "without a place"):
        assert cause in result.err
    path.unlink()
    shutil.copy(lazy_run / "training" / "model_final.pth", tmp_path / "alone.pth")
    assert "--config must name" in predict(tmp_path / "alone.pth", pictures).err


def test_the_average_is_taken_where_a_training_kept_one(tmp_path: Path) -> None:
    """As detectron2's evaluation took it."""
    from mvitv2_tools.detector_weights import load_detector

    model = torch.nn.Linear(2, 2)
    state = model.state_dict()
    inside = {f"module.{name}": value + 1 for name, value in state.items()}
    content = {"model": state, "model_ema": {**inside, "n_averaged": torch.tensor(3)}}
    torch.save(content, tmp_path / "model_final.pth")
    loaded = torch.nn.Linear(2, 2)
    load_detector(loaded, str(tmp_path / "model_final.pth"))
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, state[name] + 1)
