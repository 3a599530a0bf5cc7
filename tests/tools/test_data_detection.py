"""``mvitv2 data detection``: each fault is found and named, configs say what was read."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from mvitv2_tools.data import detection
from mvitv2_tools.data.coco_check import KINDS
from mvitv2_tools.data.coco_masks import read_run_lengths
from mvitv2_tools.data.detection_plan import MODELS, make_plan
from tests.tools.coco_folders import SIZE, SPOILS, Folder, Spoil


def test_nothing_wrong(data, tmp_path: Path) -> None:
    arguments = Folder(tmp_path / "birds").write()
    code, said = data("detection", *arguments, "--out", tmp_path / "out", "--check-only")
    assert code == 0 and "nothing wrong was found" in said
    assert "train: 6 images, 12 boxes, 0 crowds, 2 classes" in said
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["findings.txt"]


@pytest.mark.parametrize(
    ("spoil", "kind", "text"), [row[1:] for row in SPOILS], ids=[row[0] for row in SPOILS]
)
def test_fault_is_named(data, tmp_path: Path, spoil: Spoil, kind: str, text: str, tally) -> None:
    folder = Folder(tmp_path / "birds")
    spoil(folder)
    code, _ = data("detection", *folder.write(), "--out", tmp_path / "out", "--check-only")
    written = (tmp_path / "out/findings.txt").read_text()
    level = KINDS[kind].level
    heading = next(line for line in written.splitlines() if line.startswith(level.upper()))
    assert f"  {kind}: " in written, written
    place = written.split(f"  {kind}: ")[1].split("\nERROR")[0].split("\nWARNING")[0]
    assert text in place, place
    assert heading and code == (level == "error")
    tally("faults of COCO jsons found and named")


@pytest.mark.parametrize(
    ("mask", "stops"),
    [
        ([10, 5, 40, 5, 25, 25], True),  # points without the list of polygons
        ([[1, 2, 3, 4]], True),  # detectron2 would drop the box
        ({"size": [80, 100]}, True),
        ({"size": [80, 100], "counts": ["9"]}, True),
        ([[1, 2, 3, 4], [10, 5, 40, 5, math.nan, 25]], False),
        ({"size": [1, 1], "counts": "no!"}, False),
    ],
)
def test_masks_that_are_not_learnt_can_be_read(data, tmp_path: Path, mask, stops: bool) -> None:
    """detectron2 reads them with --boxes-only too; it looks at no more than their form."""
    folder = Folder(tmp_path / "birds")
    folder.train["annotations"][0]["segmentation"] = mask
    code, said = data(
        "detection", *folder.write(), "--out", tmp_path / "out", "--check-only", "--boxes-only"
    )
    assert code == stops and ("bad mask: 1" in said) == stops, said
    if not stops:
        pytest.importorskip("detectron2", reason="install detectron2 to run: make setup")
        from detectron2.data.datasets import load_coco_json

        read = load_coco_json(str(tmp_path / "birds/train.json"), str(tmp_path))
        assert [len(image["annotations"]) for image in read] == [2] * 6


def test_every_kind_has_a_fault() -> None:
    assert {row[2] for row in SPOILS} == set(KINDS) - {"not a COCO json"}


@pytest.mark.parametrize("text", ["{", "[]", '{"images": []}', None])
def test_not_a_coco_json(data, tmp_path: Path, text: str | None) -> None:
    arguments = Folder(tmp_path / "birds").write()
    file = Path(arguments[0])
    file.unlink() if text is None else file.write_text(text)
    code, said = data("detection", *arguments, "--out", tmp_path / "out")
    assert code == 1 and "not a COCO json: 1" in said
    assert "no config is written" in said and not (tmp_path / "out/detection.py").exists()


def test_other_encodings_are_named(data, tmp_path: Path) -> None:
    arguments = Folder(tmp_path / "birds").write()
    file = Path(arguments[0])
    file.write_text(file.read_text(), "utf-16")
    code, said = data("detection", *arguments, "--out", tmp_path / "out")
    assert code == 1 and "save it as UTF-8" in said
    assert "file not in the json" not in said  # all of them follow from the first


def test_incomplete_entries_are_named_once(data, tmp_path: Path) -> None:
    """The annotations of an image or a category are no findings of their own."""
    folder = Folder(tmp_path / "birds")
    folder.train["images"][0]["width"] = "100"
    folder.train["categories"][0]["name"] = folder.val["categories"][0]["name"] = 7
    _, said = data("detection", *folder.write(), "--out", tmp_path / "out", "--check-only")
    assert "width '100' must be a whole number above 0" in said
    assert "name 7 must be text" in said
    assert "unknown image id" not in said and "unknown category id" not in said


def test_what_only_evaluation_reads_may_lack_in_training(data, tmp_path: Path) -> None:
    folder = Folder(tmp_path / "birds")
    for entry in folder.train["annotations"]:
        del entry["area"], entry["iscrowd"]
    folder.train["annotations"][0]["id"] = 0
    code, said = data("detection", *folder.write(), "--out", tmp_path / "out", "--check-only")
    assert code == 0 and "nothing wrong was found" in said


def test_run_lengths_are_read_as_pycocotools_writes_them() -> None:
    mask = pytest.importorskip("pycocotools.mask", reason="pip install pycocotools to run")
    drawn = np.random.default_rng(0)
    for sparse in (0.01, 0.5, 0.99, 2.0):
        pixels = np.asfortranarray(drawn.random((211, 97)) < sparse, np.uint8)
        text = mask.encode(pixels)["counts"].decode()
        counts = read_run_lengths(text)
        assert counts is not None and sum(counts) == pixels.size
        values = np.repeat(np.arange(len(counts)) % 2, counts)
        assert (values == pixels.flatten(order="F")).all()
        assert read_run_lengths(text[:-1] + "~") is None  # no character of this code


def test_errors_keep_configs_back_unless_forced(data, tmp_path: Path) -> None:
    folder = Folder(tmp_path / "birds")
    folder.train["annotations"][0]["bbox"] = [200, 5, 30, 20]
    arguments = [*folder.write(), "--out", tmp_path / "out"]
    assert data("detection", *arguments)[0] == 1
    assert not (tmp_path / "out/detection.py").exists()
    pytest.importorskip("detectron2", reason="install detectron2 to run: make setup")
    assert data("detection", *arguments, "--force")[0] == 0
    assert (tmp_path / "out/detection.py").exists()


def test_weights_are_looked_at_first(data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative file becomes absolute, an official name gets its prefix; addresses stay."""
    torch.save({"model": {"norm.weight": torch.ones(1)}}, tmp_path / "mine.pth")
    monkeypatch.chdir(tmp_path)
    arguments = (*Folder(tmp_path / "birds").write(), "--out", tmp_path / "out", "--device", "cpu")
    for wrong, message in (("gone.pth", "gone.pth: no such file"), ("birds", "must be a file")):
        code, said = data("detection", *arguments, "--weights", wrong)
        assert code == 2 and message in said and not (tmp_path / "out").exists(), said
    monkeypatch.setattr(detection, "_draw", lambda config, output: 0)
    for given, written in (
        ("mine.pth?ema=True", f"{tmp_path}/mine.pth?ema=True"),
        ("mvitv2_tiny_in1k", "mvitv2://mvitv2_tiny_in1k"),
        ("detectron2://mine.pkl", "detectron2://mine.pkl"),
        ("", ""),
    ):
        assert data("detection", *arguments, "--weights", given)[0] == 0
        assert f"init_checkpoint = {written!r}\n" in (tmp_path / "out/detection.py").read_text()
        assert f'WEIGHTS: "{written}"\n' in (tmp_path / "out/detection.yaml").read_text()


