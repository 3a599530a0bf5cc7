"""The toy shapes with what detectron2's other heads need, and an environment hook that adds them.

``toy_keypoints_{train,val}``: one class, 17 keypoints spread over each outline from its top.
``toy_panoptic_{train,val}``: instances, and a semantic map of background (1) and things (0).
Instances are what is evaluated.

The hook is used as that of toy_env, which it includes::

    PYTHONPATH=. DETECTRON2_ENV_MODULE=projects.detection.toy_heads python .../train_net.py ...
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from mvitv2_core.checkpoint.files import whole_file

# detectron2's train_net.py evaluates with COCO's own sigmas, which are 17.
KEYPOINTS = tuple(f"point{i}" for i in range(17))


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
            # Clockwise from the top becomes anticlockwise in the mirror.
            keypoint_flip_map=[(f"point{i}", f"point{17 - i}") for i in range(1, 9)],
            evaluator_type="coco",
        )
        name = f"toy_panoptic_{split}"
        DatasetCatalog.register(name, partial(panoptic, split))
        MetadataCatalog.get(name).set(
            thing_classes=["circle", "square", "triangle", "star"],
            stuff_classes=["things", "background"],
            evaluator_type="coco",
        )


def keypoints(split: str) -> list[dict[str, Any]]:
    """The toy shapes of ``split`` as one class, with points on their outlines. No crowds."""
    from detectron2.data import DatasetCatalog

    images = DatasetCatalog.get(f"toy_shapes_{split}")
    for image in images:
        shapes = [a for a in image["annotations"] if not a.get("iscrowd")]
        for shape in shapes:
            points = spread_points(shape.pop("segmentation"))
            shape.update(category_id=0, keypoints=[n for x, y in points for n in (x, y, 2)])
        image["annotations"] = shapes
    return images


def spread_points(polygons: list[list[float]]) -> list[tuple[float, float]]:
    """17 points at equal distances along the longest polygon, clockwise from its top."""
    import numpy as np

    corners = np.array(max(polygons, key=len)).reshape(-1, 2)
    x, y = corners.T
    if (x * np.roll(y, -1) - y * np.roll(x, -1)).sum() < 0:  # anticlockwise, y pointing down
        corners = corners[::-1]
    corners = np.roll(corners, -int(corners[:, 1].argmin()), axis=0)
    closed = np.concatenate([corners, corners[:1]])
    along = np.concatenate([[0], np.linalg.norm(np.diff(closed, axis=0), axis=1).cumsum()])
    places = along[-1] * np.arange(len(KEYPOINTS)) / len(KEYPOINTS)
    return [tuple(float(np.interp(p, along, c)) for c in closed.T) for p in places]


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
        with whole_file(path) as temporary:
            Image.fromarray(np.where(things, 0, 1).astype(np.uint8)).save(temporary, format="PNG")
    return images
