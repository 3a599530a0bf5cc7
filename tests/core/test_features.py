"""Features between the stages: equal to what hooks see and to timm's, and layers in groups."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mvitv2_core import (
    MViT,
    MViTClassifier,
    MViTConfig,
    MViTFeatures,
    create_model,
    feature_grid,
    layer_decay_groups,
)
from mvitv2_core.checkpoint.formats import from_project
from mvitv2_core.feature_maps import features_of
from mvitv2_core.features import FORMATS
from tests.compare import randomize
from tests.small import KINDS, small_input, small_model, stage_blocks

F64 = torch.float64


def hooked(model: Any, x: Tensor) -> tuple[list[tuple[Tensor, tuple[int, ...]]], Tensor]:
    """What hooks see: every stage's last block's output, and the input of the head's norm."""
    seen: list[tuple[Tensor, tuple[int, ...]]] = []
    handles = [
        model.get_submodule(name).register_forward_hook(lambda *call: seen.append(call[-1]))
        for name in model.feature_info.module_name()
    ]
    output = model(x)
    for handle in handles:
        handle.remove()
    return seen, output


def by_hand(tokens: Tensor, thw: tuple[int, ...]) -> Tensor:
    """(B, N, C) -> (B, C, *thw), cell by cell."""
    extra = tokens.shape[1] - prod(thw)
    return torch.stack(list(tokens[:, extra:].unbind(1)), dim=-1).view(len(tokens), -1, *thw)


@pytest.mark.parametrize("stray", [0, 8], ids=["nominal size", "another size"])
@pytest.mark.parametrize("kind", KINDS)
def test_features_are_what_hooks_see(kind: str, stray: int, tally: Callable[..., None]) -> None:
    model = small_model(kind).double().eval()
    x = small_input(kind, dtype=F64)
    x = nn.functional.pad(x, (0, stray, 0, stray)) if stray else x
    seen, logits = hooked(model, x)
    last, maps = model.forward_intermediates(x)
    tokens = model.forward_intermediates(x, output_fmt="NLC", intermediates_only=True)
    assert len(maps) == len(tokens) == len(seen) == 2
    for (expected, thw), found, row in zip(seen, maps, tokens, strict=True):
        assert torch.equal(found, by_hand(expected, thw)) and torch.equal(row, expected)
        assert torch.equal(feature_grid(row, thw), found)
    assert torch.equal(last, model.norm(seen[-1][0]))
    assert torch.equal(model.forward_features(x), last)
    assert [len(model.forward_intermediates(x, 1)[1]), len(maps)] == [1, 2]
    if not model.config.mean_pooling:
        pooled = last[:, 0] if model.config.cls_token else last.mean(dim=1)
        assert torch.equal(model.head(pooled), logits)
    tally("features equal to what hooks see", len(seen))


