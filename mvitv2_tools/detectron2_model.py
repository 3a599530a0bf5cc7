"""detectron2's models from its configs, without running what a file says.

A trainer's ``config.yaml`` may name any function to call. Only what models are made of is called
here, unless ``--trust-config`` says that the file is to be trusted. A ``.py`` config is a program:
naming it is running it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from mvitv2_core.model_info import OFFICIAL
from mvitv2_core.recipes import recipe_path

from .detect import Detector
from .detector_weights import check_weights, load_detector
from .runs import find_labels

# What models and their test-time resizing are made of. Of torch and of this project that is modules
# alone: beside them lie functions that import what they are told to, or read pickles.
ALLOWED = (
    *("detectron2.modeling.", "detectron2.layers.", "detectron2.data.transforms."),
    *("torch.nn.", "mvitv2_d2.", "fvcore.transforms."),
)
MODULES_ALONE = ("torch.nn.", "mvitv2_d2.")
ALSO_ALLOWED = ("detectron2.data.detection_utils.get_fed_loss_cls_weights",)


def find_recipe(name: str) -> Path:
    """This project's config for an official detector: of a checkout, or of the installed wheel.

    Raises:
        ValueError: it is in neither.
    """
    recipe = OFFICIAL[name].recipe.split("/configs/")[-1]
    folder = "vitdet/" if "ViTDet" in OFFICIAL[name].recipe else ""
    try:
        return recipe_path(f"projects/detection/configs/{folder}{recipe}")
    except ValueError as error:
        raise ValueError(f"{name}: --config must name its config: {error}") from error


def build_detector(
    config: Path, weights: str | None, options: Any, what: str
) -> tuple[Detector, str]:
    """A detector of a LazyConfig or YAML config.

    Args:
        config: ``.py``, or ``.yaml`` of either kind.
        weights: a file or an official name; None for the one that the config names, or for
            ``model_final.pth`` beside it.
        options: ``find_model.Options``.
        what: what to call it.

    Raises:
        ValueError, CheckpointError: a config that cannot be built, weights that do not fit.
    """
    try:
        import detectron2  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"{what}: detectors need detectron2, see this project's README ({error})"
        ) from error
    text = "" if config.suffix == ".py" else config.read_text("utf-8")
    lazy = config.suffix == ".py" or "_target_:" in text
    build = _from_lazy if lazy else _from_yaml
    model, augmentations, image_format, dataset, named = build(config, options)
    if weights is None:
        beside = config.parent / "model_final.pth"
        weights = str(beside) if beside.is_file() else named
    check_weights(config, weights)
    which = load_detector(model, weights)
    labels = _labels(dataset, config.parent, options)
    detector = Detector(
        model,
        augmentations,
        image_format,
        labels,
        options.torch_device,
        options.score,
        options.every,
        options.draw,
        _stuff(dataset),
    )
    unnamed = "" if labels is not None else "; its classes have no names here (--labels FILE)"
    return detector, f"{what}: detector, weights {weights}{which}{unnamed}"


def _from_lazy(config: Path, options: Any) -> tuple[Any, list[Any], str, str, str]:
    from detectron2.config import LazyConfig, instantiate
    from omegaconf import OmegaConf, SCMode
    from omegaconf.errors import OmegaConfBaseException

    if config.suffix == ".py":
        cfg = LazyConfig.load(str(config))
    else:
        loader = yaml.UnsafeLoader if options.trust_config else _ConfigLoader
        try:
            content = yaml.load(config.read_text("utf-8"), loader)
        except (yaml.YAMLError, ValueError, TypeError, KeyError, ImportError) as error:
            raise ValueError(f"{config}: {' '.join(str(error).split())}") from error
        cfg = OmegaConf.create(content, flags={"allow_objects": True})
    if "model" not in cfg:
        raise ValueError(f"{config}: holds no model")
    mapper = cfg.dataloader.test.mapper
    parts = [cfg.model, mapper.augmentations]
    try:
        if config.suffix != ".py" and not options.trust_config:
            # References are resolved first: one may lead out of the model. What is checked is
            # what is called: resolved again, it might be something else.
            given: dict[str, Any] = {"structured_config_mode": SCMode.INSTANTIATE}
            parts = [OmegaConf.to_container(part, resolve=True, **given) for part in parts]
            _check_targets(config, parts)
        model, augmentations = map(instantiate, parts)
    except (TypeError, AssertionError, OmegaConfBaseException) as error:
        raise ValueError(f"{config}: its model cannot be built: {error}") from error
    data = cfg.dataloader.test.dataset
    dataset = data.names if isinstance(data.names, str) else data.names[0]
    if data.get("classes") and "json_file" in data:
        from mvitv2_d2.own_data import register_own

        register_own(dataset, data.json_file, data.image_root, list(data.classes))
    checkpoint = cfg.get("train", {}).get("init_checkpoint", "")
    return model, list(augmentations), str(mapper.image_format), dataset, checkpoint


def _from_yaml(config: Path, options: Any) -> tuple[Any, list[Any], str, str, str]:
    from detectron2.config import CfgNode, get_cfg
    from detectron2.data.transforms import ResizeShortestEdge
    from detectron2.modeling import build_model

    from mvitv2_d2.env import setup_environment

    class _LocalConfig(CfgNode):
        """Its ``_BASE_`` files lie on this machine: detectron2's own would open addresses."""

        @classmethod
        def _open_cfg(cls, filename: str) -> Any:
            if "://" in filename:
                raise ValueError(f"_BASE_ must be a file, not {filename}")
            return open(filename, encoding="utf-8")

    setup_environment()
    cfg = get_cfg()
    try:
        # detectron2's own merge_from_file runs what a file's tags say.
        cfg.merge_from_other_cfg(CfgNode(_LocalConfig.load_yaml_with_base(str(config))))
        cfg.MODEL.DEVICE = str(options.torch_device)
        model = build_model(cfg)
    except (OSError, KeyError, ValueError, AssertionError, yaml.YAMLError) as error:
        cause = " ".join(str(error).split())
        raise ValueError(f"{config}: is no detectron2 config of a detector: {cause}") from error
    short, longest = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    augmentation = ResizeShortestEdge([short, short], longest)
    dataset = cfg.DATASETS.TEST[0] if cfg.DATASETS.TEST else ""
    return model, [augmentation], cfg.INPUT.FORMAT, dataset, cfg.MODEL.WEIGHTS


