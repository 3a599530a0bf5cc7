"""A model for what a person names: official weights, a file, or a trainer's output folder."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mvitv2_core import MViTClassifier, MViTConfig, create_model, load_checkpoint
from mvitv2_core.checkpoint import CheckpointError, read_checkpoint, read_content
from mvitv2_core.checkpoint.describe import read_layout
from mvitv2_core.checkpoint.files import SUFFIXES
from mvitv2_core.checkpoint.formats import to_project
from mvitv2_core.checkpoint.load import weights_path
from mvitv2_core.labels import read_labels
from mvitv2_core.model_info import OFFICIAL, ModelInfo, clip_info, image_info
from mvitv2_core.models import PLAIN, list_models
from mvitv2_core.recipes import recipe_path
from mvitv2_core.training import EMA_KEY

from .actions import ActionDetector, read_boxes
from .classify import Classifier
from .runs import find_labels, find_weights

CONFIGS = (".py", ".yaml", ".yml")


@dataclass(frozen=True)
class Options:
    """What a person asked for besides the model; see ``mvitv2 predict --help``."""

    weights: str | None = None
    config: str | None = None
    labels: str | None = None
    device: str | None = None
    topk: int = 5
    score: float = 0.5
    window: float | None = None
    stride: float | None = None
    every: int = 1
    draw: bool = False
    trust_config: bool = False
    boxes: str | None = None

    @property
    def torch_device(self) -> torch.device:
        """The one asked for, or a GPU where there is one.

        Raises:
            ValueError: there is no such device.
        """
        name = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            return torch.empty(0, device=name).device
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            cause = str(error).splitlines()[0]
            raise ValueError(f"--device {name} cannot be used: {cause}") from error


def find_model(name: str, options: Options) -> tuple[Any, str]:
    """A ``Classifier`` or ``Detector``, and a line that says what it is.

    Args:
        name: an official name, a checkpoint, a detectron2 config, or a trainer's output folder.
        options: what else was asked for.

    Raises:
        ValueError, CheckpointError: no such model, or it cannot be had.
    """
    # PySlowFast prints when it is imported, and standard output is for answers.
    with redirect_stdout(sys.stderr):
        return _find(name, options)


def _find(name: str, options: Options) -> tuple[Any, str]:
    path = Path(name)
    if path.is_dir():
        path, several = find_weights(path, options.weights)
        predictor, what = _from_file(path, options)
        return predictor, what + several
    if path.suffix.lower() in CONFIGS:
        return _detector(recipe_path(path), options.weights, options, name)
    if path.suffix.lower() in SUFFIXES:
        if options.weights is not None:
            raise ValueError(
                f"--weights {options.weights} does not go with a checkpoint, which {name} is"
            )
        return _from_file(path, options)
    row = OFFICIAL.get(name)
    if row is not None and row.config is None:
        from .detectron2_model import find_recipe

        config = recipe_path(options.config) if options.config else find_recipe(name)
        return _detector(config, options.weights or name, options, name)
    if name in PLAIN:
        return _of_variant(name, options)
    if name in list_models():
        model = create_model(name, weights=options.weights or True)
        return _classifier(model, model.info, options, name)  # type: ignore[arg-type]
    if path.is_file():
        ends = ", ".join((*SUFFIXES, *CONFIGS))
        raise ValueError(f"{name}: is no model by its name: MODEL comes first, and ends in {ends}")
    close = ", ".join(difflib.get_close_matches(name, [*OFFICIAL, *list_models()], n=3))
    raise ValueError(
        f"{name}: neither a file, a folder nor a name of MODEL_ZOO.md"
        + (f"; did you mean {close}?" if close else "")
    )


def _of_variant(name: str, options: Options) -> tuple[Any, str]:
    """A file of one's own with a plain variant's name, by what the file says of the rest."""
    if options.weights is None:
        close = ", ".join(list_models(f"{name}_*"))
        raise ValueError(f"{name} has no weights of its own: give --weights, or name {close}")
    path = Path(weights_path(options.weights))
    predictor, what = _from_file(path, options)
    if not isinstance(predictor, Classifier):
        raise ValueError(f"{path}: is no {name}: it holds a detector")
    layout = read_layout(predictor.model.state_dict())
    if layout.variant != PLAIN[name]:
        raise ValueError(f"{path}: is no {name}: it holds {layout}")
    return predictor, what


def _classifier(
    model: torch.nn.Module,
    info: ModelInfo,
    options: Options,
    what: str,
    beside: Sequence[Path] = (),
) -> tuple[Classifier, str]:
    labels = find_labels(options.labels, beside)
    if labels is None and info.labels is not None:
        labels = read_labels(info.labels)
    classifier = Classifier(
        model,
        info,
        labels,
        options.torch_device,
        options.topk,
        options.window,
        options.stride,
        options.draw,
    )
    size = "x".join(map(str, info.input_size))
    unnamed = "" if labels is not None else "; its classes have no names here (--labels FILE)"
    return classifier, f"{what}: {info.num_classes} classes, {info.task}s of {size}{unnamed}"


def _detector(config: Path, weights: str | None, options: Options, what: str) -> tuple[Any, str]:
    from .detectron2_model import build_detector

    return build_detector(config, weights, options, what)


def _from_file(path: Path, options: Options) -> tuple[Any, str]:
    """A checkpoint: PySlowFast's with its config, detectron2's beside one, or a plain classifier.

    Nothing of a file is run.
    """
    official = next((n for n, row in OFFICIAL.items() if row.file == path.name), None)
    if official in list_models():
        model = create_model(official, weights=path)
        return _classifier(model, model.info, options, str(path))  # type: ignore[arg-type]
    cfg = _pyslowfast_cfg(path, read_content(path).get("cfg"))
    if cfg is not None:
        return _from_pyslowfast(path, cfg, options)
    state = read_checkpoint(path, check=False).state
    if any(n.startswith(("backbone.", "roi_heads.", "proposal_generator.")) for n in state):
        config = recipe_path(options.config) if options.config else path.parent / "config.yaml"
        if not config.is_file():
            raise ValueError(f"{path}: is a detector's: --config must name its detectron2 config")
        return _detector(config, str(path), options, str(path))
    layout = read_layout(to_project(str(path), state).known)
    if layout.variant is None or layout.num_classes is None or layout.input_size is None:
        raise CheckpointError(f"{path}: cannot be classified with: it holds {layout}")
    model = MViTClassifier(
        MViTConfig.variant(
            layout.variant,
            layout.input_size,
            dim_mul_in_att=layout.in_att is not False,
            cls_token=layout.cls_token,
            num_classes=layout.num_classes,
        )
    )
    load_checkpoint(model, path)
    if layout.rank == 2:
        named = "imagenet-1k" if layout.num_classes == 1000 else None
        info = image_info(path.name, layout.num_classes, named)
        if layout.input_size != info.input_size:
            info = info.sized(layout.input_size)
    else:
        named = "kinetics-400" if layout.num_classes == 400 else None
        info = clip_info(path.name, layout.num_classes, layout.input_size, named)
        # Published: 16 frames at every 4th, 32 and 40 at every 3rd.
        info = replace(info, sampling_rate=4 if layout.input_size[0] <= 16 else 3)
    return _classifier(model, info, options, str(path), [path.parent])


def _pyslowfast_cfg(path: Path, text: object) -> Any:
    """The config that PySlowFast stored in a checkpoint; None where there is none of its own."""
    if not isinstance(text, str):
        return None
    try:
        import yaml
    except ImportError as error:
        raise ValueError(f"{path}: the config in it needs PyYAML: pip install PyYAML") from error

    from mvitv2_slowfast.config_file import Node, to_node

    try:
        cfg = to_node(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise CheckpointError(f"{path}: the config in it is no YAML: {error}") from error
    if not isinstance(cfg, Node) or not {"MVIT", "DATA", "TEST", "DETECTION"} <= set(cfg):
        return None  # facebookresearch/mvit stores one of its own, which has fewer
    return cfg


def _from_pyslowfast(path: Path, cfg: Any, options: Options) -> tuple[Any, str]:
    """A checkpoint that PySlowFast wrote, by the whole config in it."""
    from mvitv2_slowfast.config import read_config
    from mvitv2_slowfast.model_info import read_info

    data = cfg["DATA"]["PATH_TO_DATA_DIR"]
    beside = [path.parent, path.parent.parent, *([Path(data)] if data else [])]
    if cfg["DETECTION"]["ENABLE"]:
        return _of_actions(path, cfg, options, beside)
    try:
        config, info = read_config(cfg), read_info(cfg, path.name)
    except (KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path}: the config in it lacks {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    model = MViTClassifier(config)
    load_checkpoint(model, path, ema=_has_average(path, cfg))
    return _classifier(model, info, options, str(path), beside)


def _has_average(path: Path, cfg: Any) -> bool:
    """Whether PySlowFast's own test takes the average of the weights (docs/training.md)."""
    return bool(cfg.get("MVITV2", {}).get("EMA_DECAY", 0)) and EMA_KEY in read_content(path)


