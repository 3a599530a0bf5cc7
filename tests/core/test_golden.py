"""Outputs, train-mode logits and gradient norms of the official classes, from golden files."""

import pytest
import torch

from mvitv2_core import BlockSpec, MViTClassifier, MViTConfig
from tests import golden_data


def config_of(case: dict) -> MViTConfig:
    """Our config for a golden case: four blocks, q strided in blocks 1 and 3."""
    get = {key.split(".")[-1]: value for key, value in case["overrides"].items()}.get
    rank = 2 if len(case["input_shape"]) == 4 and not get("PATCH_2D") else 3
    crop, frames = get("TRAIN_CROP_SIZE"), get("NUM_FRAMES", 1)
    patch_stride = (2, 4, 4)[-rank:]
    patch_rank = 2 if rank == 2 or get("PATCH_2D") else 3
    size = (frames, crop, crop)[-rank:]
    grid = ((frames if patch_rank == 2 else frames // 2), crop // 4, crop // 4)[-rank:]
    in_att, kernel = get("DIM_MUL_IN_ATT"), tuple(get("POOL_KVQ_KERNEL"))
    q_strides = {i: tuple(stride) for i, *stride in get("POOL_Q_STRIDE")}
    dim, heads, stride_kv, blocks = (
        get("EMBED_DIM"),
        get("NUM_HEADS"),
        get("POOL_KV_STRIDE_ADAPTIVE"),
        [],
    )
    for i in range(4):
        stride_q = q_strides.get(i, (1,) * rank)
        heads *= 2 if i in (1, 3) else 1
        dim_out = dim * 2 if (i if in_att else i + 1) in (1, 3) else dim
        stride_kv = [max(kv // q, 1) for kv, q in zip(stride_kv, stride_q, strict=True)]
        kernel_q = kernel if i in q_strides else None
        att = dim_out if in_att else dim
        block = BlockSpec(
            dim, att, dim_out, heads, grid, stride_q, tuple(stride_kv), kernel_q, kernel
        )
        blocks.append(block)
        dim, grid = dim_out, block.thw_out
    spatial = get("REL_POS_SPATIAL", True)
    positions = (get("REL_POS_TEMPORAL", False), spatial, spatial)[-rank:]
    return MViTConfig(
        blocks=tuple(blocks),
        input_size=size,
        patch_kernel=(3, 7, 7)[-patch_rank:],
        patch_stride=patch_stride[-patch_rank:],
        patch_padding=(1, 3, 3)[-patch_rank:],
        mlp_ratio=get("MLP_RATIO"),
        cls_token=get("CLS_EMBED_ON", False),
        abs_pos=("separate" if get("SEP_POS_EMBED") else "joint") if get("USE_ABS_POS") else "none",
        rel_pos=positions,
        residual_pooling=get("RESIDUAL_POOLING", True),
        num_classes=get("NUM_CLASSES"),
        mean_pooling=get("USE_MEAN_POOLING", False),
    )


CASES = [n for n in golden_data.names("") if n != "slowfast_ava_detection_head"]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("forms")
def test_golden(name: str) -> None:
    case = golden_data.load(name)
    model = MViTClassifier(config_of(case)).eval()
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert shapes == case["state"]
    model.load_state_dict(golden_data.weights(case["state"]), strict=True)
    logits = model(golden_data.clip(name, case["input_shape"]))
    assert (logits - torch.tensor(case["train_logits"])).abs().max() < 1e-5
    assert (logits.softmax(dim=1) - torch.tensor(case["output"])).abs().max() < 1e-5
    (logits**2).sum().backward()
    norms = case["grad_norm_of_sum_of_squared_train_logits"]
    # Some gradients are zero but for rounding (a bias of k shifts all logits of a query alike).
    noise = torch.finfo(torch.float32).eps * max(norms.values())
    for key, parameter in model.named_parameters():
        norm = parameter.grad.norm().item()
        assert norm == pytest.approx(norms[key], rel=1e-4, abs=noise), key


OFFICIAL = golden_data.official_state_dicts()
IMAGES = {
    "mvit/image_T_in1k": ("T", {}),
    "mvit/image_S_in1k": ("S", {}),
    "mvit/image_B_in1k": ("B", {}),
    "mvit/image_L_in1k": ("L", {"dim_mul_in_att": False}),
    "mvit/image_B_cls_in21k_19168": ("B", {"cls_token": True, "num_classes": 19168}),
    "mvit/image_L_cls_in21k_19168": ("L", {"cls_token": True, "num_classes": 19168}),
    "mvit/image_H_cls_in21k_19168": ("H", {"cls_token": True, "num_classes": 19168}),
}


def test_every_official_image_model_is_listed() -> None:
    assert set(IMAGES) == {name for name in OFFICIAL if name.startswith("mvit/")}


@pytest.mark.parametrize("name", IMAGES)
def test_official_state_dicts(name: str) -> None:
    variant, options = IMAGES[name]
    with torch.device("meta"):
        model = MViTClassifier(MViTConfig.variant(variant, **options))
    state = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert state == OFFICIAL[name]["state"]
    assert sum(p.numel() for p in model.parameters()) == OFFICIAL[name]["params"]