@pytest.mark.parametrize("kind", KINDS)
def test_arguments(kind: str) -> None:
    model, x = small_model(kind).double().eval(), small_input(kind, dtype=F64)
    whole = model.forward_intermediates(x, intermediates_only=True)
    normed = model.forward_intermediates(x, norm=True, intermediates_only=True)
    assert torch.equal(normed[0], whole[0])  # as timm: the norm is that of the last stage
    thw = normed[1].shape[2:]
    assert torch.equal(normed[1], feature_grid(model.forward_features(x), thw))
    for indices, chosen in ((0, None), (1, [1]), ([0], [0]), ([-1, 0], [0, 1]), ((-2,), [0])):
        if chosen is None:
            continue
        got = model.forward_intermediates(x, indices, intermediates_only=True)
        assert all(torch.equal(a, whole[i]) for a, i in zip(got, chosen, strict=True)), indices
    ran: list[int] = []
    for index, block in enumerate(model.blocks):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
    tokens, early = model.forward_intermediates(x, [0], stop_early=True)
    assert ran == [0] and torch.equal(early[0], whole[0])
    assert torch.equal(feature_grid(tokens, early[0].shape[2:]), early[0])
    ran.clear()
    model.forward_intermediates(x, [0])
    assert ran == [0, 1, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"indices": 0}, "indices must be the last 1 to 2"),
        ({"indices": 3}, "indices must be the last 1 to 2"),
        ({"indices": [2]}, "stages from -2 to 1"),
        ({"indices": []}, "stages from -2 to 1"),
        ({"indices": "all"}, "stages from -2 to 1"),
        ({"output_fmt": "NCTHW"}, "NCHW, NLC or, for clips, NCTHW"),
        ({"output_fmt": "NHWC"}, "NCHW, NLC or, for clips, NCTHW"),
        ({"norm": 1}, "norm must be True or False"),
        ({"stop_early": None}, "stop_early must be"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_model("image").forward_intermediates(small_input("image"), **options)


def test_a_bare_trunk_has_no_norm() -> None:
    trunk, x = MViT(small_model("image").config), small_input("image")
    assert torch.equal(trunk.forward_features(x), trunk(x)[-1][0])
    with pytest.raises(ValueError, match="norm must be False"):
        trunk.forward_intermediates(x, norm=True)
    with pytest.raises(ValueError, match="thw must be the grid of 80 tokens"):
        feature_grid(torch.zeros(1, 80, 4), (8, 9))
    clip = small_model("clip with class token")
    formats = [clip.forward_intermediates(small_input("clip with class token"), output_fmt=f)[1]
               for f in FORMATS]  # fmt: skip
    assert torch.equal(formats[0][1], formats[1][1]) and formats[0][1].ndim == 5
    assert formats[2][1].shape[1] == 1 + prod(formats[0][1].shape[2:])


@pytest.mark.parametrize("in_att", [True, False])
def test_equal_to_timm(in_att: bool) -> None:
    """Features, arguments and ``feature_info``, on shared weights."""
    mvitv2 = pytest.importorskip("timm.models.mvitv2", reason="install timm to run")
    cfg = mvitv2.MultiScaleVitCfg((1, 2, 2, 1), embed_dim=16, expand_attn=in_att)
    theirs = mvitv2.MultiScaleVit(cfg, img_size=(32, 32), num_classes=3)
    theirs = randomize(theirs.double()).eval()
    blocks = stage_blocks((1, 2, 2, 1), 16, 1, (8, 8), (4, 4), dim_mul_in_att=in_att)
    config = replace(MViTConfig.variant("T", (32, 32), num_classes=3), blocks=blocks)
    ours = MViTClassifier(config).double().eval()
    _, names = from_project(ours.state_dict(), "timm")
    held = theirs.state_dict()
    ours.load_state_dict({n: held[t].view(ours.state_dict()[n].shape) for n, t in names.items()})
    x = torch.randn(2, 3, 32, 32, dtype=F64, generator=torch.Generator().manual_seed(0))
    options: list[dict[str, Any]] = [{}, {"indices": 2, "norm": True}, {"indices": [0, -1]}]
    options += [{"indices": [1], "stop_early": True}, {"output_fmt": "NLC", "norm": True}]
    close = {"rtol": 0, "atol": 1e-9}
    with torch.no_grad():
        torch.testing.assert_close(ours.forward_features(x), theirs.forward_features(x), **close)
        for option in options:
            got, expected = (m.forward_intermediates(x, **option) for m in (ours, theirs))
            torch.testing.assert_close(got, expected, **close)
            alone = ours.forward_intermediates(x, **option, intermediates_only=True)
            torch.testing.assert_close(alone, expected[1], **close)
    rows = [(row["num_chs"], row["reduction"]) for row in theirs.feature_info]
    info = ours.feature_info
    assert list(zip(info.channels(), info.reduction(), strict=True)) == rows
    assert info.channels(1) == rows[1][0] and info.reduction([0, 3]) == [rows[0][1], rows[3][1]]


def test_feature_info_of_clips() -> None:
    with torch.device("meta"):
        info = create_model("mvitv2_small_16x4_k400").feature_info
    assert info.channels() == [96, 192, 384, 768] and info.reduction() == [4, 8, 16, 32]
    assert info.reduction_time() == [2] * 4 and info[3]["reductions"] == (2, 32, 32)
    assert info.module_name() == ["blocks.0", "blocks.2", "blocks.13", "blocks.15"]
    assert len(info) == 4 and [row["index"] for row in info] == [0, 1, 2, 3]
    assert small_model("image").feature_info.reduction_time() == [1, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_features_only(kind: str) -> None:
    """The trunk on the classifier's tensors, as far as the stages asked for need it."""
    whole, x = small_model(kind).eval(), small_input(kind)
    expected = whole.forward_intermediates(x, intermediates_only=True)
    for out_indices, chosen in ((None, (0, 1)), ([-1, 0], (0, 1)), (1, (1,)), ([0], (0,))):
        model = features_of(whole, out_indices)
        assert isinstance(model, MViTFeatures) and not model.training
        assert model.out_indices == chosen and set(model.state_dict()) < set(whole.state_dict())
        assert len(model.blocks) == whole.config.stage_ends[chosen[-1]] + 1
        got = model(x)
        assert [m.shape[1] for m in got] == model.feature_info.channels()
        for found, index in zip(got, chosen, strict=True):
            assert torch.equal(found, expected[index])
    assert all(p.requires_grad and not p.is_meta for p in model.parameters())
    assert not any(key.startswith(("head", "norm")) for key in model.state_dict())
    model(x)[0].sum().backward()
    assert model.patch_embed.proj.weight.grad is whole.patch_embed.proj.weight.grad is not None


def test_norms_without_bias() -> None:
    """A classifier's and a trunk's, whose first values are set norm by norm."""
    config, x = small_model("image").config, small_input("image")
    norm_layer = partial(nn.LayerNorm, eps=1e-6, bias=False)
    for model in (cls(config, norm_layer=norm_layer) for cls in (MViTClassifier, MViTFeatures)):
        norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
        assert norms and all(norm.bias is None and norm.weight.eq(1).all() for norm in norms)
        model(x)[-1].sum().backward()
        assert model.blocks[0].norm1.weight.grad is not None


def test_features_only_by_name(tmp_path: Path) -> None:
    whole = randomize(create_model("mvitv2_tiny", num_classes=7)).eval()
    torch.save({"model_state": whole.state_dict()}, tmp_path / "w.pyth")
    options: dict[str, Any] = {"weights": tmp_path / "w.pyth", "num_classes": 7}
    model = create_model("mvitv2_tiny", features_only=True, out_indices=(1, 2), **options)
    assert len(model.blocks) == 8 and model.info == whole.info and not model.training
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = whole.forward_intermediates(x, [1, 2], intermediates_only=True)
        assert all(torch.equal(a, b) for a, b in zip(model(x), expected, strict=True))
    with pytest.raises(ValueError, match="out_indices must be None without features_only"):
        create_model("mvitv2_tiny", out_indices=[1])
    with pytest.raises(ValueError, match="stages from -4 to 3"):
        create_model("mvitv2_tiny", features_only=True, out_indices=[4])


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_has_one_layer(kind: str) -> None:
    model = small_model(kind)
    groups = model.layer_groups()
    assert sorted(chain(*groups)) == sorted(name for name, _ in model.named_parameters())
    assert len(groups) == 1 + 3 + 1 and len(model.layer_groups(coarse=True)) == 1 + 2 + 1
    assert {name.split(".")[0] for name in groups[0]} >= {"patch_embed"}
    assert all(name.startswith("blocks.0.") for name in groups[1])
    head = {"head.projection.weight", "head.projection.bias"}
    assert set(groups[4]) == head | {"norm.weight", "norm.bias"}
    assert "norm.weight" in model.layer_groups(coarse=True)[2]


def test_layer_decay_is_timms() -> None:
    """timm's own optimizer groups of our model, by block, and of its model, by stage."""
    optim = pytest.importorskip("timm.optim", reason="install timm to run")
    model = small_model("clip with class token")
    model.blocks[1].requires_grad_(False)
    names = {parameter: name for name, parameter in model.named_parameters()}
    tables = ("rel_pos", "pos_embed", "cls_token")
    excluded = [n for n in names.values() if n.split(".")[-1].startswith(tables)]
    expected = optim.param_groups_layer_decay(
        model, weight_decay=0.1, layer_decay=0.5, no_weight_decay_list=excluded
    )
    rows = {
        names[p]: (group["lr_scale"], group["weight_decay"])
        for group in expected
        for p in group["params"]
    }
    groups = layer_decay_groups(model, 1e-3, 0.5, 0.1)
    found = {names[p]: (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert found == rows and not any(name.startswith("blocks.1.") for name in rows)
    assert all(g["lr"] == 1e-3 * g["lr_scale"] for g in groups)
    assert found["patch_embed.proj.weight"][0] == 0.5**4 and found["norm.weight"] == (1.0, 0.0)
    torch.optim.AdamW(groups)
    with pytest.raises(ValueError, match=r"decay must be in \(0, 1\]"):
        layer_decay_groups(model, 1e-3, 0.0)
    # timm's own model has as many layers as our coarse ones.
    from timm.models._manipulate import group_parameters

    timm = pytest.importorskip("timm", reason="install timm to run")
    with torch.device("meta"):
        theirs = timm.create_model("mvitv2_tiny", num_classes=3, img_size=32)
        ours = create_model("mvitv2_tiny", num_classes=3, input_size=32)
    stages = group_parameters(theirs, theirs.group_matcher())
    sizes = [len(names) for _, names in sorted(stages.items())]
    assert [len(names) for names in ours.layer_groups(coarse=True)] == sizes
