"""Pictures of what the network will see: training images after augmentation, with their targets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mvitv2_core.checkpoint.files import whole_file

from ..draw import contact_sheet

SIDE = 380  # pixels of one picture in the sheet


def draw_augmented(config: Path, output: Path, count: int = 12, seed: int = 0) -> None:
    """Write a sheet of training images as the trainer's own mapper gives them.

    Args:
        config: LazyConfig of the training.
        output: picture to write, JPEG.
        count: images, spread evenly over the data set.
        seed: of the augmentations.
    """
    from detectron2.config import LazyConfig, instantiate

    loader = LazyConfig.load(str(config)).dataloader.train
    dicts, mapper = instantiate(loader.dataset), instantiate(loader.mapper)
    chosen = dicts[:: max(1, len(dicts) // count)][:count]
    classes = list(loader.dataset.classes)
    state = np.random.get_state()
    np.random.seed(seed)  # detectron2's augmentations draw from NumPy's global state
    try:
        tiles = [tile(mapper(entry), classes, loader.mapper.image_format) for entry in chosen]
    finally:
        np.random.set_state(state)
    with whole_file(output) as temporary:
        contact_sheet(tiles).save(temporary, format="JPEG", quality=90)


def tile(seen: dict[str, Any], classes: Sequence[str], image_format: str) -> Image.Image:
    """One image of the mapper with boxes, masks and names."""
    from detectron2.utils.visualizer import Visualizer

    pixels = seen["image"].permute(1, 2, 0).numpy()  # (C, H, W) -> (H, W, C)
    pixels = pixels[..., ::-1] if image_format == "BGR" else pixels
    height, width = pixels.shape[:2]
    scale = SIDE / max(height, width)
    instances = seen["instances"]
    masks = instances.gt_masks if instances.has("gt_masks") and len(instances) else None
    # Drawn at the sheet's size, so that lines and words stay readable.
    drawn = Visualizer(np.ascontiguousarray(pixels), scale=scale).overlay_instances(
        boxes=instances.gt_boxes,
        masks=masks,
        labels=[classes[index] for index in instances.gt_classes.tolist()],
    )
    canvas = Image.new("RGB", (SIDE, SIDE + 40), "white")
    picture = Image.fromarray(np.ascontiguousarray(drawn.get_image()))
    canvas.paste(picture, ((SIDE - picture.width) // 2, (SIDE - picture.height) // 2))
    text = f"{Path(seen['file_name']).name[-28:]}   {width} x {height}"
    ImageDraw.Draw(canvas).text((4, SIDE + 10), text, "#333333", ImageFont.load_default(15))
    return canvas
