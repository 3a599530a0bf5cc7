"""What happens to a backbone around its arithmetic: building, freezing, copying, recomputing."""

from __future__ import annotations

import copy
import pickle
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.compare import error, loss_of, randomize
from tests.golden_data import official_state_dicts

pytest.importorskip("detectron2", reason="install detectron2 to run: make setup")

from detectron2 import model_zoo
from detectron2.config import LazyCall, instantiate
from detectron2.modeling import FPN
from detectron2.modeling import MViT as Official
from detectron2.modeling.backbone.fpn import LastLevelMaxPool

from mvitv2_d2 import MViT

SMALL: dict[str, Any] = {
    **{"depth": 7, "last_block_indexes": (0, 2, 4, 6), "embed_dim": 16, "num_heads": 2},
    **{"adaptive_window_size": 16, "norm_layer": partial(nn.LayerNorm, eps=1e-6)},
}
OFFICIAL = {
    "T": {"embed_dim": 96, "depth": 10, "num_heads": 1, "last_block_indexes": (0, 2, 7, 9)},
    "S": {"embed_dim": 96, "depth": 16, "num_heads": 1, "last_block_indexes": (0, 2, 13, 15)},
    "B": {"embed_dim": 96, "depth": 24, "num_heads": 1, "last_block_indexes": (1, 4, 20, 23)},
    "L": {"embed_dim": 144, "depth": 48, "num_heads": 2, "last_block_indexes": (1, 7, 43, 47)},
    "H": {"embed_dim": 192, "depth": 80, "num_heads": 3, "last_block_indexes": (3, 11, 71, 79)},
}
# detectron2's projects/MViTv2 and the model zoo; published backbone sizes.
PARAMETERS = {
    **{"T": 23_405_664, "S": 34_102_560, "B": 50_705_088, "L": 212_484_384, "H": 665_345_408},
}


def shapes(model: nn.Module) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in model.state_dict().items()}


def test_every_official_backbone_is_covered() -> None:
    names = {name for name in official_state_dicts() if name.startswith("detectron2/")}
    assert names == {f"detectron2/d2_{name}" for name in OFFICIAL}


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_names_shapes_and_parameters(name: str) -> None:
    """Built on the meta device: H alone would take 2.7 GB."""
    golden = official_state_dicts()[f"detectron2/d2_{name}"]
    with torch.device("meta"):
        model = MViT(**OFFICIAL[name])
    assert all(parameter.is_meta for parameter in model.parameters())
    assert shapes(model) == golden["state"]
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == golden["params"] == PARAMETERS[name]


def test_official_lazy_config_builds_with_our_class() -> None:
    """The backbone of detectron2's projects/MViTv2 mask_rcnn_mvitv2_t_3x.py, retyped."""
    model = model_zoo.get_config("common/models/mask_rcnn_fpn.py").model
    model.backbone.bottom_up = LazyCall(MViT)(
        embed_dim=96,
        depth=10,
        num_heads=1,
        last_block_indexes=(0, 2, 7, 9),
        residual_pooling=True,
        drop_path_rate=0.2,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        out_features=("scale2", "scale3", "scale4", "scale5"),
    )
    model.backbone.in_features = "${.bottom_up.out_features}"
    built = instantiate(model)
    bottom_up = built.backbone.bottom_up
    assert sum(parameter.numel() for parameter in bottom_up.parameters()) == PARAMETERS["T"]
    assert shapes(bottom_up) == official_state_dicts()["detectron2/d2_T"]["state"]
    assert built.backbone.size_divisibility == 32


STAGES = ((0,), (1, 2), (3, 4), (5, 6))


@pytest.mark.parametrize("freeze_at", range(6))
def test_freeze_by_stage(freeze_at: int) -> None:
    model = MViT(**SMALL, use_abs_pos=True)
    assert model.freeze(freeze_at) is model
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    prefixes = ["patch_embed.", "pos_embed"][: 2 * (freeze_at > 0)]
    for stage in range(max(freeze_at - 1, 0)):
        prefixes += [f"scale{stage + 2}_norm.", *(f"blocks.{i}." for i in STAGES[stage])]
    expected = {n for n, _ in model.named_parameters() if n.startswith(tuple(prefixes))}
    assert frozen == expected
    if freeze_at < 5:
        loss_of(model(torch.randn(1, 3, 64, 64))).backward()
        got = {name for name, p in model.named_parameters() if p.grad is not None}
        assert got == set(dict(model.named_parameters())) - expected


