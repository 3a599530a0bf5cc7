"""Every recipe is built, and its figures are those that were published."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.golden_data import official_state_dicts
from tests.projects.recipe_facts import CASCADE, MASK, RECIPES, TRAIN_AUGMENTATIONS, Recipe

pytest.importorskip("detectron2", reason="install detectron2 to run: make setup")
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, get_cfg, instantiate
from detectron2.layers.batch_norm import BatchNorm2d
from detectron2.modeling import MViT as Official
from detectron2.modeling import build_model
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler
from omegaconf import DictConfig, ListConfig

from mvitv2_d2 import MViT, add_mvitv2_config
from projects.detection.check_config import fit, official_checkpoint
from projects.detection.cost import detector_flops

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "projects/detection/configs"
YAML = ROOT / "configs/COCO"
README = (ROOT / "projects/detection/README.md").read_text()
YAML_RECIPES = [f"{kind}{size}_3x" for kind in (MASK, CASCADE) for size in "tsbl"]
LN_RECIPE = f"vitdet/COCO/{CASCADE}b_in21k_100ep"
OTHER_HEADS = ["retinanet_mvitv2_t_3x", "panoptic_fpn_mvitv2_t_3x", "keypoint_rcnn_mvitv2_t_3x"]


def build(cfg: Any) -> Any:
    with torch.device("meta"):
        return instantiate(cfg.model)


def load_yaml(name: str, **overrides: object) -> Any:
    cfg = get_cfg()
    add_mvitv2_config(cfg)
    cfg.merge_from_file(str(YAML / f"{name}.yaml"))
    cfg.merge_from_list([n for item in overrides.items() for n in item])
    cfg.MODEL.DEVICE = "meta"
    return cfg


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def test_every_config_is_listed() -> None:
    """A recipe that is not in the tables above would not be tested."""
    files = {str(p.relative_to(CONFIGS))[:-3] for p in CONFIGS.rglob("*mvitv2*.py")}
    assert {name for name in files if not name.startswith("toy")} == set(RECIPES)
    assert {p.stem for p in YAML.glob("[a-z]*.yaml")} >= {*YAML_RECIPES, *OTHER_HEADS}


@pytest.mark.parametrize("name", RECIPES)
def test_python_recipe(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = RECIPES[name]
    cfg = LazyConfig.load(str(CONFIGS / f"{name}.py"))
    model = build(cfg)
    backbone = model.backbone.bottom_up
    assert isinstance(backbone, MViT)
    assert backbone.config.blocks[-1].drop_path == recipe.drop_path
    assert max(spec.window_size for spec in backbone.config.blocks) == recipe.windows
    check_schedule(cfg, recipe)
    check_groups(cfg, model, recipe)
    check_data(cfg, recipe)
    # The weights that the recipe starts from are its variant's, and fit.
    assert cfg.train.init_checkpoint.endswith(f"/mvitv2/MViTv2_{recipe.weights}.pyth")
    checkpoint = official_checkpoint(cfg.train.init_checkpoint)
    assert checkpoint is not None
    changed = fit(backbone, checkpoint)
    if "kv8" in name:  # tables follow the larger of the q and kv grids: only the keys' shrink
        assert all("rel_pos" in n for n in changed.other_shape)
    else:
        assert changed.complete
    check_figures(name, model, recipe)
    if recipe.weights != "L_in1k":  # which detectron2's class cannot be
        check_official(cfg, model, monkeypatch)


def check_schedule(cfg: Any, recipe: Recipe) -> None:
    last, drops = recipe.steps
    assert cfg.train.max_iter == last
    assert list(cfg.lr_multiplier.scheduler.milestones) == drops
    assert cfg.optimizer.lr == recipe.lr
    assert cfg.train.amp.enabled and cfg.train.ddp.fp16_compression
    falling = MultiStepParamScheduler([1.0, 0.1, 0.01], milestones=[*drops, last])
    official = WarmupParamScheduler(falling, 0.001, recipe.warmup / last)
    ours = instantiate(cfg.lr_multiplier)
    borders = [step + n for step in (125, 250, *drops) for n in (-1, 0, 1)]
    for step in (0, 1, *borders, last - 1):
        assert ours(step / last) == official(step / last), step


def test_gradients_are_compressed_where_they_are_scaled(tmp_path: Path) -> None:
    """float16 makes zeros of unscaled ones: with the loss scaling off, DDP takes them whole."""
    cfg = LazyConfig.load(str(CONFIGS / f"{MASK}t_3x.py"))
    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
    for lazy in (cfg, LazyConfig.load(str(tmp_path / "config.yaml"))):
        assert dict(**lazy.train.ddp)["fp16_compression"] is True  # as create_ddp_model takes it
        lazy = LazyConfig.apply_overrides(lazy, ["train.amp.enabled=False"])
        assert dict(**lazy.train.ddp)["fp16_compression"] is False
        lazy = LazyConfig.apply_overrides(lazy, ["train.ddp.fp16_compression=True"])
        assert dict(**lazy.train.ddp)["fp16_compression"] is True


def check_groups(cfg: Any, model: nn.Module, recipe: Recipe) -> None:
    """Weight decay of every parameter, by what it is."""
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    assert type(optimizer) is torch.optim.AdamW and optimizer.defaults["betas"] == (0.9, 0.999)
    decay = {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {group["lr"] for group in optimizer.param_groups} == {recipe.lr}
    seen = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            kind = "weight"
            if isinstance(module, (nn.LayerNorm, nn.BatchNorm2d, BatchNorm2d)):
                kind = "norm"
            elif name in ("rel_pos_h", "rel_pos_w", "pos_embed"):
                kind = name
            expected = {
                "rel_pos_h": recipe.rel_pos_decay,
                "rel_pos_w": recipe.rel_pos_decay,
                "weight": 0.1,
            }
            assert decay.pop(parameter) == expected.get(kind, 0.0), (type(module), name)
            seen.add(kind)
    assert not decay and {"weight", "norm"} <= seen
    config = model.backbone.bottom_up.config
    assert ("rel_pos_h" in seen) == any(config.rel_pos)
    assert ("pos_embed" in seen) == (config.abs_pos != "none")


def plain(node: Any) -> Any:
    """A lazy call as (name, arguments)."""
    if isinstance(node, ListConfig):
        return [plain(child) for child in node]
    if not isinstance(node, DictConfig):
        return node
    arguments = {key: plain(value) for key, value in node.items() if key != "_target_"}
    return (getattr(node._target_, "__name__", node._target_), arguments)


def check_data(cfg: Any, recipe: Recipe) -> None:
    train, test = cfg.dataloader.train, cfg.dataloader.test
    lvis = "lvis" in train.dataset.names
    assert train.total_batch_size == 64 and train.mapper.use_instance_mask
    assert plain(train.mapper.augmentations) == TRAIN_AUGMENTATIONS[recipe.data]
    assert train.mapper.get("recompute_boxes", False) == (recipe.data != "multi-scale")
    instantiate(train.mapper)
    size, most = (1024, 1024) if recipe.data == "1024" else (800, 1333)
    expected = {"short_edge_length": size, "max_size": most}
    assert plain(test.mapper.augmentations) == [("ResizeShortestEdge", expected)]
    assert train.mapper.image_format == test.mapper.image_format == cfg.model.input_format == "RGB"
    names = ("lvis_v1_train", "lvis_v1_val") if lvis else ("coco_2017_train", "coco_2017_val")
    assert (train.dataset.names, test.dataset.names, cfg.dataloader.evaluator.dataset_name) == (
        *names,
        names[1],
    )
    assert cfg.model.roi_heads.num_classes == (1203 if lvis else 80)
    assert ("sampler" in train) == lvis
    for predictor in cfg.model.roi_heads.get("box_predictors", []) if lvis else []:
        assert predictor.use_fed_loss and predictor.use_sigmoid_ce
        assert (predictor.test_score_thresh, predictor.test_topk_per_image) == (0.02, 300)
        assert len(predictor.get_fed_loss_cls_weights()) == 1203


def check_figures(name: str, model: Any, recipe: Recipe) -> None:
    """Published figures, and our own in the README's tables.

    Published are whole millions, and GFLOPs that fit 800 x 1280, 1000 proposals, 100 detections.
    """
    size = (1024, 1024) if recipe.data == "1024" else (800, 1280)
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    gflops = sum(detector_flops(model, size).values()) / 1e9
    if recipe.published is not None:
        assert round(parameters) == recipe.published[0]
        assert abs(gflops / recipe.published[1] - 1) < 0.003
    rows = [line.split("|") for line in README.splitlines() if f"](configs/{name}.py)" in line]
    assert len(rows) == 1
    cells = [cell.strip() for cell in rows[0]]
    assert f"{parameters:.1f}" in cells and f"{gflops:.1f}" in cells, cells
    for figure in recipe.published or ():
        assert str(figure) in cells or name.endswith("hwin_kv4")


def check_official(cfg: Any, model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same config with detectron2's own class in it has the same names and shapes."""
    # Its constructor reads drop path rates out of a tensor, which the meta device cannot give.
    monkeypatch.setattr(torch, "linspace", partial(torch.linspace, device="cpu"))
    bottom_up = cfg.model.backbone.bottom_up
    bottom_up._target_ = Official
    bottom_up.use_act_checkpoint = False  # would need fairscale; adds no parameter
    assert shapes(build(cfg)) == shapes(model)


