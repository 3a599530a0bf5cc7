"""A data set of one's own, in COCO's format, from what a config's keys name.

LazyConfigs make it their ``dataset``; the data set is registered when a trainer instantiates it,
so that keys may change on the command line::

    dataloader.train.dataset = L(own_coco)(
        names="birds_train", json_file="train.json", image_root="train", classes=["owl", "wren"]
    )

YAML configs name it in ``DATASETS.OWN``; it is registered when a backbone of this package is built
from the config, which detectron2's trainer does before it looks for data. detectron2's own
evaluators find what they need in the metadata.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any


def own_coco(
    names: str,
    json_file: str,
    image_root: str,
    classes: Sequence[str],
    filter_empty: bool = True,
) -> list[dict[str, Any]]:
    """Register a COCO json under a name of detectron2's catalogue, and read it.

    Args:
        names: the name; called so as detectron2's ``get_detection_dataset_dicts`` calls it. Or
            that of a ``sample``, of the json under the name that it was made of.
        json_file: COCO's json.
        image_root: folder that its ``file_name`` are relative to.
        classes: names of the categories, in the order of their ids: what the model's outputs mean.
        filter_empty: leave out images without a box to learn from, as detectron2 does in training.

    Returns:
        detectron2's dicts, one for each image.

    Raises:
        ValueError: the json has other classes, or ``names`` is another data set already.
        FileNotFoundError: there is no such json.
    """
    from detectron2.data import MetadataCatalog, get_detection_dataset_dicts

    whole = MetadataCatalog.get(names).get("sample_of", names)
    register_own(whole, json_file, image_root, classes)
    return get_detection_dataset_dicts(names, filter_empty=filter_empty)


def register_own(name: str, json_file: str, image_root: str, classes: Sequence[str]) -> None:
    """Register a COCO json; doing it again with the same arguments changes nothing.

    No file is opened: a trained model can be used where its data are no more. Arguments and errors
    as for ``own_coco``.
    """
    from detectron2.data import DatasetCatalog, MetadataCatalog

    facts: dict[str, Any] = {"json_file": str(json_file), "image_root": str(image_root)}
    facts["thing_classes"] = list(classes)
    if name in DatasetCatalog:
        held = MetadataCatalog.get(name)
        known = {key: held.get(key) for key in facts}
        if known != facts:
            raise ValueError(f"{name} is registered as {known} already, must not become {facts}")
        return
    if not classes:
        raise ValueError(f"classes of {name} must be names, got {classes!r}")
    DatasetCatalog.register(name, partial(_load, name, Path(json_file), image_root, classes))
    MetadataCatalog.get(name).set(evaluator_type="coco", **facts)


def register_from_keys(cfg: Any) -> None:
    """Register what ``DATASETS.OWN`` names as ``DATASETS.TRAIN[0]`` and ``DATASETS.TEST[0]``.

    Raises:
        ValueError: keys are missing, or a head has outputs for another number of classes.
    """
    own = cfg.DATASETS.get("OWN")
    if own is None or not own.CLASSES:
        return
    kind = "RETINANET" if cfg.MODEL.META_ARCHITECTURE == "RetinaNet" else "ROI_HEADS"
    outputs = cfg.MODEL[kind].NUM_CLASSES
    if outputs != len(own.CLASSES):
        raise ValueError(
            f"MODEL.{kind}.NUM_CLASSES must be {len(own.CLASSES)}, as DATASETS.OWN.CLASSES has "
            f"so many, got {outputs}"
        )
    for key, split in (("TRAIN", "TRAIN"), ("TEST", "VAL")):
        names, json_file = cfg.DATASETS[key], own[f"{split}_JSON"]
        if bool(names) != bool(json_file):
            raise ValueError(
                f"DATASETS.{key} and DATASETS.OWN.{split}_JSON go together, got {list(names)} and "
                f"{json_file!r}"
            )
        if names:
            register_own(names[0], json_file, own[f"{split}_IMAGES"], own.CLASSES)


def _load(name: str, json_file: Path, image_root: str, classes: Sequence[str]) -> list[dict]:
    import json

    from detectron2.data.datasets import load_coco_json

    if not json_file.is_file():
        raise FileNotFoundError(f"{name}: {json_file} is not there (the config's json_file)")
    categories = json.loads(json_file.read_text("utf-8"))["categories"]
    found = [c["name"] for c in sorted(categories, key=lambda c: c["id"])]
    if found != list(classes):
        raise ValueError(
            f"{name}: {json_file} has the classes {found} in the order of their ids, the config "
            f"has {list(classes)}"
        )
    return load_coco_json(str(json_file), image_root, name)