def plan(**changes):
    facts = {
        "name": "birds", "model": MODELS["T"], "files": (Path("/a"),) * 4, "classes": ["owl"],
        "images": 1000, "masks": True, "batch": 16, "epochs": None, "weights": None,
        "device": "cpu", "out": Path("/out"),
    }  # fmt: skip
    return make_plan(**{**facts, **changes})


def test_the_published_schedule_comes_back() -> None:
    """COCO at 64 images a step: the recipe's own steps, rates and falls."""
    coco = plan(images=117266, batch=64, epochs=36)
    assert abs(coco.steps - 67500) < 0.03 * 67500
    assert plan(images=10**6, batch=64).steps == 67500
    whole = plan(images=10**6, batch=64)
    assert (whole.lr, whole.falls, whole.warmup) == (1.6e-4, (52500, 62500), 250)


def test_linear_rule() -> None:
    for batch in (1, 2, 4, 8, 16, 32, 64, 128):
        made = plan(batch=batch)
        assert made.lr == pytest.approx(1.6e-4 * batch / 64)
        assert made.sgd_lr == pytest.approx(0.02 * batch / 64)
        assert made.steps * batch == pytest.approx(48000, rel=0.01)
    assert plan(images=3000).steps == 36 * 3000 / 16
    assert plan(epochs=2).steps == 125
    for images in range(1, 12):  # however few
        few = plan(images=images, epochs=1, batch=4)
        assert 0 < few.falls[0] < few.falls[1] < few.steps and 0 < few.warmup < few.steps
    for wrong in ({"images": 0}, {"batch": 0}, {"epochs": 0}):
        with pytest.raises(ValueError, match="must be above 0"):
            plan(**wrong)


