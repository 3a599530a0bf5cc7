"""What ``--out`` writes: pictures and videos with answers, contact sheets, labels over time."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mvitv2_core.media import Video

from .answers import Answer
from .report import clock

TILE, COLUMNS, TILES = 240, 4, 40
NARROW = 320  # pixels of width from which on labels can be read below a video
BLUE = (26, 84, 144)


class Writer:
    """Takes answers in order and writes files into a folder.

    Args:
        folder: is there. Files of an earlier run are replaced.
        paths: of all inputs; drawings name them by `shortest_names`.
    """

    def __init__(self, folder: str, paths: Iterable[str]) -> None:
        self.folder, self.written = Path(folder), []  # type: Path, list[Path]
        self._titles = shortest_names(paths)
        self._names: dict[str, str] = {}
        self._tiles: list[Image.Image] = []
        self._windows: dict[str, list[Answer]] = defaultdict(list)
        self._video: VideoFile | None = None

    def add(self, answer: Answer) -> None:
        """Draw one answer, or keep what is needed for the end."""
        part = answer.part
        if part.error:
            self._end_video()
            return
        if answer.drawing is not None:
            if part.span is None:
                self._save(Image.fromarray(answer.drawing), f"{self._name(part.input.path)}.jpg")
                self._add_tile(answer)
            else:
                self._add_frame(answer)
        elif answer.things is None:
            self._add_tile(answer)
            if part.input.kind == "video":
                self._windows[part.input.path].append(answer)
                if part.last:
                    self._finish_clip(part.input.path)
        part.picture = answer.drawing = None

    def close(self) -> list[Path]:
        """Write what remains; returns all files."""
        self._end_video()
        for path in list(self._windows):
            self._finish_clip(path)
        if self._tiles:
            self._save(contact_sheet(self._tiles), "contact_sheet.jpg")
        return self.written

    def _add_tile(self, answer: Answer) -> None:
        if len(self._tiles) < TILES:
            pixels = answer.drawing if answer.drawing is not None else answer.part.picture
            title = self._titles[answer.part.input.path]
            self._tiles.append(tile(np.asarray(pixels), answer, title))

    def _add_frame(self, answer: Answer) -> None:
        part = answer.part
        assert part.span is not None
        if self._video is None:
            path = self.folder / f"{self._name(part.input.path)}.mp4"
            rate = 1 / max(part.span[1] - part.span[0], 1e-3)
            self._video = VideoFile(path, rate)
            self._add_tile(answer)
        self._video.add(answer.drawing)
        if part.last:
            self._end_video()

    def _end_video(self) -> None:
        if self._video is not None:
            self._video.close()
            self.written.append(self._video.path)
            self._video = None

    def _finish_clip(self, path: str) -> None:
        answers = self._windows.pop(path)
        name = self._name(path)
        self.written.append(label_video(path, answers, self.folder / f"{name}.mp4"))
        if len(answers) > 1:
            target = self.folder / f"{name}_labels.png"
            self.written.append(plot_labels(answers, target, self._titles[path]))

    def _name(self, path: str) -> str:
        """A file name for an input: its own, with a number where two are alike."""
        if path not in self._names:
            stem = re.sub(r"[^\w.-]+", "_", Path(path).stem) or "input"
            taken, name, number = set(self._names.values()), stem, 2
            while name in taken or name == "contact_sheet":
                name, number = f"{stem}_{number}", number + 1
            self._names[path] = name
        return self._names[path]

    def _save(self, image: Image.Image, name: str) -> None:
        path = self.folder / name
        image.save(path, quality=92)
        self.written.append(path)


class VideoFile:
    """H.264 in MP4, frame by frame."""

    def __init__(self, path: Path, rate: float) -> None:
        import av
        from av.video.reformatter import VideoReformatter

        self.path, self._av = path, av
        self._container = av.open(str(path), "w")
        self._reformatter = VideoReformatter()
        self._stream: Any = None
        self._rate = max(round(rate * 1000), 1000)

    def add(self, pixels: Any) -> None:
        """(H, W, 3) uint8; a last odd row or column is left out, as the format has even sizes."""
        from fractions import Fraction

        if self._stream is None:
            rate = Fraction(self._rate, 1000)
            self._stream = self._container.add_stream("libx264", rate=rate)
            self._stream.height, self._stream.width = (n - n % 2 for n in pixels.shape[:2])
            self._stream.pix_fmt = "yuv420p"
            self._stream.options = {"crf": "20", "preset": "veryfast"}
        height, width = self._stream.height, self._stream.width
        frame = self._av.VideoFrame.from_ndarray(
            np.ascontiguousarray(pixels[:height, :width]), format="rgb24"
        )
        frame = self._reformatter.reformat(frame, width=width, height=height, format="yuv420p")
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Write what the encoder holds."""
        if self._stream is not None:
            self._container.mux(self._stream.encode(None))
        self._container.close()


