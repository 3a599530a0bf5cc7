"""Our backbone against detectron2's own class: same weights by name, both in float64."""

import pytest
import torch
from torch import nn

from tests.compare import error, randomize

pytest.importorskip("detectron2", reason="install detectron2 to run: make setup")
from mvitv2_d2 import MViT
from tests.d2.parity import SMALL, check

# Published depths, at reduced width; H and L cut to a third of their blocks per stage.
STRUCTURES = {
    "T": {"depth": 10, "last_block_indexes": (0, 2, 7, 9), "embed_dim": 16, "num_heads": 1},
    "S": {"depth": 16, "last_block_indexes": (0, 2, 13, 15), "embed_dim": 16, "num_heads": 1},
    "B": {"depth": 24, "last_block_indexes": (1, 4, 20, 23), "embed_dim": 8, "num_heads": 1},
    "L": {"depth": 48, "last_block_indexes": (1, 7, 43, 47), "embed_dim": 12, "num_heads": 2},
    "H": {"depth": 80, "last_block_indexes": (3, 11, 71, 79), "embed_dim": 12, "num_heads": 3},
}


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.usefixtures("forms")
def test_variant_structures(name: str) -> None:
    check((64, 96), img_size=64, adaptive_window_size=16, **STRUCTURES[name])


@pytest.mark.parametrize("window", [56, 16, 8])
@pytest.mark.parametrize("size", [(96, 160), (97, 131), (33, 33), (224, 224), (15, 200), (4, 4)])
@pytest.mark.usefixtures("forms")
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
@pytest.mark.usefixtures("forms")
def test_options(options: dict) -> None:
    check((97, 131), **{**SMALL, "adaptive_window_size": 16, **options})


@pytest.mark.usefixtures("forms")
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
