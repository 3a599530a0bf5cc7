"""Drawing a validation split by groups, so that clips of one video stay on one side."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence

from .labelled import Item


def draw_split(items: Sequence[Item], share: float, seed: int) -> list[Item]:
    """Give every item without a split one, "train" or "val".

    Groups go to one side as a whole. Each class has about ``share`` of its files in validation:
    at least one group where it has two or more, and never all of them. The same items and seed
    give the same split, whatever the order of the items.

    Args:
        items: labelled files; those that have a split keep it.
        share: of each class's files, above 0 and below 1.
        seed: another one draws other groups.

    Raises:
        ValueError: ``share`` is out of range.
    """
    if not 0 < share < 1:
        raise ValueError(f"--share must be above 0 and below 1, got {share}")
    groups: dict[str, Counter[str]] = defaultdict(Counter)
    for item in items:
        if not item.split:
            groups[item.group][item.label] += 1
    total = sum(groups.values(), Counter())
    wanted = {label: max(1, round(share * number)) for label, number in total.items()}
    left = Counter(label for counts in groups.values() for label in counts)  # groups for training
    in_val: Counter[str] = Counter()
    val = set()
    for group in sorted(groups, key=lambda name: _draw(name, seed)):
        counts = groups[group]
        needed = any(in_val[label] < wanted[label] for label in counts)
        fits = all(in_val[k] + n <= 1.5 * wanted[k] or not in_val[k] for k, n in counts.items())
        if needed and fits and all(left[label] > 1 for label in counts):
            val.add(group)
            in_val.update(counts)
            left.subtract(list(counts))
    return [
        item if item.split else item._replace(split="val" if item.group in val else "train")
        for item in items
    ]


def _draw(group: str, seed: int) -> bytes:
    return hashlib.sha1(f"{seed}/{group}".encode(), usedforsecurity=False).digest()
