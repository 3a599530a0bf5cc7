"""The toy shapes with what detectron2's other heads need, and an environment hook that adds them.

``toy_keypoints_{train,val}``: one class, four keypoints at the ends of each outline.
``toy_panoptic_{train,val}``: instances, and a semantic map of background (1) and things (0);
``toy_panoptic_val_sem`` is the same for the evaluation of the semantic map.

The hook is used as that of toy_env, which it includes::

    PYTHONPATH=. DETECTRON2_ENV_MODULE=projects.detection.toy_heads python .../train_net.py ...
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

KEYPOINTS = ("left", "top", "right", "bottom")


def setup_environment() -> None:
    """detectron2's hook: everything of ``toy_env``, and the data sets above."""
    from projects.detection.toy_env import setup_environment as setup_toy

    setup_toy()
    from detectron2.data import DatasetCatalog, MetadataCatalog

    for split in ("train", "val"):
        name = f"toy_keypoints_{split}"
        if name in DatasetCatalog:
            continue
        DatasetCatalog.register(name, partial(keypoints, split))
        MetadataCatalog.get(name).set(
            thing_classes=["shape"],
            keypoint_names=list(KEYPOINTS),
            keypoint_flip_map=[("left", "right")],
            evaluator_type="coco",
        )
        for suffix, kind in (("", "coco"), ("_sem", "sem_seg")):
            name = f"toy_panoptic_{split}{suffix}"
            DatasetCatalog.register(name, partial(panoptic, split))
            # Called lazily: the classes are known once the toy data is loaded.
            MetadataCatalog.get(name).set(
                thing_classes=["circle", "square", "triangle", "star"],
                stuff_classes=["things", "background"],
                ignore_label=255,
                evaluator_type=kind,
            )


def keypoints(split: str) -> list[dict[str, Any]]:
    """The toy shapes of ``split`` as one class, with the ends of their outlines. No crowds."""
    from detectron2.data import DatasetCatalog

    images = DatasetCatalog.get(f"toy_shapes_{split}")
    for image in images:
        shapes = [a for a in image["annotations"] if not a.get("iscrowd")]
        for shape in shapes:
            outline = max(shape["segmentation"], key=len)
            points = list(zip(outline[::2], outline[1::2], strict=True))
            ends = (
                min(points),
                min(points, key=lambda p: p[1]),
                max(points),
                max(points, key=lambda p: p[1]),
            )
            shape.update(category_id=0, keypoints=[n for end in ends for n in (*end, 2)])
            del shape["segmentation"]
        image["annotations"] = shapes
    return images


def panoptic(split: str) -> list[dict[str, Any]]:
    """The toy shapes of ``split`` with semantic maps, which are written beside the images."""
    import numpy as np
    from detectron2.data import DatasetCatalog
    from PIL import Image
    from pycocotools import mask as coco_mask

    images = DatasetCatalog.get(f"toy_shapes_{split}")
    for image in images:
        photo = Path(image["file_name"])
        path = photo.parent.with_name(f"{split}_semantic") / f"{photo.stem}.png"
        image["sem_seg_file_name"] = str(path)
        if path.exists():
            continue
        height, width = image["height"], image["width"]
        things = np.zeros((height, width), bool)
        for annotation in image["annotations"]:
            shape = annotation["segmentation"]
            if isinstance(shape, list):
                shape = coco_mask.merge(coco_mask.frPyObjects(shape, height, width))
            things |= coco_mask.decode(shape).astype(bool)
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        Image.fromarray(np.where(things, 0, 1).astype(np.uint8)).save(temporary, format="PNG")
        os.replace(temporary, path)
    return images
