"""``MVITV2.IMAGE_CHECKPOINT``: when image weights are inflated, and when they are not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fvcore.common.config import CfgNode

from mvitv2_slowfast import MViTv2
from tests import golden_data
from tests.compare import error, randomize
from tests.slowfast import toy
from tests.slowfast.launch import TINY, needs_pyslowfast, run_net, stats, write_config
from tests.slowfast_cfg import make_cfg

IMAGE = golden_data.load("slowfast_imagenet_patch_2d")["overrides"]
CLIP = {  # the clip model of the image model's structure: same strides, no class token
    **golden_data.load("slowfast_k400_s_like")["overrides"],
    "MVIT.CLS_EMBED_ON": False,
    "MVIT.POOL_KV_STRIDE_ADAPTIVE": IMAGE["MVIT.POOL_KV_STRIDE_ADAPTIVE"],
}


@pytest.fixture
def image(tmp_path: Path) -> tuple[MViTv2, Path]:
    """An image model with random weights, and its checkpoint as PySlowFast writes it."""
    model = MViTv2(make_cfg(IMAGE)).eval()
    randomize(model)
    path = tmp_path / "image.pyth"
    torch.save({"epoch": 3, "model_state": model.state_dict()}, path)
    return model, path


def clip_cfg(path: Path | str, **train: object) -> CfgNode:
    cfg = make_cfg(CLIP)
    cfg.MVITV2 = CfgNode({"IMAGE_CHECKPOINT": str(path)})
    cfg.TRAIN = CfgNode({"ENABLE": True, "AUTO_RESUME": True, "CHECKPOINT_FILE_PATH": ""} | train)
    cfg.OUTPUT_DIR = "none"
    return cfg


def test_a_still_clip_gives_the_image_models_output(image: tuple[MViTv2, Path]) -> None:
    model, path = image
    clips = MViTv2(clip_cfg(path)).eval().double()
    still = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)).double()
    frames = still[:, :, None].expand(-1, -1, 8, -1, -1)
    # The patch embedding pads time with zeros, so no frame has a cut-off centre: exact.
    assert error(clips([frames]), model.double()([still])) < 1e-9


def in_cache(path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a checkpoint where the official T lies once it was downloaded."""
    monkeypatch.setenv("TORCH_HOME", str(folder))
    (folder / "hub/checkpoints").mkdir(parents=True)
    path.rename(folder / "hub/checkpoints/MViTv2_T_in1k.pyth")


def test_official_weights_by_name(
    image: tuple[MViTv2, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = MViTv2(clip_cfg(image[1])).state_dict()
    in_cache(image[1], tmp_path / "cache", monkeypatch)
    loaded = MViTv2(clip_cfg("mvitv2://mvitv2_tiny_in1k")).state_dict()
    assert torch.equal(loaded["blocks.1.attn.qkv.weight"], expected["blocks.1.attn.qkv.weight"])
    assert torch.equal(loaded["patch_embed.proj.weight"], expected["patch_embed.proj.weight"])


@needs_pyslowfast
def test_pyslowfast_loads_official_weights_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``TRAIN.CHECKPOINT_FILE_PATH`` and its kind go through PySlowFast's path manager."""
    from slowfast.utils.checkpoint import load_checkpoint

    model, other = (randomize(MViTv2(make_cfg(CLIP)), seed) for seed in (0, 1))
    torch.save({"epoch": 3, "model_state": model.state_dict()}, tmp_path / "clips.pyth")
    in_cache(tmp_path / "clips.pyth", tmp_path / "cache", monkeypatch)
    load_checkpoint("mvitv2://mvitv2_tiny_in1k", other, data_parallel=False, epoch_reset=True)
    state = model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in other.state_dict().items())


def test_new_head_keeps_its_start(image: tuple[MViTv2, Path]) -> None:
    cfg = clip_cfg(image[1])
    cfg.MODEL.NUM_CLASSES = 11
    torch.manual_seed(0)
    start = MViTv2(make_cfg({**CLIP, "MODEL.NUM_CLASSES": 11})).head.projection.weight
    torch.manual_seed(0)
    assert torch.equal(MViTv2(cfg).head.projection.weight, start)


def test_not_when_only_testing(image: tuple[MViTv2, Path]) -> None:
    torch.manual_seed(0)
    start = MViTv2(make_cfg(CLIP)).state_dict()
    torch.manual_seed(0)
    tested = MViTv2(clip_cfg(image[1], ENABLE=False)).state_dict()
    assert all(torch.equal(start[name], tested[name]) for name in start)


def test_two_initialisations_are_refused(image: tuple[MViTv2, Path]) -> None:
    with pytest.raises(ValueError, match=r"IMAGE_CHECKPOINT and TRAIN\.CHECKPOINT_FILE_PATH"):
        MViTv2(clip_cfg(image[1], CHECKPOINT_FILE_PATH="video.pyth"))


def test_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises((ValueError, OSError), match=r"absent\.pyth"):
        MViTv2(clip_cfg(tmp_path / "absent.pyth"))


@needs_pyslowfast
@pytest.mark.slow
def test_through_the_trainer_and_resume_wins(tmp_path: Path) -> None:
    toy.make_kinetics(tmp_path / "data", train=4, val=4, test=4)
    image_cfg = make_cfg({f"{n}.{k}": v for n in ("MVIT", "MODEL") for k, v in TINY[n].items()})
    changes = {"PATCH_2D": True, "PATCH_KERNEL": [7, 7], "PATCH_STRIDE": [4, 4]}
    changes |= {"PATCH_PADDING": [3, 3], "CLS_EMBED_ON": False, "REL_POS_TEMPORAL": False}
    image_cfg.MVIT.update(changes | {"POOL_KVQ_KERNEL": [1, 3, 3]})
    image_cfg.DATA.update({"NUM_FRAMES": 1, "TRAIN_CROP_SIZE": 64, "INPUT_CHANNEL_NUM": [3]})
    model = randomize(MViTv2(image_cfg))
    path = tmp_path / "image.pyth"
    torch.save({"model_state": model.state_dict()}, path)
    # A learning rate of next to nothing shows the initial weights in the checkpoint.
    rates = {"BASE_LR": 1e-30, "COSINE_END_LR": 0.0, "WARMUP_EPOCHS": 0.0, "WEIGHT_DECAY": 0.0}
    still = {"SOLVER": rates, "MVITV2": {"IMAGE_CHECKPOINT": str(path)}}
    config = write_config(tmp_path, still, data=tmp_path / "data")
    output = run_net(config)
    assert output.count("inflated") > 1 and len(stats(output, "test_final")) == 1
    saved = tmp_path / "out/checkpoints/checkpoint_epoch_00001.pyth"
    weight = torch.load(saved, weights_only=True)["model_state"]["patch_embed.proj.weight"]
    image_weight = model.state_dict()["patch_embed.proj.weight"]
    assert torch.equal(weight[:, :, 1], image_weight)
    assert weight[:, :, 0].abs().max() < 1e-25 > weight[:, :, 2].abs().max()
    path.unlink()  # a resumed training must not even look for it
    output = run_net(config, "SOLVER.MAX_EPOCH", "2")
    assert [entry["epoch"] for entry in stats(output, "train_epoch")] == ["2/2"]
    assert "a checkpoint in OUTPUT_DIR wins" in output
