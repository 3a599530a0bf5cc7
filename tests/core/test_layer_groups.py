"""Which layer a parameter is of, and rates that fall from layer to layer, in float64."""

from __future__ import annotations

import pytest
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import LambdaLR

from mvitv2_core.layer_groups import layer_of, layer_scale
from mvitv2_core.training import scale_layers
from tests.loops import Detector, batches, loss, pair, same
from tests.small import KINDS


def test_layers_by_name() -> None:
    layers = {
        "patch_embed.proj.weight": 0,
        "cls_token": 0,
        "pos_embed": 0,
        "pos_embed_temporal": 0,
        "blocks.0.attn.rel_pos_h": 1,
        "blocks.11.norm1.bias": 12,
        "norm.weight": 17,
        "scale2_norm.weight": 17,
        "head.projection.bias": 17,
    }
    assert {name: layer_of(name, 16) for name in layers} == layers
    assert [layer_scale(name, 2, 0.5) for name in ("head.bias", "blocks.1.x", "blocks.0.x")] == [
        1.0,
        0.5,
        0.25,
    ]
    assert layer_scale("patch_embed.proj.bias", 2, 0.5) == 0.125
    with pytest.raises(ValueError, match=r"depth must be more than 2, the block of 'blocks\.2\.x'"):
        layer_of("blocks.2.x", 2)
    for decay in (0, 1.5, True, "0.9"):
        with pytest.raises(ValueError, match=r"decay must be in \(0, 1\]"):
            layer_scale("head.bias", 2, decay)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_is_in_one_group(kind: str) -> None:
    """Rates fall from the head to the patch embedding; weight decay stays as it was."""
    model = Detector(kind)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    optimizer = SGD([{"params": matrices, "weight_decay": 0.1}, {"params": vectors}], lr=0.3)
    scale_layers(optimizer, model, 0.5)
    found = {p: group for group in optimizer.param_groups for p in group["params"]}
    assert set(found) == set(model.parameters())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(found)
    for name, parameter in model.named_parameters():
        _, _, rest = name.partition("backbone.")
        expected = 0.3 * (layer_scale(rest, 3, 0.5) if rest else 1.0)
        assert found[parameter]["lr"] == expected, name
        assert found[parameter]["weight_decay"] == (0.1 if parameter.ndim > 1 else 0), name
    with pytest.raises(ValueError, match="model must be one that holds an MViT, got 'Linear'"):
        scale_layers(optimizer, model.neck, 0.5)


@pytest.mark.parametrize("make", [SGD, AdamW])
def test_layer_decay_is_a_rate_for_each_parameter(make: type) -> None:
    """Three steps under a schedule, against one plain optimizer for every parameter."""
    ours, plain = pair()
    optimizer = make(ours.parameters(), lr=1e-2, weight_decay=0.1)
    scale_layers(optimizer, ours, 0.7)
    schedule = LambdaLR(optimizer, lambda step: 1 / (1 + step))
    singles = []
    for name, parameter in plain.named_parameters():
        scale = layer_scale(name.removeprefix("backbone."), 3, 0.7) if "backbone" in name else 1
        singles.append(make([parameter], lr=1e-2 * scale, weight_decay=0.1))
    for step, batch in enumerate(batches(3)):
        for model in (ours, plain):
            model.zero_grad()
            loss(model, batch).backward()
        optimizer.step()
        schedule.step()
        for single in singles:
            single.step()
            single.param_groups[0]["lr"] *= (1 + step) / (2 + step)
    same(ours, plain)
