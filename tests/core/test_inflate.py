"""Image to clip and back: an inflated model sees in a still clip what the image model sees."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from mvitv2_core import (
    CheckpointError,
    MViTClassifier,
    MViTConfig,
    inflate_state_dict,
    load_checkpoint,
)
from mvitv2_core.checkpoint import convert_state_dict
from mvitv2_core.rel_pos import resample_table
from tests.compare import error, randomize
from tests.forms import attend_plain
from tests.structures import SIDE, small


def model(config: MViTConfig, seed: int = 0) -> nn.Module:
    return randomize(MViTClassifier(config).double().eval(), seed)


def still(image: Tensor, frames: int) -> Tensor:
    """(B, C, H, W) -> (B, C, frames, H, W) of one repeated frame."""
    return image.unsqueeze(2).expand(-1, -1, frames, -1, -1)


def picture(side: int = SIDE) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(2, 3, side, side, generator=generator, dtype=torch.float64)


def inflated(image: nn.Module, config: MViTConfig) -> nn.Module:
    state, _ = inflate_state_dict(image.state_dict(), config)
    clip = MViTClassifier(config).double().eval()
    clip.load_state_dict(state, strict=True)
    return clip


# Nominal frames of the inflated model, and frames that it sees: its tables in time are resampled.
@pytest.mark.parametrize(("nominal", "frames"), [(8, 8), (8, 2), (4, 9), (2, 16)])
@pytest.mark.parametrize("variant", ["T", "S", "B"])
def test_still_clip(variant: str, nominal: int, frames: int) -> None:
    image = model(small(variant))
    clip = inflated(image, small(variant, nominal))
    assert error(clip(still(picture(), frames)), image(picture())) < 1e-9


def test_still_clip_width_growing_in_the_mlp() -> None:
    image = model(small("T", in_att=False))
    clip = inflated(image, small("T", 8, in_att=False))
    assert error(clip(still(picture(), 8)), image(picture())) < 1e-9


@pytest.mark.parametrize("kind", ["none", "joint", "separate"])
def test_absolute_positions_are_not_inflated(kind: str) -> None:
    """No published image model has any: the tensor is named, whatever the clip model has."""
    image = model(small("T", abs_pos="joint")).state_dict()
    with pytest.raises(CheckpointError, match=r"\bpos_embed\b"):
        inflate_state_dict(image, small("T", 8, abs_pos=kind))
    with pytest.raises(CheckpointError, match=r"\bpos_embed\b"):
        load_checkpoint(MViTClassifier(small("T", 8, abs_pos=kind)), image)


@pytest.mark.parametrize("kind", ["joint", "separate"])
def test_absolute_positions_of_clips_have_no_centre_frame(kind: str) -> None:
    clip = model(small("T", 8, abs_pos=kind)).state_dict()
    for to in ("image", "detectron2", "timm"):
        with pytest.raises(CheckpointError, match=r"pos_embed.* cannot be converted"):
            convert_state_dict(clip, to)
    with pytest.raises(CheckpointError, match="pos_embed"):
        load_checkpoint(
            MViTClassifier(small("T", abs_pos="joint")), clip, allow_unused=("*.rel_pos_t",)
        )


@pytest.mark.parametrize("kind", ["joint", "separate"])
def test_absolute_positions_of_clips_load_as_they_are(kind: str) -> None:
    config = small("T", 8, abs_pos=kind, cls_token=True)
    state = model(config).state_dict()
    clip = MViTClassifier(config).double()
    assert load_checkpoint(clip, state).counts()["loaded"] == len(state)
    assert all(torch.equal(value, state[name]) for name, value in clip.state_dict().items())
    longer = MViTClassifier(small("T", 16, abs_pos=kind, cls_token=True))
    with pytest.raises(CheckpointError, match=r"pos_embed.*absolute positions are not resampled"):
        load_checkpoint(longer, state)


def test_moving_clip_differs() -> None:
    """The equality above is no accident of a model that ignores its input."""
    image = model(small("T"))
    clip = inflated(image, small("T", 8))
    moving = still(picture(), 8).clone()
    moving[:, :, 4:] += 0.1
    assert error(clip(moving), image(picture())) > 1e-3


@pytest.mark.parametrize("variant", ["T", "S", "B"])
def test_still_clip_with_class_token_and_one_temporal_cell(variant: str) -> None:
    image = model(small(variant, cls_token=True))
    clip = inflated(image, small(variant, 2, cls_token=True))
    assert error(clip(still(picture(), 2)), image(picture())) < 1e-9


def test_class_token_key_is_the_only_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    """With T temporal cells every key stands T times in the softmax, but the class token's once.
    Counting that key T times (log T on its logits) restores equality; without it there is none."""
    image = model(small("T", cls_token=True))
    clip = inflated(image, small("T", 8, cls_token=True))
    expected = image(picture())
    assert error(clip(still(picture(), 8)), expected) > 1e-6

    def counted(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        tables: list,
        q_thw: tuple,
        k_thw: tuple,
        cls_token: bool,
        add_q: bool,
        windows: None,
    ) -> Tensor:
        # One more class-token key and value per further frame.
        copies = k_thw[0] - 1 if len(k_thw) == 3 else 0
        extra = k[:, :1].expand(-1, copies, -1, -1), v[:, :1].expand(-1, copies, -1, -1)
        assert cls_token and add_q
        out = attend_with_extra(q, k, v, tables, q_thw, k_thw, extra)
        return torch.cat([out[:, :1], out[:, 1:] + q[:, 1:]], dim=1)

    monkeypatch.setattr("mvitv2_core.ops.attention", counted)
    assert error(image(picture()), expected) < 1e-12
    assert error(clip(still(picture(), 8)), expected) < 1e-9


def attend_with_extra(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tables: list,
    q_thw: tuple,
    k_thw: tuple,
    extra: tuple[Tensor, Tensor],
) -> Tensor:
    """Attention that counts the class token's key several times, from its share of the softmax."""
    more_k, more_v = extra
    if not more_k.shape[1]:
        return attend_plain(q, k, v, tables, q_thw, k_thw, True)
    inside = attend_plain(q, k, v, tables, q_thw, k_thw, True)
    cls_only = torch.zeros_like(v)
    cls_only[:, :1] = 1.0
    # Share of the class token's key among all, one number per query and head.
    share = attend_plain(q, k, cls_only, tables, q_thw, k_thw, True)[..., :1]
    count = more_k.shape[1]
    return (inside + count * share * more_v[:, :1]) / (1 + count * share)


