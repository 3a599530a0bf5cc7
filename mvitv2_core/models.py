"""Models by name: ``create_model("mvitv2_tiny_in1k", weights=True)``."""

from __future__ import annotations

import difflib
import fnmatch
import os
from collections.abc import Sequence
from dataclasses import replace

from .checkpoint import load_checkpoint
from .checks import check_flag, refuse
from .config import MViTConfig
from .feature_maps import MViTFeatures, features_of
from .features import take_indices
from .model import MViTClassifier
from .model_info import OFFICIAL, ModelInfo, official_info, plain_info

PLAIN = {
    "mvitv2_tiny": "T",
    "mvitv2_small": "S",
    "mvitv2_base": "B",
    "mvitv2_large": "L",
    "mvitv2_huge": "H",
}
# The one published classifier whose width grows in the MLP (facebookresearch/mvit,
# configs/test/MVITv2_L_test.yaml: DIM_MUL_IN_ATT False).
WIDENS_IN_MLP = frozenset(["mvitv2_large_in1k"])


def list_models(pattern: str = "*") -> list[str]:
    """Names that ``create_model`` knows and that match ``pattern`` (``*``, ``?``, ``[...]``).

    The plain variants come first, then the official image and clip models (MODEL_ZOO.md).
    """
    official = [name for name, row in OFFICIAL.items() if row.config is not None]
    return [name for name in (*PLAIN, *official) if fnmatch.fnmatchcase(name, pattern)]


def create_model(
    name: str,
    *,
    weights: bool | str | os.PathLike[str] = False,
    num_classes: int | None = None,
    input_size: int | tuple[int, int] | None = None,
    frames: int | None = None,
    drop_path_rate: float = 0.0,
    act_checkpoint: bool = False,
    compile: bool = False,
    features_only: bool = False,
    out_indices: int | Sequence[int] | None = None,
) -> MViTClassifier | MViTFeatures:
    """An image or clip classifier by its name, or its trunk, in evaluation mode.

    ``model.info`` is its ``ModelInfo``: how inputs are prepared and what the outputs mean.

    Args:
        name: one of ``list_models()``.
        weights: True for the official ones, downloaded on first use; a file, or the name of
            official weights, to load those; False for random ones. Position tables of another
            size are resampled, and an image checkpoint is inflated for a plain clip model, whose
            class token then starts anew.
        num_classes: outputs; where given, a head of another number of classes starts anew.
        input_size: height and width of the input in pixels; the default is the published one.
        frames: of a clip. A plain variant with ``frames`` is a clip model.
        drop_path_rate: of the last block, rising from 0.
        act_checkpoint: recompute blocks in the backward pass instead of keeping activations.
        compile: compile each block (docs/gpu.md).
        features_only: the trunk alone, which gives the maps of its stages in a list
            (``MViTFeatures``, docs/features.md).
        out_indices: with ``features_only``, which stages, as ``forward_intermediates`` takes
            ``indices``; None for all.

    Raises:
        ValueError: an unknown name, or an argument that does not fit it.
        CheckpointError: weights that cannot be had or do not match.
    """
    config, info = _config(name, num_classes, input_size, frames, drop_path_rate)
    check_flag("features_only", features_only)
    take_indices(len(config.stage_ends), out_indices)
    if out_indices is not None and not features_only:
        refuse("out_indices", "None without features_only=True", out_indices)
    if not isinstance(weights, (bool, str, os.PathLike)):
        raise ValueError(f"weights must be True, False, a file or a name, got {weights!r}")
    if weights is True and name in PLAIN:
        named = " or ".join(list_models(f"{name}_*"))
        raise ValueError(
            f"{name} has no weights of its own; models of its size that have: "
            f"create_model(NAME, weights=True) with NAME {named}"
        )
    whole = MViTClassifier(config, act_checkpoint=act_checkpoint, compile=compile)
    if weights is not False:
        allowed = ("head",) if num_classes is not None else ()
        if name in PLAIN and frames is not None:
            allowed = (*allowed, "cls_token")
        load_checkpoint(whole, name if weights is True else weights, allow_new=allowed)
    model = features_of(whole, out_indices, compile) if features_only else whole
    model.info = info  # type: ignore[assignment]  # nn.Module types what is set on it
    return model.eval()


def _config(
    name: str,
    num_classes: int | None,
    input_size: int | tuple[int, int] | None,
    frames: int | None,
    drop_path_rate: float,
) -> tuple[MViTConfig, ModelInfo]:
    if not isinstance(name, str):
        raise ValueError(_unknown(name))
    if name in PLAIN:
        size = (*(() if frames is None else (frames,)), *_pair(input_size, (224, 224)))
        config = MViTConfig.variant(
            PLAIN[name],
            size,
            drop_path_rate=drop_path_rate,
            num_classes=1000 if num_classes is None else num_classes,
        )
        return config, plain_info(name, config.num_classes, size)
    official = OFFICIAL.get(name)
    if official is None or official.config is None:
        raise ValueError(_unknown(name))
    base, info = official.config(), official_info(name)
    if info.task == "image" and frames is not None:
        raise ValueError(
            f"{name} takes images: frames must not be given, got {frames}; a clip model that "
            f"starts from it: {_clip_model(name, official.variant, frames, num_classes)}"
        )
    size = _pair(input_size, base.input_size[-2:])
    if info.task == "clip":
        size = (base.input_size[0] if frames is None else frames, *size)
    config = MViTConfig.variant(
        official.variant,
        size,
        drop_path_rate=drop_path_rate,
        dim_mul_in_att=name not in WIDENS_IN_MLP,
        cls_token=base.cls_token,
        num_classes=base.num_classes if num_classes is None else num_classes,
    )
    if size != info.input_size:
        info = info.sized(size)
    if config.num_classes != info.num_classes:
        # Another number of classes is another task: neither names nor figure are its own.
        info = replace(info, num_classes=config.num_classes, labels=None, published="")
    return config, info


def _clip_model(name: str, variant: str, frames: int, num_classes: int | None) -> str:
    """The call that makes a clip model of an official image model's weights, for a message."""
    if name in WIDENS_IN_MLP:  # as no plain variant does
        config = f"MViTConfig.variant({variant!r}, ({frames}, 224, 224), dim_mul_in_att=False)"
        return f"load_checkpoint(MViTClassifier({config}), {name!r}, allow_new=['cls_token'])"
    plain = next(key for key, size in PLAIN.items() if size == variant)
    # A clip model of 19168 classes is nobody's: the head starts anew, for as many as are wanted.
    anew = num_classes is not None or official_info(name).num_classes != 1000
    classes = f", num_classes={num_classes or 'N'}" if anew else ""
    return f"create_model({plain!r}, frames={frames}{classes}, weights={name!r})"


def _pair(size: int | tuple[int, int] | None, default: Sequence[int]) -> tuple[int, ...]:
    if size is None:
        return tuple(default)
    pair = (size, size) if isinstance(size, int) else size
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise ValueError(f"input_size must be N or (H, W), got {size!r}")
    return pair


def _unknown(name: object) -> str:
    if isinstance(name, str) and name in OFFICIAL:
        return (
            f"{name} is a detector: build it from its detectron2 config, or let "
            f"`mvitv2 predict {name}` do so"
        )
    close = difflib.get_close_matches(str(name), list_models(), n=3)
    hint = f": did you mean {', '.join(close)}?" if close else "; list_models() has all names"
    return f"name must be that of a model, got {name!r}{hint}"
