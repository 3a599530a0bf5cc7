"""PySlowFast's TensorBoard pictures and its ``pyav`` backend, through the launcher."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from mvitv2_slowfast import MViTv2
from mvitv2_slowfast.plugin import connect
from mvitv2_slowfast.visualization import feature_maps
from tests.slowfast.launch import needs_pyslowfast, run_net, stats, write_config
from tests.slowfast_cfg import BASE, make_cfg

LAYERS = ["patch_embed/proj", "blocks/1/attn/qkv", "blocks/2", "blocks/3/norm1"]


def test_feature_maps() -> None:
    tokens = torch.arange(2 * 13 * 5.0).reshape(2, 13, 5)
    maps = feature_maps((tokens, (3, 2, 2)))
    assert maps.shape == (2, 5, 3, 2, 2)
    # Cell (2, 1, 0) is the eleventh, and the class token stands in front.
    assert torch.equal(maps[:, :, 2, 1, 0], tokens[:, 1 + 10])
    assert torch.equal(feature_maps((tokens[:, 1:], (3, 2, 2))), maps)
    assert feature_maps(tokens) is tokens
    with pytest.raises(TypeError, match="must give a tensor, got dict"):
        feature_maps({})


@pytest.fixture(scope="module")
def kinetics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.slowfast import toy

    folder = tmp_path_factory.mktemp("kinetics") / "data"
    toy.make_kinetics(folder, train=4, val=2, test=2)
    return folder


def pictures(
    folder: Path, kinetics: Path, wrong: dict[str, bool], **options: Any
) -> tuple[str, Any]:
    """Output and events of ``tools/visualization.py`` on two clips, with initial weights."""
    node = {"ENABLE": True, "LAYER_LIST": LAYERS, "GRAD_CAM": {"ENABLE": False}, **options}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = write_config(
        folder,
        {
            "TRAIN": {"ENABLE": False},
            "TEST": {"ENABLE": False, "NUM_SPATIAL_CROPS": 1, "NUM_ENSEMBLE_VIEWS": 1},
            "TENSORBOARD": {"ENABLE": True, "MODEL_VIS": node, "WRONG_PRED_VIS": wrong},
        },
        data=kinetics,
    )
    output = run_net(config)
    (runs,) = (folder / "out").glob("runs-*")
    events = EventAccumulator(str(runs), size_guidance={"images": 0})
    events.Reload()
    return output, events


@needs_pyslowfast
def test_weights_activations_grad_cam_and_wrong_predictions(kinetics: Path, tmp_path: Path) -> None:
    output, events = pictures(
        tmp_path,
        kinetics,
        {"ENABLE": True},
        MODEL_WEIGHTS=True,
        ACTIVATIONS=True,
        GRAD_CAM={"ENABLE": True, "LAYER_LIST": ["blocks/2"]},
    )
    # Each cure is said once by the launcher; PySlowFast logs nothing of it.
    for line in (
        "get what they unpack",
        "without TENSORBOARD.CLASS_NAMES_PATH",
        "tokens are shown",
    ):
        assert output.count(line) == 1
    assert "Layer blocks/2 does not have weight attribute" in output
    tags = set(events.Tags()["images"])
    assert {f"Layer Weights/{layer}" for layer in LAYERS if layer != "blocks/2"} <= tags
    for clip in range(2):
        assert {f"Input {clip}/Activations: {layer}" for layer in LAYERS} <= tags
    assert "Class indices with wrong predictions: [" in output
    check_clips(events)


def check_clips(events: Any) -> None:
    """Both clips were written, as animations of the model's frames."""
    for clip in range(2):
        (picture,) = events.Images(f"Input {clip}/Pathway 1")
        with Image.open(io.BytesIO(picture.encoded_image_string)) as image:
            assert (image.size, image.n_frames) == ((64, 64), 4)


@needs_pyslowfast
@pytest.mark.slow
def test_input_video(kinetics: Path, tmp_path: Path) -> None:
    _, events = pictures(tmp_path, kinetics, {"ENABLE": False}, INPUT_VIDEO=True)
    check_clips(events)