def test_published_l_widens_in_the_mlp() -> None:
    """270 M and 1519 G are of the L that IN-1K was trained with, not of detectron2's config."""
    model = build(LazyConfig.load(str(CONFIGS / f"{CASCADE}l_in21k_lsj_50ep.py")))
    other = build(LazyConfig.load(str(CONFIGS / f"{CASCADE}l_3x.py")))
    counts = [sum(p.numel() for p in m.parameters()) for m in (model, other)]
    assert counts == [265_110_654, 269_728_302]
    assert counts[1] - counts[0] == 4_617_648 and "4.62 M parameters" in README


@pytest.mark.parametrize("name", YAML_RECIPES)
def test_yaml_recipe_is_the_python_recipe(name: str) -> None:
    recipe, cfg = RECIPES[name], load_yaml(name)
    with torch.device("meta"):
        model = build_model(cfg)
    python = LazyConfig.load(str(CONFIGS / f"{name}.py"))
    assert shapes(model) == shapes(build(python))
    assert python.train.init_checkpoint == cfg.MODEL.WEIGHTS
    assert model.backbone.bottom_up.config == build(python).backbone.bottom_up.config
    solver = cfg.SOLVER
    assert (solver.MAX_ITER, list(solver.STEPS)) == recipe.steps
    assert (recipe.lr, 0.1) == (solver.BASE_LR, solver.WEIGHT_DECAY)
    assert (solver.WARMUP_ITERS, solver.IMS_PER_BATCH, solver.AMP.ENABLED) == (250, 64, True)
    assert list(python.model.pixel_mean) == cfg.MODEL.PIXEL_MEAN
    assert list(python.model.pixel_std) == cfg.MODEL.PIXEL_STD


