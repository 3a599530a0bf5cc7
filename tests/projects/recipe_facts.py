"""What the official recipes are: facts of detectron2's projects and of the paper, retyped."""

from __future__ import annotations

from typing import NamedTuple

COCO_3X = (67500, [52500, 62500])
COCO_50 = (92187, [81944, 88773])
COCO_100 = (184375, [163889, 177546])
LVIS_50 = (78125, [69444, 75231])
LVIS_100 = (156250, [138889, 150463])


class Recipe(NamedTuple):
    """Facts of detectron2's projects/MViTv2 and projects/ViTDet, and of the paper."""

    variant: str
    weights: str
    drop_path: float = 0.2
    lr: float = 1.6e-4
    steps: tuple[int, list[int]] = COCO_3X
    rel_pos_decay: float = 0.0
    data: str = "multi-scale"
    published: tuple[int, int] | None = None  # M parameters, GFLOPs
    windows: int = 56
    warmup: float = 250  # steps


S_RECIPE = Recipe("S", "S_in1k", published=(54, 326))
VITDET = {"rel_pos_decay": 0.1, "data": "1024"}
MASK, CASCADE = "mask_rcnn_mvitv2_", "cascade_mask_rcnn_mvitv2_"
RECIPES = {
    f"{MASK}t_3x": Recipe("T", "T_in1k", published=(44, 279)),
    f"{MASK}s_3x": S_RECIPE,
    f"{MASK}b_3x": Recipe("B", "B_in1k", 0.4, published=(71, 392)),
    f"{MASK}l_3x": Recipe("L", "L_in1k", 0.5, 1e-4, published=(238, 1097)),
    f"{CASCADE}t_3x": Recipe("T", "T_in1k", published=(76, 701)),
    f"{CASCADE}s_3x": Recipe("S", "S_in1k", published=(87, 748)),
    f"{CASCADE}b_3x": Recipe("B", "B_in1k", 0.4, published=(103, 814)),
    f"{CASCADE}l_3x": Recipe("L", "L_in1k", 0.5, 1e-4, published=(270, 1519)),
    f"{CASCADE}b_in21k_3x": Recipe("B", "B_in21k", 0.4, published=(103, 814)),
    f"{CASCADE}l_in21k_lsj_50ep": Recipe("L", "L_in21k", 0.5, 1e-4, COCO_50, data="jitter"),
    f"{CASCADE}h_in21k_lsj_3x": Recipe("H", "H_in21k", 0.6, data="jitter", published=(718, 3084)),
    f"vitdet/COCO/{CASCADE}b_in21k_100ep": Recipe("B", "B_in21k", 0.4, 8e-5, COCO_100, **VITDET),
    f"vitdet/COCO/{CASCADE}l_in21k_50ep": Recipe(
        *("L", "L_in21k", 0.5, 8e-5, COCO_50), warmup=250 / 184375 * 92187, **VITDET
    ),
    f"vitdet/COCO/{CASCADE}h_in21k_36ep": Recipe("H", "H_in21k", 0.6, 1.6e-4, COCO_3X, **VITDET),
    f"vitdet/LVIS/{CASCADE}b_in21k_100ep": Recipe("B", "B_in21k", 0.4, 1e-4, LVIS_100, **VITDET),
    f"vitdet/LVIS/{CASCADE}l_in21k_50ep": Recipe("L", "L_in21k", 0.5, 4e-5, LVIS_50, **VITDET),
    f"vitdet/LVIS/{CASCADE}h_in21k_50ep": Recipe("H", "H_in21k", 0.6, 2e-5, LVIS_50, **VITDET),
    f"ablations/{MASK}s_hwin_kv4": S_RECIPE,
    **{
        f"ablations/{MASK}s_{name}": S_RECIPE._replace(published=None, windows=windows)
        for name, windows in (
            ("hwin_kv8", 56),
            ("pooling_kv4", 0),
            ("pooling_kv8", 0),
            ("no_pos", 56),
            ("abs_pos", 56),
            ("no_residual_pooling", 56),
            ("single_scale", 56),
        )
    },
}

FLIP = ("RandomFlip", {"horizontal": True})
JITTER = {"min_scale": 0.1, "max_scale": 2.0, "target_height": 1024, "target_width": 1024}
SIZES = [480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800]
CROP = [
    ("ResizeShortestEdge", {"short_edge_length": [400, 500, 600], "sample_style": "choice"}),
    ("RandomCrop", {"crop_type": "absolute_range", "crop_size": [384, 600]}),
]
TRAIN_AUGMENTATIONS = {
    "multi-scale": [
        ("RandomApply", {"tfm_or_aug": ("AugmentationList", {"augs": CROP}), "prob": 0.5}),
        (
            "ResizeShortestEdge",
            {"short_edge_length": SIZES, "sample_style": "choice", "max_size": 1333},
        ),
        FLIP,
    ],
    "jitter": [FLIP, ("ResizeScale", JITTER), ("FixedSizeCrop", {"crop_size": [1024, 1024]})],
    "1024": [
        FLIP,
        ("ResizeScale", JITTER),
        ("FixedSizeCrop", {"crop_size": [1024, 1024], "pad": False}),
    ],
}
