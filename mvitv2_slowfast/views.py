"""A cure for PySlowFast's tests on several ranks, which count some views twice."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def cure_repeated_views() -> str | None:
    """Let ``TestMeter`` take every view once.

    Each rank tests as many views as the others: where their number does not divide, the sampler
    repeats some, which upstream adds to their videos' sums a second time.

    Returns:
        What was done, in one line; None where it was done already.
    """
    from slowfast.utils.meters import TestMeter

    original = TestMeter.update_stats
    if hasattr(original, "_mvitv2_once"):
        return None

    def update_stats(self: Any, preds: Tensor, labels: Tensor, clip_ids: Tensor) -> None:
        seen = self.__dict__.setdefault("_mvitv2_seen", set())
        fresh = []
        for row, view in enumerate(clip_ids.tolist()):
            if view not in seen:
                seen.add(view)
                fresh.append(row)
        # (B, classes), (B,) or (B, classes), (B,) -> as many rows as are new
        original(self, preds[fresh], labels[fresh], clip_ids[fresh])

    update_stats._mvitv2_once = True  # type: ignore[attr-defined]
    TestMeter.update_stats = update_stats
    return "slowfast.utils.meters: tests count a view that several ranks take once"
