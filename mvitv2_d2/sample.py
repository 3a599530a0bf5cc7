"""A part of a data set under a name of its own, for validation that is quick."""

from __future__ import annotations

import json
import os
from functools import partial
from multiprocessing.util import Finalize
from tempfile import NamedTemporaryFile
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager

from mvitv2_core.checks import check_whole, refuse


def sample(name: str, count: int) -> str:
    """Register ``count`` images, evenly from a data set's list, as NAME_sample_COUNT.

    Doing it again changes nothing.

    Args:
        name: of a data set that is evaluated as COCO, by its ``json_file``; it is read when the
            sample is, and need not be registered before.
        count: images; all of them where there are no more.

    Returns:
        The sample's name, for ``DATASETS.TEST`` or ``dataloader.test.dataset.names``.

    Raises:
        ValueError: a count that is none, or another kind of data set; of one that is not
            registered yet, when the sample is read.
    """
    check_whole("count", count)
    if name in DatasetCatalog:
        _check_kind(name)
    part = f"{name}_sample_{count}"
    if part not in DatasetCatalog:
        DatasetCatalog.register(part, partial(_load, name, part, count))
        MetadataCatalog.get(part).set(sample_of=name)
    return part


def _check_kind(name: str) -> None:
    known = MetadataCatalog.get(name)
    if known.get("evaluator_type") != "coco":
        refuse(f"evaluator_type of {name}", "'coco' for a sample", known.get("evaluator_type"))
    if not known.get("json_file"):
        refuse(f"json_file of {name}", "COCO's json for a sample", known.get("json_file"))


def _load(name: str, part: str, count: int) -> list[dict[str, Any]]:
    images = DatasetCatalog.get(name)
    _check_kind(name)
    count = min(count, len(images))
    images = [images[index * len(images) // count] for index in range(count)]
    metadata = MetadataCatalog.get(part)
    if "json_file" not in metadata.as_dict():
        known = MetadataCatalog.get(name).as_dict()
        truth = _truth(known["json_file"], part, images)
        metadata.set(**{**known, **metadata.as_dict(), "json_file": truth})
    return images


def _truth(json_file: str, part: str, images: list[dict[str, Any]]) -> str:
    """COCO's json of some images, for as long as this process lives.

    Not left to ``COCOEvaluator``: it makes one in the output folder, takes it again by name, also
    when the data are others, and measures areas anew.
    """
    with PathManager.open(json_file) as stream:
        truth = json.load(stream)
    ids = {image["image_id"] for image in images}
    for key, field in {"images": "id", "annotations": "image_id"}.items():
        if key in truth:  # data sets for tests have no annotations
            truth[key] = [entry for entry in truth[key] if entry[field] in ids]
    with NamedTemporaryFile("w", prefix=f"{part}_", suffix=".json", delete=False) as file:
        json.dump(truth, file)
    # Not by atexit, which the processes that detectron2 launches do not run.
    Finalize(None, os.unlink, args=(file.name,), exitpriority=0)
    return file.name
