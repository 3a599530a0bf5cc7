"""Names of the toy data set in detectron2's catalogue, and an environment hook that adds them.

Python configs call ``register_toy_shapes``. YAML configs run under the hook, from the root of
this repository::

    PYTHONPATH=. DETECTRON2_ENV_MODULE=projects.detection.toy_env python .../train_net.py ...

Nothing of detectron2 is imported before ``setup_environment`` runs (see mvitv2_d2/env.py).
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

NAMES = {"toy_shapes_train": "train", "toy_shapes_val": "val"}


def toy_root() -> Path:
    """Folder of the toy data: ``toy_shapes`` in ``$DETECTRON2_DATASETS``, default ``datasets``."""
    return Path(os.getenv("DETECTRON2_DATASETS", "datasets")).expanduser() / "toy_shapes"


def register_toy_shapes() -> None:
    """Register ``toy_shapes_train`` and ``toy_shapes_val``; calling it again changes nothing.

    The files are looked for when a trainer loads them, not here.
    """
    from detectron2.data import DatasetCatalog, MetadataCatalog

    for name, split in NAMES.items():
        if name in DatasetCatalog:
            continue
        json_file, images = toy_root() / f"{split}.json", toy_root() / split
        DatasetCatalog.register(name, partial(_load, name, json_file, images))
        MetadataCatalog.get(name).set(
            json_file=str(json_file), image_root=str(images), evaluator_type="coco"
        )


def setup_environment() -> None:
    """detectron2's hook: the ``MODEL.MVITV2`` keys, the backbones and the toy data."""
    from mvitv2_d2.env import setup_environment as setup_mvitv2

    setup_mvitv2()
    register_toy_shapes()


def _load(name: str, json_file: Path, images: Path) -> list[dict]:
    from detectron2.data.datasets import load_coco_json

    if not json_file.exists():
        raise FileNotFoundError(
            f"{json_file} is missing: python -m projects.detection.toy_coco makes the toy data "
            "(both look in $DETECTRON2_DATASETS, default ./datasets)"
        )
    return load_coco_json(str(json_file), str(images), name)
