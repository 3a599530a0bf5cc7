"""Our backbone against detectron2's own class: same weights by name, both in float64."""

from functools import partial

import pytest
import torch
from torch import nn

from tests.compare import error, gradient_error, loss_of, randomize

pytest.importorskip("detectron2", reason="install detectron2 to run: make setup")
from detectron2.modeling import MViT as Official

from mvitv2_d2 import MViT

# Published depths, at reduced width; H and L cut to a third of their blocks per stage.
STRUCTURES = {
    "T": {"depth": 10, "last_block_indexes": (0, 2, 7, 9), "embed_dim": 16, "num_heads": 1},
    "S": {"depth": 16, "last_block_indexes": (0, 2, 13, 15), "embed_dim": 16, "num_heads": 1},
    "B": {"depth": 24, "last_block_indexes": (1, 4, 20, 23), "embed_dim": 8, "num_heads": 1},
    "L": {"depth": 48, "last_block_indexes": (1, 7, 43, 47), "embed_dim": 12, "num_heads": 2},
    "H": {"depth": 80, "last_block_indexes": (3, 11, 71, 79), "embed_dim": 12, "num_heads": 3},
}
SMALL = {"depth": 6, "last_block_indexes": (0, 2, 4, 5), "embed_dim": 16, "num_heads": 2}


def check(size: tuple[int, int], batch: int = 1, **kwargs: object) -> None:
    kwargs = {"norm_layer": partial(nn.LayerNorm, eps=1e-6), **kwargs}
    reference = randomize(Official(**kwargs).double())
    ours = MViT(**kwargs).double()
    ours.load_state_dict(reference.state_dict(), strict=True)
    assert ours.output_shape() == reference.output_shape()
    assert ours.size_divisibility == reference.size_divisibility
    image = torch.randn(batch, 3, *size, dtype=torch.float64, requires_grad=True)
    same = image.detach().clone().requires_grad_()
    expected, got = reference(image), ours(same)
    assert list(got) == list(expected)
    for name in expected:
        assert error(got[name], expected[name]) < 1e-9, name
    loss_of(expected).backward()
    loss_of(got).backward()
    assert gradient_error(ours, reference) < 1e-8
    assert error(same.grad, image.grad) < 1e-8


@pytest.mark.parametrize("name", STRUCTURES)
def test_variant_structures(name: str) -> None:
    check((64, 96), img_size=64, adaptive_window_size=16, **STRUCTURES[name])


@pytest.mark.parametrize("window", [56, 16, 8])
@pytest.mark.parametrize("size", [(96, 160), (97, 131), (33, 33), (224, 224), (15, 200), (4, 4)])
def test_sizes_and_windows(size: tuple[int, int], window: int) -> None:
    check(size, batch=2, adaptive_window_size=window, **SMALL)


@pytest.mark.parametrize(
    "options",
    [
        {"use_abs_pos": True, "pretrain_img_size": 64},
        {"use_abs_pos": True, "pretrain_use_cls_token": False, "use_rel_pos": False},
        {"residual_pooling": False, "qkv_bias": False, "mlp_ratio": 2.0},
        {"adaptive_kv_stride": 8, "img_size": 128},
        {"adaptive_kv_stride": 1, "in_chans": 3, "rel_pos_zero_init": False},
        {"patch_kernel": (16, 16), "patch_stride": (16, 16), "patch_padding": (0, 0)},
        {"qkv_pool_kernel": (5, 5), "norm_layer": nn.LayerNorm},
        {"out_features": ("scale3", "scale5")},
    ],
    ids=lambda options: ",".join(options),
)
def test_options(options: dict) -> None:
    check((97, 131), **{**SMALL, "adaptive_window_size": 16, **options})


def test_float32() -> None:
    """float32 stays within 1e-5 of float64's largest value."""
    kwargs = {**SMALL, "adaptive_window_size": 16}
    exact = randomize(MViT(**kwargs).double())
    single = MViT(**kwargs)
    single.load_state_dict(exact.state_dict())
    image = torch.randn(2, 3, 97, 131)
    for name, feature in exact(image.double()).items():
        assert error(single(image)[name].double(), feature) < 1e-5


def test_act_layer_is_used() -> None:
    """detectron2's class takes ``act_layer`` and builds GELU whatever it is: ours honours it."""
    model = MViT(**SMALL, act_layer=nn.ReLU)
    assert all(isinstance(block.mlp.act, nn.ReLU) for block in model.blocks)