@pytest.mark.parametrize(
    ("features", "blocks"),
    [(("scale2",), 1), (("scale3",), 3), (("scale2", "scale4"), 5), (("scale5",), 7)],
)
def test_only_needed_blocks(features: tuple[str, ...], blocks: int) -> None:
    """The rest is neither built nor run, so that DDP finds no parameter without gradient."""
    full, model = randomize(MViT(**SMALL)), MViT(**SMALL, out_features=features)
    assert len(model.blocks) == blocks
    missing, _ = model.load_state_dict(full.state_dict(), strict=False)
    assert not missing
    image = torch.randn(2, 3, 80, 112)
    outputs = model(image)
    assert tuple(outputs) == features == tuple(model.output_shape())
    for name, feature in full(image).items():
        if name in features:
            assert torch.equal(feature, outputs[name])
    loss_of(outputs).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_output_shape_matches_outputs() -> None:
    model = MViT(**SMALL)
    assert model.size_divisibility == 0
    for name, feature in model(torch.randn(1, 3, 70, 100)).items():
        spec = model.output_shape()[name]
        sizes = (1, spec.channels, -(-70 // spec.stride), -(-100 // spec.stride))
        assert feature.shape == sizes


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("act_checkpoint", [False, True])
def test_copies_are_independent(copier: Any, act_checkpoint: bool) -> None:
    """deepcopy (EMA) and pickle (workers), also after a forward and with checkpointing."""
    model = randomize(MViT(**SMALL, use_act_checkpoint=act_checkpoint))
    image = torch.randn(1, 3, 64, 96)
    before = model(image)
    twin = copier(model)
    for name, feature in twin(image).items():
        assert torch.equal(feature, before[name])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    for name, feature in twin(image).items():
        assert torch.equal(feature, before[name])


@pytest.mark.parametrize("use_fpn", [False, True])
def test_batch_of_none(use_fpn: bool) -> None:
    model: nn.Module = MViT(**SMALL)
    if use_fpn:
        names = ["scale2", "scale3", "scale4", "scale5"]
        model = FPN(model, names, 8, top_block=LastLevelMaxPool())
    outputs = model(torch.zeros(0, 3, 64, 96))
    assert all(feature.shape[0] == 0 and feature.ndim == 4 for feature in outputs.values())
    loss_of(outputs).backward()


def test_norms_without_bias() -> None:
    model = MViT(**{**SMALL, "norm_layer": partial(nn.LayerNorm, eps=1e-6, bias=False)})
    assert not any(".norm" in name and "bias" in name for name in model.state_dict())
    loss_of(model(torch.randn(1, 3, 64, 96))).backward()


def test_act_checkpoint_changes_no_gradient() -> None:
    """Bit for bit, drop path included: recomputing restores the random state."""
    image = torch.randn(2, 3, 80, 112)
    grads = []
    for act_checkpoint in (False, True):
        model = MViT(**SMALL, drop_path_rate=0.3, use_act_checkpoint=act_checkpoint)
        randomize(model).train()
        torch.manual_seed(1)
        loss_of(model(image)).backward()
        grads.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("act_checkpoint", [False, True])
def test_bfloat16_autocast_is_as_close_as_detectron2s(act_checkpoint: bool) -> None:
    """Autocast may cost outputs and gradients no more accuracy than it costs detectron2's class."""
    torch.manual_seed(0)
    model, reference = MViT(**SMALL, use_act_checkpoint=act_checkpoint), Official(**SMALL)
    reference.load_state_dict(model.state_dict())
    image = torch.randn(2, 3, 96, 160)
    ours, theirs = autocast_errors(model, image), autocast_errors(reference, image)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert 0 < value < 1.5 * theirs[name] < 0.15, name


def autocast_errors(model: nn.Module, image: Tensor) -> dict[str, float]:
    """bfloat16's error relative to float32: of each output's maximum, of the gradients' norm."""

    def gradients() -> Tensor:
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    exact = model(image)
    loss_of(exact).backward()
    wanted = gradients()
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(image)
    loss_of(outputs).backward()
    errors = {name: error(outputs[name].float(), exact[name]) for name in exact}
    return {**errors, "gradients": ((gradients() - wanted).norm() / wanted.norm()).item()}


def test_channels_last_input_changes_nothing() -> None:
    model = randomize(MViT(**SMALL))
    image = torch.randn(2, 3, 64, 96)
    expected = model(image)
    for name, feature in model(image.to(memory_format=torch.channels_last)).items():
        assert error(feature, expected[name]) < 1e-5