def label_video(path: str, answers: Sequence[Answer], target: Path) -> Path:
    """The video with the answer of its moment in a bar below it."""
    with Video(path) as video:
        output = VideoFile(target, video.fps)
        current, bar = None, None
        try:
            for frame in video.frames():
                pixels = video.to_tensor(frame.picture).numpy()
                larger = -(-NARROW // pixels.shape[1])
                pixels = pixels.repeat(larger, axis=0).repeat(larger, axis=1)
                answer = _at(answers, frame.seconds)
                if bar is None or answer is not current:
                    current, bar = answer, label_bar(answer, pixels.shape[1])
                output.add(np.concatenate([pixels, bar]))
        finally:
            output.close()
    return target


def _at(answers: Sequence[Answer], seconds: float) -> Answer:
    """The answer of the latest window that has begun."""
    begun = [a for a in answers if a.part.span is None or a.part.span[0] <= seconds]
    return begun[-1] if begun else answers[0]


def label_bar(answer: Answer, width: int, rows: int = 3) -> np.ndarray:
    """(height, width, 3) uint8: the first labels with bars as long as they are likely."""
    size = max(12, min(28, width // 22))
    height = rows * (size + 8) + 8
    image = Image.new("RGB", (width, height + height % 2), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size)
    for row, label in enumerate(answer.labels[:rows]):
        top = 6 + row * (size + 8)
        draw.rectangle((0, top, int(width * label.probability), top + size + 3), fill="#a8c8ec")
        draw.text((6, top), f"{100 * label.probability:.1f} %  {label.text}", "black", font)
    return np.asarray(image)


def shortest_names(paths: Iterable[str]) -> dict[str, str]:
    """Each path's own name, with as many of its folders as no other path's end has."""
    parts = {path: Path(path).parts for path in paths}
    ends = Counter(p[-n:] for p in parts.values() for n in range(1, len(p) + 1))
    names = {}
    for path, p in parts.items():
        size = next((n for n in range(1, len(p)) if ends[p[-n:]] == 1), len(p))
        names[path] = str(Path(*p[-size:]))
    return names


def tile(pixels: np.ndarray, answer: Answer, name: str) -> Image.Image:
    """A small picture with its name and answer below."""
    image = Image.fromarray(pixels)
    image.thumbnail((TILE, TILE)) if max(image.size) > TILE else None
    scale = TILE / max(image.size)
    if scale > 1:
        size = (round(image.width * scale), round(image.height * scale))
        image = image.resize(size, Image.Resampling.BILINEAR)
    canvas = Image.new("RGB", (TILE, TILE + 46), "white")
    canvas.paste(image, ((TILE - image.width) // 2, (TILE - image.height) // 2))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(14)
    if answer.part.span is not None and answer.things is None:
        name += f"  {clock(answer.part.span[0])}"
    if answer.things is None:
        text = f"{100 * answer.labels[0].probability:.1f} %  {answer.labels[0].text}"
    else:
        text = f"{len(answer.things)} object{'' if len(answer.things) == 1 else 's'}"
    draw.text((4, TILE + 3), _fitting(name, font), "#555555", font)
    draw.text((4, TILE + 23), _fitting(text, font), BLUE, font)
    return canvas


def _fitting(text: str, font: Any) -> str:
    while font.getlength(text) > TILE - 8:
        text = f"{text[:-2].rstrip('…')}…"
    return text


def contact_sheet(tiles: Sequence[Image.Image]) -> Image.Image:
    """Small pictures in rows of four."""
    columns = min(COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    width, height = tiles[0].width + 10, tiles[0].height + 10
    sheet = Image.new("RGB", (columns * width + 10, rows * height + 10), "white")
    for index, image in enumerate(tiles):
        sheet.paste(image, (10 + index % columns * width, 10 + index // columns * height))
    return sheet


def plot_labels(answers: Sequence[Answer], target: Path, name: str, rows: int = 10) -> Path:
    """The strongest labels over a video's time: a row for each, dark where it is likely.

    Where windows overlap, a stretch shows their mean. What is beyond an answer's ``--topk`` counts
    as 0.
    """
    from matplotlib.figure import Figure

    totals: dict[str, float] = defaultdict(float)
    for answer in answers:
        for label in answer.labels:
            totals[label.text] += label.probability
    names = sorted(totals, key=lambda text: -totals[text])[:rows]
    figure = Figure(figsize=(11, 1.4 + 0.36 * len(names)), layout="constrained")
    axis = figure.subplots()
    stretches = likely_over_time(answers)
    for start, end, likely in stretches:
        for row, text in enumerate(names):
            alpha = min(likely.get(text, 0.0), 1.0)  # a sum may round upwards
            axis.barh(row, end - start, left=start, height=0.8, color="#1a5490", alpha=alpha)
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.set_xlim(stretches[0][0], stretches[-1][1])
    axis.set_xlabel("seconds")
    axis.set_title(f"{name}: the darker, the likelier")
    figure.savefig(target, dpi=110)
    return target


def likely_over_time(answers: Sequence[Answer]) -> list[tuple[float, float, dict[str, float]]]:
    """What windows say of each stretch of time, in order and without overlap.

    Returns:
        start, end, and each label's mean probability over the windows that cover the stretch; a
        stretch that none covers is left out.
    """
    spans = [answer.part.span for answer in answers if answer.part.span is not None]
    edges = sorted({seconds for span in spans for seconds in span})
    stretches = []
    for start, end in pairwise(edges):
        over = [a for a, span in zip(answers, spans, strict=True) if span[0] <= start < span[1]]
        likely: dict[str, float] = defaultdict(float)
        for answer in over:
            for label in answer.labels:
                likely[label.text] += label.probability
        if over:
            mean = {text: total / len(over) for text, total in likely.items()}
            stretches.append((start, end, mean))
    return stretches