class TestWithDetectron2:
    """The configs as detectron2 reads them."""

    @pytest.fixture(autouse=True)
    def _needs(self) -> None:
        pytest.importorskip("detectron2", reason="install detectron2 to run: make setup")

    @pytest.mark.parametrize("masks", [True, False])
    def test_python_config(self, data, tmp_path: Path, masks: bool) -> None:
        from detectron2.config import LazyConfig, instantiate
        from detectron2.utils.events import EventStorage
        from PIL import Image

        out = tmp_path / f"lazy{masks}"
        arguments = Folder(tmp_path / "birds", masks).write()
        code, said = data("detection", *arguments, "--out", out, "--model", "toy", "--batch", 2)
        assert code == 0, said
        with Image.open(out / "augmented.jpg") as sheet:
            assert sheet.width > 1000
        assert (out / "labels.txt").read_text() == "owl\nwren\n"
        cfg = LazyConfig.load(str(out / "detection.py"))
        assert cfg.model.roi_heads.num_classes == 2
        assert (cfg.model.roi_heads.get("mask_head") is not None) == masks
        dicts = instantiate(cfg.dataloader.train.dataset)
        assert len(dicts) == 6
        assert {a["category_id"] for d in dicts for a in d["annotations"]} == {0, 1}
        keys = {"names": f"other_{masks}", "json_file": arguments[2], "image_root": arguments[3]}
        words = [f"dataloader.train.dataset.{key}={value}" for key, value in keys.items()]
        other = LazyConfig.apply_overrides(cfg.copy(), words)  # as on the command line
        assert len(instantiate(other.dataloader.train.dataset)) == 3
        seen = instantiate(cfg.dataloader.train.mapper)(dicts[0])
        assert seen["instances"].has("gt_masks") == masks
        model = instantiate(cfg.model)
        with EventStorage():
            losses = model([seen])
        assert all(loss.isfinite() for loss in losses.values())
        assert ("loss_mask" in losses) == masks

    def test_run_lengths_are_learnt(self, data, tmp_path: Path) -> None:
        """detectron2 refuses them as polygons; beside polygons they are bitmasks."""
        from detectron2.config import LazyConfig, get_cfg, instantiate
        from detectron2.structures import BitMasks
        from pycocotools import mask

        from mvitv2_d2 import add_mvitv2_config

        folder, out = Folder(tmp_path / "birds"), tmp_path / "runs"
        entry = folder.train["annotations"][0]
        runs = mask.merge(mask.frPyObjects(entry["segmentation"], SIZE[1], SIZE[0]))
        entry["segmentation"] = {"size": runs["size"], "counts": runs["counts"].decode()}
        code, said = data("detection", *folder.write(), "--out", out, "--model", "toy")
        assert code == 0 and (out / "augmented.jpg").is_file(), said
        loader = LazyConfig.load(str(out / "detection.py")).dataloader.train
        dicts, mapper = instantiate(loader.dataset), instantiate(loader.mapper)
        masks = mapper(dicts[0])["instances"].gt_masks
        assert isinstance(masks, BitMasks) and masks.tensor.flatten(1).any(dim=1).all()
        cfg = get_cfg()
        add_mvitv2_config(cfg)
        cfg.merge_from_file(str(out / "detection.yaml"))
        assert cfg.INPUT.MASK_FORMAT == "bitmask"

    @pytest.mark.parametrize("size", [s for s in MODELS if s != "toy"])
    def test_models_are_those_of_the_recipes(self, size: str, tmp_path: Path) -> None:
        """Same backbone, heads and optimizer as the published configs of this project."""
        from detectron2.config import LazyConfig

        from mvitv2_tools.data.detection_config import python_config
        from tests.d2.running import ROOT

        file = tmp_path / "detection.py"
        file.write_text(python_config(plan(model=MODELS[size], batch=64), "detection.py"))
        mine = LazyConfig.load(str(file))
        recipes = ROOT / "projects/detection/configs"
        recipe = LazyConfig.load(str(recipes / f"mask_rcnn_mvitv2_{size.lower()}_3x.py"))
        recipe.model.roi_heads.num_classes = 1
        ours, theirs = mine.model.backbone.bottom_up, recipe.model.backbone.bottom_up
        for node in (ours, theirs):
            layer = node.pop("norm_layer")
            assert layer.keywords == {"eps": 1e-6}
            node.last_block_indexes = list(node.last_block_indexes)
        assert mine.model == recipe.model
        assert mine.optimizer == recipe.optimizer
        pipelines = [c.dataloader.train.mapper.augmentations for c in (mine, recipe)]
        assert str(pipelines[0]).replace("(", "[") == str(pipelines[1]).replace("(", "[")
        assert mine.dataloader.test.mapper == recipe.dataloader.test.mapper
        mine.train.amp.enabled = True  # on the plan's CPU it is off
        assert mine.train.ddp.fp16_compression is True

    def test_yaml_config(self, data, tmp_path: Path) -> None:
        from detectron2.config import get_cfg
        from detectron2.data import DatasetCatalog, MetadataCatalog
        from detectron2.modeling import build_model

        import mvitv2_d2.backbone  # noqa: F401  registers the builders
        from mvitv2_d2 import add_mvitv2_config

        out = tmp_path / "yaml"
        arguments = Folder(tmp_path / "birds").write()
        assert data("detection", *arguments, "--out", out, "--model", "toy")[0] == 0
        cfg = get_cfg()
        add_mvitv2_config(cfg)
        cfg.merge_from_file(str(out / "detection.yaml"))
        for name in ("yaml_train", "yaml_val"):
            DatasetCatalog.pop(name, None), MetadataCatalog.pop(name, None)
        build_model(cfg)
        assert len(DatasetCatalog.get("yaml_train")) == 6
        facts = MetadataCatalog.get("yaml_val")
        assert (facts.evaluator_type, facts.thing_classes) == ("coco", ["owl", "wren"])
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
        with pytest.raises(ValueError, match=r"ROI_HEADS\.NUM_CLASSES must be 2.*got 3"):
            build_model(cfg)

    def test_wrong_data_is_refused_by_name(self, tmp_path: Path) -> None:
        from mvitv2_d2.own_data import own_coco, register_own

        folder = Folder(tmp_path / "birds")
        json_file, images = folder.write()[:2]
        with pytest.raises(ValueError, match=r"has the classes \['owl', 'wren'\].*\['wren'\]"):
            own_coco("own_wrong", json_file, images, ["wren"])
        with pytest.raises(ValueError, match="own_wrong is registered as"):
            own_coco("own_wrong", "other.json", images, ["wren"])
        with pytest.raises(ValueError, match=r"own_wrong is registered as .*'owl', 'wren'"):
            own_coco("own_wrong", json_file, images, ["owl", "wren"])
        with pytest.raises(FileNotFoundError, match=r"nowhere\.json is not there"):
            own_coco("own_missing", "nowhere.json", images, ["owl"])
        with pytest.raises(ValueError, match="classes of own_none must be names"):
            register_own("own_none", json_file, images, [])


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["lazyconfig_train_net.py", "train_net.py"])
@pytest.mark.parametrize("masks", [True, False])
def test_detectron2s_tools_train_it(data, run, tool: str, masks: bool, tmp_path: Path) -> None:
    """detectron2's two unmodified tools train, evaluate by class, and predict finds the labels."""
    from projects.detection.find_tools import find_tool

    out = tmp_path / f"birds_{tool[:4]}_{masks}"  # detectron2's catalogue lasts for the process
    arguments = Folder(tmp_path / "raw", masks).write()
    assert data("detection", *arguments, "--out", out, "--model", "toy", "--batch", 2)[0] == 0
    if tool == "train_net.py":
        config, folder = out / "detection.yaml", out / "run_yaml"
        keys = ["SOLVER.MAX_ITER", "6", "TEST.EVAL_PERIOD", "6", "SOLVER.STEPS", "(4,)"]
        keys += ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"]
    else:
        config, folder = out / "detection.py", out / "run"
        keys = ["train.max_iter=6", "train.eval_period=6"]
        keys += ["model.roi_heads.box_predictor.test_score_thresh=0.0"]
    said = run(
        *(find_tool(tool), "--config-file", config, *keys), DETECTRON2_ENV_MODULE="mvitv2_d2.env"
    )
    assert "Per-category bbox AP" in said and "| owl" in said
    assert ("Task: segm" in said) == masks
    rows = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    assert any("bbox/AP-wren" in row for row in rows)
    picture = tmp_path / "raw/val/0.png"
    said = run("-m", "mvitv2_core.cli", "predict", folder, picture, "--score", "0", "--json")
    found = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert {thing["label"] for thing in found[0]["objects"]} <= {"owl", "wren"}
    assert found[0]["objects"]