@needs_pyslowfast
@pytest.mark.parametrize("cls_token", [True, False])
def test_grad_cam_is_its_definition(cls_token: bool) -> None:
    """PySlowFast's maps, against the paper's formula on the gradient of a block's tokens."""
    connect()
    from slowfast.visualization.gradcam_utils import GradCAM

    torch.manual_seed(0)
    changes = {"MVIT.CLS_EMBED_ON": cls_token, "MODEL.DROPOUT_RATE": 0.0}
    model = MViTv2(make_cfg({**BASE, **changes})).eval()
    size = (2, 3, BASE["DATA.NUM_FRAMES"], *[BASE["DATA.TRAIN_CROP_SIZE"]] * 2)
    clip = torch.randn(size)
    cam = GradCAM(model, ["blocks/2"], [0.45] * 3, [0.225] * 3)
    ((found,), preds) = cam._calculate_localization_map([clip])

    kept = []
    handle = model.blocks[2].register_forward_hook(lambda m, i, output: kept.append(output))
    score = model([clip]).max(dim=1).values
    handle.remove()
    ((tokens, thw),) = kept
    (gradient,) = torch.autograd.grad(score.sum(), tokens)
    grid = [t[:, int(cls_token) :].unflatten(1, thw) for t in (tokens, gradient)]
    weight = grid[1].mean(dim=(2, 3), keepdim=True)  # over H and W, for each frame
    expected = (weight * grid[0]).sum(dim=-1).relu().detach()[:, None]  # (B, 1, T, H, W)
    expected = F.interpolate(expected, size[2:], mode="trilinear", align_corners=False)
    low, high = (f(expected.flatten(1), dim=1) for f in (torch.amin, torch.amax))
    shape = (-1, 1, 1, 1, 1)
    expected = (expected - low.view(shape)) / (high - low + 1e-6).view(shape)
    assert found.max() > 0.5 and torch.allclose(found, expected, atol=1e-5)
    assert torch.equal(preds, model([clip]))
    # With a class token, nothing but it counts of the last block's tokens (docs/video.md).
    last = GradCAM(model, ["blocks/3"], [0.45] * 3, [0.225] * 3)
    ((empty,), _) = last._calculate_localization_map([clip])
    assert (empty.max() == 0) == cls_token


@needs_pyslowfast
def test_class_names() -> None:
    connect()
    from slowfast.visualization.prediction_vis import get_class_names

    names, parents, subset = get_class_names("")
    assert names[torch.tensor(4)] == "4" and parents is None and subset is None
    with pytest.raises(ValueError, match=r"TENSORBOARD\.CLASS_NAMES_PATH must be set"):
        get_class_names("", subset_path="some.txt")


@needs_pyslowfast
def test_pyav_backend(kinetics: Path, tmp_path: Path) -> None:
    backend = {"DATA": {"DECODING_BACKEND": "pyav"}}
    output = run_net(write_config(tmp_path, backend, data=kinetics))
    assert "Failed to" not in output
    assert len(stats(output, "train_epoch")) == len(stats(output, "test_final")) == 1


@needs_pyslowfast
def test_pyav_backend_reads_the_same_frames(kinetics: Path) -> None:
    connect()
    from slowfast.datasets import decoder, video_container

    path = str(kinetics / "videos" / "test_01.mp4")
    clips = []
    for backend in ("pyav", "torchvision"):
        container = video_container.get_video_container(path, backend=backend)
        frames, times, _ = decoder.decode(
            container, [4], [4], 1, 2, {}, target_fps=30, backend=backend, max_spatial_scale=32
        )
        clips.append(frames[0])
        # The second of two clips of 16 out of 48 frames starts half of the way to the last start.
        assert times[0, 0] == (48 - 16) / 2
    assert clips[0].shape == (4, 64, 64, 3)  # as the file has them
    assert clips[1].shape == (4, 32, 32, 3)
    small = F.interpolate(clips[0].permute(0, 3, 1, 2).float(), size=32, mode="area")
    assert (small - clips[1].permute(0, 3, 1, 2)).abs().mean() < 8  # the same moments
    frames, _, _ = decoder.decode(
        video_container.get_video_container(path), [4], [4], 1, 2, backend="pyav"
    )
    assert torch.equal(frames[0], clips[0])  # without a place for what was probed
