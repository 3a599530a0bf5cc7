"""A part of a data set under a name of its own, for validation that is quick."""

from __future__ import annotations

from functools import partial
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from mvitv2_core.checks import check_whole, refuse


def sample(name: str, count: int) -> str:
    """Register ``count`` images, evenly from a data set's list, as NAME_sample_COUNT.

    Its json file is not theirs: ``COCOEvaluator`` makes one of the annotations that were loaded,
    whose areas (APs, APm, APl) are those of the outlines. Doing it again changes nothing.

    Args:
        name: of a data set that is evaluated as COCO; it is read when the sample is.
        count: images; all of them where there are no more.

    Returns:
        The sample's name, for ``DATASETS.TEST`` or ``dataloader.test.dataset.names``.

    Raises:
        ValueError: a count that is none; when the sample is read, another kind of data set.
    """
    check_whole("count", count)
    part = f"{name}_sample_{count}"
    if part not in DatasetCatalog:
        DatasetCatalog.register(part, partial(_load, name, part, count))
    return part


def _load(name: str, part: str, count: int) -> list[dict[str, Any]]:
    images = DatasetCatalog.get(name)
    known = MetadataCatalog.get(name).as_dict()
    if known.get("evaluator_type") != "coco":
        refuse(f"evaluator_type of {name}", "'coco' for a sample", known.get("evaluator_type"))
    known = {key: value for key, value in known.items() if key not in ("name", "json_file")}
    MetadataCatalog.get(part).set(**known)
    count = min(count, len(images))
    return [images[index * len(images) // count] for index in range(count)]
