"""Cures for PySlowFast's TensorBoard pictures: clips, class names, activations, Grad-CAM."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import io
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def cure_clip_pictures() -> str | None:
    """Write TensorBoard's clips with Pillow where moviepy's editor, which 2.0 dropped, is missing.

    PyTorch's ``SummaryWriter.add_video`` prints a line and writes nothing without it.

    Returns:
        What was done, in one line; None where nothing was needed.
    """
    from torch.utils.tensorboard import summary

    try:
        there = importlib.util.find_spec("moviepy.editor") is not None
    except ModuleNotFoundError:  # no moviepy
        there = False
    if there or summary.make_video is gif:
        return None
    summary.make_video = gif
    return "torch.utils.tensorboard: clips are written with Pillow, there is no moviepy.editor"


def gif(tensor: Any, fps: float) -> Any:
    """(T, H, W, 3) uint8 array -> TensorBoard's image, moving at ``fps`` frames a second."""
    from PIL import Image
    from tensorboard.compat.proto.summary_pb2 import Summary

    first, *others = (Image.fromarray(frame) for frame in tensor)
    stream = io.BytesIO()
    first.save(
        stream, "GIF", save_all=True, append_images=others, duration=round(1000 / fps), loop=0
    )
    _, height, width, channels = tensor.shape
    return Summary.Image(
        height=height, width=width, colorspace=channels, encoded_image_string=stream.getvalue()
    )


def cure_class_names() -> str | None:
    """Let classes be called by their numbers where ``TENSORBOARD.CLASS_NAMES_PATH`` is empty.

    Returns:
        What was done, in one line; None where nothing was needed.
    """
    from slowfast.visualization import prediction_vis, video_visualizer

    original = video_visualizer.get_class_names
    if hasattr(original, "_mvitv2_numbers"):
        return None

    @functools.wraps(original)
    def get_class_names(path: str, parent_path: Any = None, subset_path: Any = None) -> Any:
        if path:
            return original(path, parent_path, subset_path)
        if subset_path:
            raise ValueError(
                "TENSORBOARD.CLASS_NAMES_PATH must be set to choose classes by name, got "
                f"SUBSET_PATH={subset_path!r}"
            )
        return ClassNumbers(), None, None

    get_class_names._mvitv2_numbers = True  # type: ignore[attr-defined]
    video_visualizer.get_class_names = prediction_vis.get_class_names = get_class_names
    return "slowfast.visualization: without TENSORBOARD.CLASS_NAMES_PATH classes are numbers"


class ClassNumbers:
    """In the place of a list of class names: each class is called by its number."""

    def __getitem__(self, index: int) -> str:
        """``index`` may be a tensor of one element."""
        return str(int(index))


def cure_layer_outputs() -> str | None:
    """Let a block be a layer of ``MODEL_VIS.LAYER_LIST`` and ``GRAD_CAM.LAYER_LIST``.

    Upstream wants a tensor from the layer, for Grad-CAM of (B, C, T, H, W). A block gives its
    tokens and their grid: they are shown as that, without the class token.

    Returns:
        What was done, in one line; None where it had been done already.
    """
    from slowfast.visualization import gradcam_utils, utils

    activations, gradcam = utils.GetWeightAndActivation, gradcam_utils.GradCAM
    if hasattr(gradcam, "_mvitv2_blocks"):
        return None

    def kept(output: Any) -> Tensor:
        # Contiguous, since upstream takes views of it.
        return feature_maps(output).detach().clone(memory_format=torch.contiguous_format)

    def keep_activations(self: Any, layer_name: str) -> None:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            self.hooks[layer_name] = kept(output)

        utils.get_layer(self.model, layer_name).register_forward_hook(hook)

    def keep_gradients(self: Any, layer_name: str) -> None:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            self.activations[layer_name] = kept(output)
            tensor = output if isinstance(output, Tensor) else output[0]
            if tensor.requires_grad:
                tensor.register_hook(functools.partial(keep, output))

        def keep(output: Any, gradient: Tensor) -> None:
            of = gradient if isinstance(output, Tensor) else (gradient, output[1])
            self.gradients[layer_name] = kept(of)

        utils.get_layer(self.model, layer_name).register_forward_hook(hook)

    activations._register_single_hook = keep_activations
    gradcam._register_single_hook = keep_gradients
    gradcam._mvitv2_blocks = True
    return "slowfast.visualization: a block's tokens are shown on their grid, also by Grad-CAM"


def feature_maps(output: Any) -> Tensor:
    """What a layer gave, as a picture can show it.

    Args:
        output: a tensor, which stays as it is, or a block's (B, N, C) tokens and their grid
            (T, H, W), with or without a class token in front.

    Returns:
        The tensor, or (B, C, T, H, W).

    Raises:
        TypeError: the layer gives something else.
    """
    if isinstance(output, Tensor):
        return output
    if not (isinstance(output, tuple) and len(output) == 2 and isinstance(output[0], Tensor)):
        raise TypeError(f"a layer to show must give a tensor, got {type(output).__name__}")
    tokens, thw = output
    cells = int(torch.tensor(tuple(thw)).prod())
    # (B, N, C) -> (B, T * H * W, C) -> (B, C, T * H * W) -> (B, C, T, H, W)
    return tokens[:, tokens.shape[1] - cells :].transpose(1, 2).unflatten(2, tuple(thw))


def cure_clip_loops() -> str | None:
    """Give the two loops of ``tools/visualization.py`` the four values that they unpack.

    Their loader gives five: clips, labels, index, time, meta.

    Returns:
        What was done, in one line; None where nothing was needed.
    """
    from vision.fair.slowfast.tools import visualization

    done = []
    for name, loop in (
        ("run_visualization", "for inputs, labels, _, meta in"),
        ("perform_wrong_prediction_vis", "(inputs, labels, _, _) in"),
    ):
        original = getattr(visualization, name)
        if loop in inspect.getsource(original):  # neither mended upstream, nor here already
            setattr(visualization, name, _without_time(original))
            done.append(name)
    if not done:
        return None
    return f"tools/visualization.py: {' and '.join(done)} get what they unpack"


def _without_time(original: Any) -> Any:
    def run(vis_loader: Any, *args: Any, **kwargs: Any) -> Any:
        return original(_Batches(vis_loader), *args, **kwargs)

    return run


class _Batches:
    """A loader's batches without their fourth value, the time."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        for inputs, labels, index, _, meta in self.loader:
            yield inputs, labels, index, meta
