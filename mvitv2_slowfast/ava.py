"""Cures for PySlowFast's AVA testing, which its ``tools/test_net.py`` cannot finish, and for its
validation, which on several ranks counts keyframes twice."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def cure_ava_test() -> str | None:
    """Give ``perform_test`` a loop of its own for detection; everything else stays upstream's.

    Upstream's goes on from a detection batch into the code for classification: it pauses a timer
    twice, which raises, and would store labels as predictions and gather tensors of unequal size.

    Returns:
        What was done, in one line; None where nothing was needed.
    """
    from vision.fair.slowfast.tools import test_net

    original = test_net.perform_test
    if inspect.getsource(original).count("test_meter.iter_toc()") < 2:
        return None  # mended upstream, or here already

    def perform_test(
        test_loader: Any, model: Any, test_meter: Any, cfg: Any, writer: Any = None
    ) -> Any:
        if not cfg.DETECTION.ENABLE:
            return original(test_loader, model, test_meter, cfg, writer)
        return test_detection(test_loader, model, test_meter, cfg)

    test_net.perform_test = perform_test
    return "tools/test_net.py: AVA testing has a loop of its own, since upstream's fails"


def cure_ava_validation() -> str | None:
    """Give ``eval_epoch`` the same loop on several ranks, where upstream's counts what the sampler
    repeats as detections of their own: all but one of each are false.

    Returns:
        What was done, in one line; None where nothing was needed.
    """
    from vision.fair.slowfast.tools import train_net

    original = train_net.eval_epoch
    if "all_gather_unaligned" not in inspect.getsource(original):
        return None  # mended upstream, or here already

    def eval_epoch(
        val_loader: Any,
        model: Any,
        val_meter: Any,
        cur_epoch: int,
        cfg: Any,
        train_loader: Any,
        writer: Any,
    ) -> None:
        if not cfg.DETECTION.ENABLE or cfg.NUM_GPUS < 2:
            original(val_loader, model, val_meter, cur_epoch, cfg, train_loader, writer)
            return
        predict_keyframes(val_loader, model, val_meter, cfg, cur_epoch)
        val_meter.log_epoch_stats(cur_epoch)
        if writer is not None:
            writer.add_scalars({"Val/mAP": val_meter.full_map}, global_step=cur_epoch)
        val_meter.reset()

    train_net.eval_epoch = eval_epoch
    return "tools/train_net.py: AVA validation on several ranks counts each keyframe once"


def test_detection(test_loader: Any, model: Any, test_meter: Any, cfg: Any) -> Any:
    """Predict the loader's keyframes and finish the meter, which is returned.

    Args:
        test_loader, model, test_meter, cfg: as ``predict_keyframes`` takes them.
    """
    predict_keyframes(test_loader, model, test_meter, cfg)
    test_meter.finalize_metrics()
    return test_meter


@torch.no_grad()
def predict_keyframes(
    loader: Any, model: Any, meter: Any, cfg: Any, epoch: int | None = None
) -> None:
    """Predict every box of the loader's keyframes, on all ranks, for the meter.

    The sampler repeats keyframes until every rank has as many: each counts once.

    Args:
        loader: gives (clips, labels, index, time, meta) with index (B,), the keyframes'
            numbers, and meta's ``boxes`` (R, 5), ``ori_boxes`` (R, 5) and ``metadata`` (R, 2).
        model: takes clips and boxes, gives (R, classes).
        meter: PySlowFast's ``AVAMeter``.
        cfg: PySlowFast's config; ``NUM_GPUS`` is read.
        epoch: for the log, of a validation.
    """
    import slowfast.utils.distributed as du

    device = next(model.parameters()).device
    model.eval()
    meter.iter_tic()
    seen: set[int] = set()
    for step, (inputs, _, index, _, meta) in enumerate(loader):
        clips = [clip.to(device, non_blocking=True) for clip in inputs]
        boxes = meta["boxes"].to(device, non_blocking=True)
        meter.data_toc()
        part = (model(clips, boxes).cpu(), meta["ori_boxes"], meta["metadata"], index)
        # Ranks have different numbers of boxes.
        parts = du.all_gather_unaligned(part) if cfg.NUM_GPUS > 1 else [part]
        meter.iter_toc()
        meter.update_stats(*without_repeats(parts, seen))
        meter.log_iter_stats(epoch, step)
        meter.iter_tic()


def without_repeats(parts: Sequence[Sequence[Tensor]], seen: set[int]) -> list[Tensor]:
    """All ranks' rows together, but for those of keyframes that were there before.

    By keyframe, since two of its boxes may be equal.

    Args:
        parts: of each rank (R, classes) predictions, (R, 5) boxes, each behind its keyframe's
            place in the batch, (R, 2) metadata, and (B,) the keyframes' numbers.
        seen: numbers of keyframes before; those of ``parts`` are added.

    Returns:
        Predictions, boxes and metadata.
    """
    kept = []
    for *rows, index in parts:
        fresh = []
        for place, keyframe in enumerate(index.tolist()):
            if keyframe not in seen:
                seen.add(keyframe)
                fresh.append(place)
        places = rows[1][:, 0]
        keep = torch.isin(places, torch.tensor(fresh, dtype=places.dtype))
        kept.append([row[keep] for row in rows])
    return [torch.cat(row) for row in zip(*kept, strict=True)]