@pytest.mark.parametrize("name", OTHER_HEADS)
def test_other_heads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names and shapes as with detectron2's own class in the backbone's place."""
    cfg = load_yaml(name)
    with torch.device("meta"):
        model = build_model(cfg)
    assert all(value > 0 for value in detector_flops(model, (800, 1280)).values())
    checkpoint = official_checkpoint(cfg.MODEL.WEIGHTS)
    assert checkpoint is not None and fit(model.backbone.bottom_up, checkpoint).complete
    monkeypatch.setattr(torch, "linspace", partial(torch.linspace, device="cpu"))
    options = {"depth": 10, "last_block_indexes": (0, 2, 7, 9), "drop_path_rate": 0.2}
    with torch.device("meta"):
        official = Official(**options, norm_layer=partial(nn.LayerNorm, eps=1e-6))
    ours = shapes(model.backbone.bottom_up)
    unused = {n for n in shapes(official) if n.startswith("scale2")} if "retina" in name else set()
    assert ours == {n: shape for n, shape in shapes(official).items() if n not in unused}


def test_widening_in_the_mlp_fits_the_published_l() -> None:
    state = official_state_dicts()["mvit/image_L_in1k"]["state"]
    with torch.device("meta"):
        model = MViT(
            embed_dim=144,
            depth=48,
            num_heads=2,
            last_block_indexes=(1, 7, 43, 47),
            dim_mul_in_att=False,
        )
    assert model.output_shape()["scale2"].channels == 288
    ours = {n: list(s) for n, s in shapes(model).items() if not n.startswith("scale")}
    head = ("norm.weight", "norm.bias", "head.projection.weight", "head.projection.bias")
    assert ours == {name: shape for name, shape in state.items() if name not in head}


def test_published_image_weights_reach_the_backbone(tmp_path: Path) -> None:
    """A file as facebookresearch/mvit writes them, through the trainers' own checkpointer."""
    for name in ("MViTv2_T_in1k.pyth", "MViTv2_B_in21k.pyth"):
        recipe = {"MViTv2_T_in1k.pyth": f"{CASCADE}t_3x", "MViTv2_B_in21k.pyth": LN_RECIPE}[name]
        checkpoint = official_checkpoint(name)
        assert checkpoint is not None
        state = {n: torch.randn(t.shape) for n, t in checkpoint.state_dict().items()}
        torch.save({"model_state": state}, tmp_path / name)
        model = instantiate(LazyConfig.load(str(CONFIGS / f"{recipe}.py")).model)
        before = {n: t.clone() for n, t in model.state_dict().items()}
        DetectionCheckpointer(model).load(str(tmp_path / name))
        for key, tensor in model.state_dict().items():
            loaded = state.get(key.removeprefix("backbone.bottom_up."))
            expected = before[key] if loaded is None else loaded
            assert torch.equal(tensor, expected), key