@pytest.mark.parametrize("cls_token", [False, True])
@pytest.mark.parametrize("variant", ["T", "S", "B", "L"])
def test_centre_frame_gives_the_image_back(variant: str, cls_token: bool) -> None:
    config = small(variant, in_att=variant != "L", cls_token=cls_token)
    image = model(config).state_dict()
    clip_config = small(variant, 8, in_att=variant != "L", cls_token=cls_token)
    clip, _ = inflate_state_dict(image, clip_config)
    back, _ = convert_state_dict(clip, "image")
    assert set(back) == set(image)
    for name, value in image.items():
        assert torch.equal(back[name].view(torch.int64), value.view(torch.int64)), name


def test_inflated_tensors() -> None:
    image = model(small("T")).state_dict()
    state, entries = inflate_state_dict(image, small("T", 8))
    by_name = {entry.name: entry for entry in entries}
    kernel = state["patch_embed.proj.weight"]
    assert torch.equal(kernel[:, :, 1], image["patch_embed.proj.weight"])
    assert not kernel[:, :, [0, 2]].any()
    pool = state["blocks.3.attn.pool_k.weight"]
    assert torch.equal(pool[:, :, 1], image["blocks.3.attn.pool_k.weight"])
    assert not pool[:, :, [0, 2]].any()
    assert not state["blocks.0.attn.rel_pos_t"].any()
    kinds = {"patch_embed.proj.weight", "blocks.0.attn.pool_v.weight", "blocks.0.attn.rel_pos_t"}
    assert {by_name[name].status for name in kinds} == {"inflated"}
    assert by_name["blocks.0.attn.rel_pos_h"].status == "loaded"


