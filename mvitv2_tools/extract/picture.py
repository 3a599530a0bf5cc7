"""A picture of a video's features: what is alike, and when.

    python -m mvitv2_tools.extract.picture DIR --to FILE [--name NAME]

From above: frames of the video; its rows' three strongest components (PCA) as colours; how alike
each two rows are (cosine, the mean row taken away).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from mvitv2_core.media import MediaError, Video

from .read import Extracted, read_features

MOST = 1500  # rows in a picture; of more, as many at equal distances
THUMBNAILS, HEIGHT = 12, 120


def draw_similarity(rows: Extracted, target: str, seconds: float = 0.0) -> None:
    """Draw the rows of a video.

    Args:
        rows: of a video; frames and grids are averaged to a vector a row.
        target: .png, .pdf, .svg, or what else Matplotlib writes.
        seconds: marks are drawn at each multiple; 0 for none.

    Raises:
        ValueError: pictures, or fewer than four rows.
    """
    if rows.times is None or len(rows) < 4:
        raise ValueError(f"{rows.name}: a picture over time needs a video of four rows or more")
    from matplotlib.figure import Figure

    chosen = np.unique(np.linspace(0, len(rows) - 1, MOST).round().astype(int))
    vectors = np.asarray(rows.features)[chosen].astype(np.float64)
    if vectors.ndim > 2:  # (N, ..., C) -> (N, C)
        vectors = vectors.mean(axis=tuple(range(1, vectors.ndim - 1)))
    vectors -= vectors.mean(axis=0)
    start, end = float(rows.times[0, 0]), float(rows.times[-1, 1])
    figure = Figure(figsize=(9, 11), layout="constrained")
    frames, colours, alike = figure.subplots(3, 1, gridspec_kw={"height_ratios": [0.09, 0.07, 1]})
    frames.imshow(thumbnails(rows.paths[0], start, end), aspect="auto", extent=(start, end, 0, 1))
    frames.set_title(f"{Path(rows.paths[0]).name}: {len(rows)} rows")
    colours.imshow(components(vectors)[None], aspect="auto", extent=(start, end, 0, 1))
    for axis in (frames, colours):
        axis.set_xticks([])
        axis.set_yticks([])
    colours.set_ylabel("PCA")
    extent = (start, end, end, start)
    shown = alike.imshow(
        similarity(vectors), extent=extent, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto"
    )
    alike.set_xlabel("seconds")
    alike.set_ylabel("seconds")
    if seconds:
        for mark in np.arange(start, end, seconds)[1:]:
            alike.axvline(mark, color="black", linewidth=0.3)
            alike.axhline(mark, color="black", linewidth=0.3)
    bar = figure.colorbar(shown, ax=alike, location="bottom", shrink=0.5, aspect=40, pad=0.02)
    bar.set_label("cosine")
    figure.savefig(target, dpi=110)


def similarity(vectors: np.ndarray) -> np.ndarray:
    """(N, C) -> (N, N) cosines."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.maximum(lengths, np.finfo(vectors.dtype).tiny)
    return unit @ unit.T


def components(vectors: np.ndarray) -> np.ndarray:
    """(N, C) with mean 0 -> (N, 3) from 0 to 1: the three strongest components as colours."""
    _, _, directions = np.linalg.svd(vectors, full_matrices=False)
    found = vectors @ directions[:3].T
    low, high = np.percentile(found, [2, 98], axis=0)
    return ((found - low) / np.maximum(high - low, 1e-12)).clip(0, 1)


def thumbnails(path: str, start: float, end: float) -> np.ndarray:
    """(HEIGHT, width, 3) uint8: frames of a video side by side; grey where it is gone."""
    try:
        video = Video(path, (HEIGHT, HEIGHT))
    except MediaError:
        return np.full((HEIGHT, HEIGHT * THUMBNAILS, 3), 200, np.uint8)
    times = start + (end - start) * (np.arange(THUMBNAILS) + 0.5) / THUMBNAILS
    found = []
    with video:
        for second in times:
            frame = next(video.frames(float(second)), None)
            if frame is not None:
                found.append(_square(video.to_tensor(frame.picture).numpy()))
    return np.concatenate(found, axis=1)


def _square(pixels: np.ndarray) -> np.ndarray:
    """(h, w, 3) -> (HEIGHT, HEIGHT, 3), its middle."""
    top, left = ((side - HEIGHT) // 2 for side in pixels.shape[:2])
    return pixels[top : top + HEIGHT, left : left + HEIGHT]


def main(arguments: Any = None) -> None:
    """Draw a video of an extraction."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", metavar="DIR", help="of mvitv2 extract --out")
    parser.add_argument("--to", metavar="FILE", required=True, help=".png, .pdf or .svg")
    parser.add_argument("--name", help="of a video's files; the first video's where not given")
    parser.add_argument("--marks", type=float, default=0.0, help="seconds from line to line")
    options = parser.parse_args(arguments)
    for rows in read_features(options.folder):
        if options.name in (None, rows.name) and rows.times is not None:
            return draw_similarity(rows, options.to, options.marks)
    named = f" named {options.name}" if options.name else ""
    parser.error(f"{options.folder} holds no video{named}")


if __name__ == "__main__":
    main()
