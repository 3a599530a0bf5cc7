"""Drawn scenes: one shape on a soft background, moving in one of eight ways.

The look (shape, colours, size, place) and the motion are drawn apart from each other, and every
motion passes through the same picture in the middle of the clip. So no single frame tells the
motion; only the order of the frames does. numpy alone.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np

MOTIONS = ("left", "right", "up", "down", "grow", "shrink", "circle", "still")
SHAPES = ("disc", "square", "triangle", "plus", "ring", "bar")

# One unit of travel is the shorter side of the picture.
TRAVEL = 0.55  # way of a straight motion over a whole clip
ORBIT_RADIUS = 0.18
ORBIT_TURNS = 1.25
SCALE_RANGE = 3.0  # a growing shape ends this many times as large as it began


@dataclass(frozen=True)
class Look:
    """What a still picture shows. Lengths are fractions of the picture's shorter side."""

    shape: str
    colour: tuple[int, int, int]
    background: tuple[int, int, int]
    shade: tuple[float, float]  # direction and strength of the background's brightness slope
    radius: float
    angle: float  # of the shape, radians
    centre: tuple[float, float]  # x, y from the picture's centre


def draw_look(rng: np.random.Generator, shape: str | None = None, *, spread: float = 0.08) -> Look:
    """A random look.

    Args:
        rng: source of chance.
        shape: one of `SHAPES`, or None for any of them.
        spread: the centre lies at most this far from the picture's, on each axis.
    """
    hue = rng.random()
    # The background's hue is kept away from the shape's, so that the shape can be seen.
    other = (hue + rng.uniform(0.25, 0.75)) % 1.0
    return Look(
        shape=shape if shape is not None else SHAPES[rng.integers(len(SHAPES))],
        colour=_rgb(hue, rng.uniform(0.6, 1.0), rng.uniform(0.75, 1.0)),
        background=_rgb(other, rng.uniform(0.2, 0.7), rng.uniform(0.15, 0.45)),
        shade=(rng.uniform(0, 2 * np.pi), rng.uniform(0.0, 0.4)),
        radius=rng.uniform(0.14, 0.20),
        angle=rng.uniform(0, 2 * np.pi),
        centre=(rng.uniform(-spread, spread), rng.uniform(-spread, spread)),
    )


def _rgb(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def pose(motion: str, phase: float, heading: float = 0.0) -> tuple[float, float, float]:
    """Where a motion has taken a shape.

    Args:
        motion: one of `MOTIONS`.
        phase: time in the clip, from -0.5 to 0.5; at 0 every motion gives (0, 0, 1).
        heading: where on its circle the shape is at phase 0, radians; only for "circle".

    Returns:
        Shift in x (to the right) and in y (downwards), as fractions of the picture's shorter
        side, and the factor of the size.

    Raises:
        ValueError: an unknown motion.
    """
    if motion in ("left", "right"):
        return (TRAVEL * phase * (1 if motion == "right" else -1), 0.0, 1.0)
    if motion in ("up", "down"):
        return (0.0, TRAVEL * phase * (1 if motion == "down" else -1), 1.0)
    if motion in ("grow", "shrink"):
        return (0.0, 0.0, SCALE_RANGE ** (phase if motion == "grow" else -phase))
    if motion == "circle":
        turn = heading + 2 * np.pi * ORBIT_TURNS * phase
        return (
            ORBIT_RADIUS * (np.cos(turn) - np.cos(heading)),
            ORBIT_RADIUS * (np.sin(turn) - np.sin(heading)),
            1.0,
        )
    if motion == "still":
        return (0.0, 0.0, 1.0)
    raise ValueError(f"motion must be one of {', '.join(MOTIONS)}, got {motion!r}")


def draw_background(look: Look, width: int, height: int) -> np.ndarray:
    """The background of `look` alone: (height, width, 3), float, 0 to 255."""
    x, y = _axes(width, height)
    direction, strength = look.shade
    slope = 1.0 + strength * (np.cos(direction) * x + np.sin(direction) * y)
    return np.clip(slope[..., None] * np.asarray(look.background, float), 0.0, 255.0)


def paint(
    canvas: np.ndarray, look: Look, shift: tuple[float, float] = (0.0, 0.0), scale: float = 1.0
) -> np.ndarray:
    """A copy of `canvas` (height, width, 3) with the shape of `look` on it, edges smooth."""
    height, width = canvas.shape[:2]
    x, y = _axes(width, height)
    x = x - look.centre[0] - shift[0]
    y = y - look.centre[1] - shift[1]
    cos, sin = np.cos(look.angle), np.sin(look.angle)
    distance = _distance(look.shape, cos * x + sin * y, cos * y - sin * x, look.radius * scale)
    cover = np.clip(0.5 - distance * min(width, height), 0.0, 1.0)[..., None]
    return canvas * (1 - cover) + cover * np.asarray(look.colour, float)


def box(
    look: Look, width: int, height: int, shift: tuple[float, float] = (0.0, 0.0), scale: float = 1.0
) -> tuple[float, float, float, float]:
    """The square round the shape, x1, y1, x2, y2 as fractions of the picture, cut at its edge."""
    unit = np.array([min(width, height) / width, min(width, height) / height])
    centre = 0.5 + unit * (np.asarray(look.centre) + np.asarray(shift))
    half = unit * look.radius * scale
    x1, y1 = np.clip(centre - half, 0.0, 1.0)
    x2, y2 = np.clip(centre + half, 0.0, 1.0)
    return float(x1), float(y1), float(x2), float(y2)


def _axes(width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel centres, origin in the picture's middle, the shorter side 1 unit long."""
    unit = min(width, height)
    x = (np.arange(width) + 0.5 - width / 2) / unit
    y = (np.arange(height) + 0.5 - height / 2) / unit
    return x[None, :], y[:, None]


def _distance(shape: str, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """How far a point lies outside the shape (negative inside); no corner beyond `radius`."""

    def rectangle(half_x: float, half_y: float) -> np.ndarray:
        return np.maximum(np.abs(x) - half_x, np.abs(y) - half_y)

    if shape == "disc":
        return np.hypot(x, y) - radius
    if shape == "square":
        return rectangle(radius / np.sqrt(2), radius / np.sqrt(2))
    if shape == "triangle":
        sides = [x * np.cos(a) + y * np.sin(a) for a in np.pi * np.array([1 / 3, 1, 5 / 3])]
        return np.maximum.reduce(np.broadcast_arrays(*sides)) - radius / 2
    if shape == "plus":
        return np.minimum(
            rectangle(0.95 * radius, 0.3 * radius), rectangle(0.3 * radius, 0.95 * radius)
        )
    if shape == "ring":
        return np.abs(np.hypot(x, y) - 0.75 * radius) - 0.25 * radius
    if shape == "bar":
        return rectangle(0.95 * radius, 0.3 * radius)
    raise ValueError(f"shape must be one of {', '.join(SHAPES)}, got {shape!r}")
