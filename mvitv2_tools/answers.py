"""What a model said about a part of an input."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .feed import Part


@dataclass(frozen=True)
class Label:
    """One class of a classifier's answer.

    Args:
        index: of the class.
        name: "" where it is not known.
        probability: 0 to 1.
    """

    index: int
    name: str
    probability: float

    @property
    def text(self) -> str:
        """Its name, or "class 7"."""
        return self.name or f"class {self.index}"


@dataclass(frozen=True)
class Thing:
    """One object that a detector found.

    Args:
        index, name: of its class, as for ``Label``.
        score: 0 to 1.
        box: left, top, right, bottom in pixels of the input.
        mask: COCO run lengths, {"size": [H, W], "counts": text}; None without.
    """

    index: int
    name: str
    score: float
    box: tuple[float, float, float, float]
    mask: dict[str, Any] | None = None

    @property
    def text(self) -> str:
        """Its class's name, or "class 7"."""
        return self.name or f"class {self.index}"


@dataclass(frozen=True)
class Region:
    """What a panoptic model calls stuff: sky, grass; all of one class together.

    Args:
        index, name: of its class, as for ``Label``.
        share: of the picture's pixels, 0 to 1.
        mask: COCO run lengths, as for ``Thing``.
    """

    index: int
    name: str
    share: float
    mask: dict[str, Any]

    @property
    def text(self) -> str:
        """Its name, or "class 7"."""
        return self.name or f"class {self.index}"


@dataclass
class Answer:
    """What is printed and drawn for one part of an input.

    Args:
        part: the input, or what went wrong with it.
        labels: a classifier's, the most likely first.
        things: a detector's, the surest first; None for a classifier.
        stuff: a panoptic model's, the largest first; None for others.
        drawing: (H, W, 3) uint8 with things drawn in, where pictures are wanted.
    """

    part: Part
    labels: list[Label] = field(default_factory=list)
    things: list[Thing] | None = None
    stuff: list[Region] | None = None
    drawing: Any = None