class _ConfigLoader(yaml.SafeLoader):
    """Reads the Python tags that LazyConfig writes, for what models are made of alone."""


def _real(name: str) -> Any:
    """The object of a dotted name, if it is one that models are made of.

    Where it was defined counts, not how it is reached: modules hold other modules.

    Raises:
        ValueError: it is something else.
    """
    from detectron2.utils.registry import locate

    if not name.startswith((*ALLOWED, *ALSO_ALLOWED)):
        raise ValueError(_refusal(name))
    found = locate(name)
    real = f"{getattr(found, '__module__', '')}.{getattr(found, '__qualname__', '')}"
    if not real.startswith((*ALLOWED, *ALSO_ALLOWED)):
        raise ValueError(_refusal(f"{name} ({real})"))
    is_module = isinstance(found, type) and issubclass(found, torch.nn.Module)
    if real.startswith(MODULES_ALONE) and not is_module:
        raise ValueError(_refusal(name))
    return found


def _refusal(name: str) -> str:
    return (
        f"the config asks to call {name}, which is not part of a model: --trust-config lets it, "
        f"and everything else in the file, run"
    )


def _check_targets(config: Path, content: Any) -> None:
    """Raises ValueError: something other than the name of a part of a model is to be called."""
    for target in _targets(content):
        try:
            # detectron2 calls what a mapping makes, and finds the function that it may name.
            # LazyConfig saves names alone.
            if not isinstance(target, str):
                raise ValueError(_refusal(f"what {target!r} makes"))
            _real(target)
        except (ValueError, ImportError) as error:
            raise ValueError(f"{config}: {error}") from error


def _targets(content: Any) -> Iterator[Any]:
    if isinstance(content, Mapping):
        if "_target_" in content:
            yield content["_target_"]
        for value in content.values():
            yield from _targets(value)
    elif isinstance(content, (list, tuple)):
        for value in content:
            yield from _targets(value)


def _tuple(loader: Any, node: Any) -> tuple[Any, ...]:
    return tuple(loader.construct_sequence(node, deep=True))


def _name(loader: Any, suffix: str, node: Any) -> Any:
    return _real(suffix)


def _object(loader: Any, suffix: str, node: Any) -> Any:
    """A ShapeSpec or the like: its fields, given to its class."""
    return _real(suffix)(**loader.construct_mapping(node, deep=True))


def _partial(loader: Any, node: Any) -> Any:
    """``functools.partial`` of something allowed; its state is (function, args, keywords, ...)."""
    content = loader.construct_mapping(node, deep=True)
    function, args, keywords, _ = content["state"]
    if content["args"] != [function]:
        raise ValueError("a functools.partial of two functions")
    return partial(function, *args, **(keywords or {}))


_PYTHON = "tag:yaml.org,2002:python/"
_ConfigLoader.add_constructor(f"{_PYTHON}tuple", _tuple)
_ConfigLoader.add_constructor(f"{_PYTHON}object/apply:functools.partial", _partial)
_ConfigLoader.add_multi_constructor(f"{_PYTHON}name:", _name)
_ConfigLoader.add_multi_constructor(f"{_PYTHON}object:", _object)


def _labels(dataset: str, folder: Path, options: Any) -> list[str] | None:
    """Those asked for, those beside the config, or those that detectron2 knows of the data set."""
    found = find_labels(options.labels, [folder])
    if found is not None or not dataset:
        return found
    from detectron2.data import MetadataCatalog

    classes = MetadataCatalog.get(dataset).get("thing_classes")
    return list(classes) if classes else None


def _stuff(dataset: str) -> dict[str, Any]:
    """What detectron2 knows of a data set's stuff: names and colours."""
    from detectron2.data import MetadataCatalog

    if dataset not in MetadataCatalog.list():
        return {}
    metadata = MetadataCatalog.get(dataset)
    found = {key: metadata.get(key) for key in ("stuff_classes", "stuff_colors")}
    return {key: value for key, value in found.items() if value}