def test_pools_with_a_time_axis_of_one_frame() -> None:
    """PySlowFast's own image models store their pools as (C, 1, 1, 3, 3)."""
    image = model(small("T")).state_dict()
    deep, _ = convert_state_dict(image, "slowfast")
    assert deep["blocks.0.attn.pool_q.weight"].shape == (8, 1, 1, 3, 3)
    assert deep["patch_embed.proj.weight"].ndim == 4
    expected, _ = inflate_state_dict(image, small("T", 8))
    got, _ = inflate_state_dict(deep, small("T", 8))
    assert set(got) == set(expected)
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_other_nominal_size() -> None:
    image = model(small("T", cls_token=True)).state_dict()
    state, entries = inflate_state_dict(image, small("T", 8, side=96, cls_token=True))
    table = image["blocks.1.attn.rel_pos_h"]
    rows = state["blocks.1.attn.rel_pos_h"].shape[0]
    assert rows != table.shape[0]
    assert torch.equal(state["blocks.1.attn.rel_pos_h"], resample_table(table, rows))
    assert {e.status for e in entries if "rel_pos_h" in e.name} == {"resampled"}


@pytest.mark.parametrize("has_row", [False, True])
@pytest.mark.parametrize("wants_row", [False, True])
@pytest.mark.parametrize("side", [SIDE, 96])
def test_absolute_positions_load_as_they_are_or_not_at_all(
    has_row: bool, wants_row: bool, side: int
) -> None:
    """No published file has any. The model resamples its table at run time, as detectron2 does."""
    image = model(small("T", abs_pos="joint", abs_pos_cls_row=has_row)).state_dict()
    other = MViTClassifier(small("T", side=side, abs_pos="joint", abs_pos_cls_row=wants_row))
    if side == SIDE and has_row == wants_row:
        assert "pos_embed" in load_checkpoint(other.double(), image).names("loaded")
        assert torch.equal(other.pos_embed, image["pos_embed"])
    else:
        shapes = r"pos_embed is \(1, \d+, \d+\) in the file and \(1, \d+, \d+\) in the model"
        with pytest.raises(CheckpointError, match=f"{shapes}.*absolute positions are not resam"):
            load_checkpoint(other, image)


def test_head_and_class_token_without_a_counterpart() -> None:
    image = model(small("T", num_classes=7)).state_dict()
    config = small("T", 8, cls_token=True)
    state, entries = inflate_state_dict(image, config)
    status = {(entry.name, entry.status) for entry in entries}
    assert ("cls_token", "new") in status and ("head.projection.weight", "new") in status
    assert ("head.projection.weight", "unused") in status
    assert not {"cls_token", "head.projection.weight", "head.projection.bias"} & set(state)
    clip = MViTClassifier(config).double()
    with pytest.raises(CheckpointError, match="cls_token"):
        load_checkpoint(clip, image, allow_new=("head",))
    report = load_checkpoint(clip, image, allow_new=("head", "cls_token"))
    assert set(report.names("new")) == {
        "cls_token",
        "head.projection.weight",
        "head.projection.bias",
    }


def test_structures_that_do_not_fit() -> None:
    image = model(small("T")).state_dict()
    with pytest.raises(
        CheckpointError, match=r"depths \[1, 2, 5, 2\].*the model is .*\[1, 2, 11, 2\]"
    ):
        inflate_state_dict(image, small("S", 8))
    clip, _ = inflate_state_dict(image, small("T", 8))
    with pytest.raises(CheckpointError, match="clip model's already"):
        inflate_state_dict(clip, small("T", 8))
    wide = replace(small("T", 8), num_classes=5, in_chans=4)
    with pytest.raises(CheckpointError, match="patch_embed"):
        inflate_state_dict(image, wide)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_resampled(dtype: torch.dtype) -> None:
    image = {n: v.to(dtype) for n, v in model(small("T")).state_dict().items()}
    state, _ = inflate_state_dict(image, small("T", 8, side=96))
    assert {value.dtype for value in state.values()} == {dtype}
