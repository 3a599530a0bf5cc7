"""What a PySlowFast config tests with, as core's ``ModelInfo``."""

from __future__ import annotations

from typing import Any

from mvitv2_core.model_info import ModelInfo

from .config import read_adapter, read_config

CLIP_SETS = ("kinetics", "ssv2")


def read_info(cfg: Any, name: str) -> ModelInfo:
    """How PySlowFast's loaders prepare the inputs of a config's test, or of its validation stills.

    Args:
        cfg: a whole ``CfgNode``, as a checkpoint of PySlowFast holds it. It is not changed.
        name: what to call the model.

    Raises:
        ValueError: a test that is not one of pictures, Kinetics or Something-Something clips.
    """
    config = read_config(cfg)
    adapter = read_adapter(cfg, config.blocks[-1].dim_out)
    if adapter.roi is not None:
        raise ValueError(
            "DETECTION.ENABLE must be False: a model of actions at boxes needs boxes beside the "
            "clip (read_action_info, mvitv2 predict --boxes FILE)"
        )
    if adapter.act == "none":
        raise ValueError("MODEL.HEAD_ACT must be softmax or sigmoid, got 'none'")
    data, crop = cfg.DATA, cfg.DATA.TEST_CROP_SIZE
    mean, std = tuple(data.MEAN), tuple(data.STD)
    common: dict[str, Any] = {
        "name": name,
        "num_classes": config.num_classes,
        "labels": None,
        "activation": adapter.act,
    }
    if cfg.MVIT.PATCH_2D:
        return ModelInfo(
            task="image",
            input_size=(crop, crop),
            mean=mean,
            std=std,
            **_still_resizing(cfg),
            **common,
        )
    dataset, crops = cfg.TEST.DATASET.lower(), cfg.TEST.NUM_SPATIAL_CROPS
    if dataset not in CLIP_SETS:
        raise ValueError(f"TEST.DATASET must be one of {', '.join(CLIP_SETS)}, got {dataset!r}")
    if crops not in (1, 3):
        raise ValueError(f"TEST.NUM_SPATIAL_CROPS must be 1 or 3, got {crops}")
    if min(len(mean), len(std)) != 3:
        raise ValueError(f"DATA.MEAN and STD must hold three values, got {mean} and {std}")
    decoded = "RGB" if dataset == "kinetics" else "BGR"
    order = decoded
    if data.REVERSE_INPUT_CHANNEL:  # after normalisation
        order, mean, std = decoded[::-1], mean[::-1], std[::-1]
    sampling = "offset" if data.USE_OFFSET_SAMPLING else "fraction"
    scaled = dataset == "kinetics" and data.DECODING_BACKEND == "torchvision"
    return ModelInfo(
        task="clip",
        input_size=(data.NUM_FRAMES, crop, crop),
        mean=mean,
        std=std,
        resize=crop if crops == 3 or dataset == "ssv2" else data.TRAIN_JITTER_SCALES[0],
        interpolation="area" if scaled else "bilinear",
        views=(cfg.TEST.NUM_ENSEMBLE_VIEWS if dataset == "kinetics" else 1, crops),
        sampling_rate=data.SAMPLING_RATE,
        target_fps=float(data.TARGET_FPS),
        sampling=sampling if dataset == "kinetics" else "segments",  # type: ignore[arg-type]
        channel_order=order,  # type: ignore[arg-type]
        **common,
    )


def read_action_info(cfg: Any, name: str) -> ModelInfo:
    """How PySlowFast's AVA test prepares clips: whole frames, the shorter side at the crop's.

    Args:
        cfg, name: as for ``read_info``, with ``DETECTION.ENABLE``.
    """
    data, crop = cfg.DATA, cfg.DATA.TEST_CROP_SIZE
    # Frames are read as BGR, normalised, and then turned unless AVA.BGR.
    turn = 1 if cfg.AVA.BGR else -1
    return ModelInfo(
        name=name,
        task="clip",
        num_classes=cfg.MODEL.NUM_CLASSES,
        labels=None,
        input_size=(data.NUM_FRAMES, crop, crop),
        mean=tuple(data.MEAN)[::turn],
        std=tuple(data.STD)[::turn],
        resize=crop,
        interpolation="bilinear",
        sampling_rate=data.SAMPLING_RATE,
        activation="sigmoid",
        channel_order="BGR" if cfg.AVA.BGR else "RGB",
    )


def _still_resizing(cfg: Any) -> dict[str, Any]:
    """Of ``slowfast/datasets/imagenet.py``, outside of training."""
    if not cfg.AUG.ENABLE:
        return {"resize": cfg.DATA.TRAIN_CROP_SIZE, "interpolation": "bilinear"}
    ratio = cfg.DATA.IN_VAL_CROP_RATIO
    if not ratio:
        raise ValueError("DATA.IN_VAL_CROP_RATIO must not be 0: pictures would be squashed")
    return {"resize": int(1 / ratio * cfg.DATA.TEST_CROP_SIZE), "interpolation": "bicubic"}