def _of_actions(
    path: Path, cfg: Any, options: Options, beside: Sequence[Path]
) -> tuple[ActionDetector, str]:
    """PySlowFast's AVA models, whose head is PySlowFast's."""
    from mvitv2_slowfast.config_file import Node
    from mvitv2_slowfast.model import MViTv2
    from mvitv2_slowfast.model_info import read_action_info

    if options.boxes is None:
        raise ValueError(
            f"{path}: says what people do whose boxes are known (AVA): it is for `mvitv2 predict` "
            f"alone, whose --boxes must name a CSV file of them, with lines of video, second, x1, "
            f"y1, x2, y2 (sides from 0 to 1)"
        )
    try:
        info = read_action_info(cfg, path.name)
        # Of this project's keys that alone which shapes a model: no weights to start from.
        windows = cfg.get("MVITV2", {}).get("WINDOW_SIZE", [])
        model = MViTv2(Node({**cfg, "MVITV2": Node(WINDOW_SIZE=windows)}))
    except (KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path}: the config in it lacks {error}") from error
    except (ValueError, ImportError) as error:
        raise ValueError(f"{path}: {error}") from error
    load_checkpoint(model, path, ema=_has_average(path, cfg))
    labels = find_labels(options.labels, beside)
    detector = ActionDetector(
        model,
        info,
        read_boxes(options.boxes),
        labels,
        options.torch_device,
        options.topk,
        options.score,
        options.draw,
    )
    unnamed = "" if labels is not None else "; its classes have no names here (--labels FILE)"
    return detector, f"{path}: {info.num_classes} actions at boxes of {options.boxes}{unnamed}"
