"""Actions of people in videos (AVA): a model that needs a box for each person beside the clip."""

from __future__ import annotations

import csv
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mvitv2_core.media import MediaError, Video
from mvitv2_core.model_info import ModelInfo
from mvitv2_core.resize import scale_to_cover
from mvitv2_core.transforms import pick

from .answers import Answer, Thing
from .feed import Part
from .inputs import VIDEOS, Input

COLUMNS = ("video", "second", "x1", "y1", "x2", "y2")
# {video: {second: boxes}}, a box as left, top, right, bottom from 0 to 1.
Boxes = Mapping[str, Mapping[float, Sequence[tuple[float, ...]]]]


def within(sides: Sequence[float]) -> tuple[float, ...] | None:
    """A box's x1, y1, x2, y2 as fractions of the picture; None for one that is not in it.

    Detectors' boxes stick out a little: what does by 0.01 at most is cut off.
    """
    x1, y1, x2, y2 = cut = tuple(min(max(side, 0.0), 1.0) for side in sides)
    near = all(-0.01 <= side <= 1.01 for side in sides)
    return cut if near and x1 < x2 and y1 < y2 else None


def video_name(path: str | Path) -> str:
    """A video without its ending: what follows a dot may be a part of the name, too."""
    path = Path(path)
    return (path.with_suffix("") if path.suffix.lower() in VIDEOS else path).as_posix()


def read_boxes(path: str) -> Boxes:
    """Boxes of a CSV file, each once, whatever labels its rows go on with.

    Args:
        path: AVA's own, rows of ``COLUMNS`` without a heading; or with one that names them, as
            ``mvitv2 data ava`` takes. A video is named with or without its ending, and with as
            many of its folders as tell it from others.

    Raises:
        ValueError: names the file, the line, and what is wrong with it.
    """
    found: dict[str, dict[float, list[tuple[float, ...]]]] = defaultdict(lambda: defaultdict(list))
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.reader(stream))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--boxes {path} cannot be read: {error}") from error
    heading = [name.strip().lower() for name in rows[0]] if rows else []
    headed = COLUMNS[0] in heading
    if headed and not set(COLUMNS) <= set(heading):
        names = ", ".join(COLUMNS)
        raise ValueError(f"{path}: line 1 must name {names}, got {','.join(rows[0])!r}")
    where = [heading.index(name) for name in COLUMNS] if headed else range(len(COLUMNS))
    for number, row in enumerate(rows[headed:], 1 + headed):
        try:
            name, *numbers = (row[column] for column in where)
            second, *box = map(float, numbers)
        except (ValueError, IndexError) as error:
            raise ValueError(
                f"{path}: line {number} must be {', '.join(COLUMNS)}, got {','.join(row)!r}"
            ) from error
        sides = within(box)
        if sides is None or not second >= 0:
            raise ValueError(
                f"{path}: line {number} must hold a second from 0 and a box in 0 to 1 with "
                f"x1 < x2 and y1 < y2, got {','.join(row)!r}"
            )
        boxes = found[video_name(name)][second]
        if sides not in boxes:
            boxes.append(sides)
    return found


class ActionDetector:
    """An AVA model of PySlowFast with boxes.

    Args:
        model: takes a list of one (B, 3, T, H, W) clip and (R, 5) boxes in pixels, gives (R,
            classes) probabilities.
        info: how clips are prepared (``mvitv2_slowfast.model_info.read_action_info``).
        boxes: as ``read_boxes`` gives them.
        labels: names by index, None where they are not known.
        device: where the model runs.
        topk: labels of a box at most.
        score: least probability that counts.
        draw: make drawings.
    """

    def __init__(
        self,
        model: nn.Module,
        info: ModelInfo,
        boxes: Boxes,
        labels: Sequence[str] | None,
        device: torch.device,
        topk: int = 5,
        score: float = 0.5,
        draw: bool = False,
    ) -> None:
        if labels is not None and len(labels) != info.num_classes:
            raise ValueError(f"{len(labels)} labels do not fit {info.num_classes} classes")
        self.model, self.info, self.boxes = model.to(device).eval(), info, boxes
        self.labels, self.device = labels, device
        self.topk, self.score, self.draw = topk, score, draw

    def read_picture(self, item: Input) -> Part:
        """Raises MediaError: there are no actions in a picture."""
        raise MediaError(f"{item.path}: is a picture, and {self.info.name} takes videos")

    def read_video(self, item: Input) -> Iterator[Part]:
        """The clip around each second that has boxes.

        Raises:
            MediaError: it cannot be read, or there are no boxes for it.
        """
        seconds = self._seconds(item.path)
        if not seconds:
            name = Path(video_name(item.path)).name
            raise MediaError(f"{item.path}: --boxes holds no box for {name}")
        for second in sorted(seconds):
            with Video(item.path) as video:
                frames = self.read_clip(video, second)
            last = second == max(seconds)
            span = (second, second + 1)  # AVA labels each second
            if frames is None:
                problem = f"{item.path}: ends before second {second:g}, which has boxes"
                yield Part(item, span=span, error=problem, last=last)
                continue
            middle = frames[len(frames) // 2]
            height, width = middle.shape[:2]
            shown = torch.tensor(seconds[second]) * torch.tensor([width, height, width, height])
            clip, boxes = self.prepare(frames, seconds[second])
            yield Part(item, (clip, boxes, shown), span, middle, last=last)

    def _seconds(self, path: str) -> Mapping[float, Sequence[tuple[float, ...]]] | None:
        """Boxes of the video, by its name with as many of its folders as there are boxes for."""
        parts = Path(video_name(os.path.abspath(path))).parts
        names = (Path(*parts[first:]).as_posix() for first in range(len(parts)))
        return next((self.boxes[name] for name in names if name in self.boxes), None)

    def read_clip(self, video: Video, second: float) -> Tensor | None:
        """(T, h, w, 3) uint8 around a second; None where the video has ended by then.

        The frames are those of PySlowFast's ``ava_dataset.py``, which reads frames extracted at
        30 a second: from half a clip before the second on, the first and the last repeated.
        """
        rate, count = self.info.sampling_rate, self.info.frames
        thirtieths = round(30 * second) - count * rate // 2 + rate * torch.arange(count)
        numbers = (thirtieths.clamp(min=0).double() / 30 * video.fps + 1e-6).long()
        last = (video.duration or float("inf")) * video.fps
        if second * video.fps >= last:
            return None
        first = int(numbers[0])
        frames = video.frames(first / video.fps, int(numbers[-1]) / video.fps)
        return pick(video, frames, numbers - first)

    def prepare(self, frames: Tensor, boxes: Sequence[tuple[float, ...]]) -> tuple[Tensor, Tensor]:
        """Whole frames with the shorter side scaled, as PySlowFast's test has them.

        Returns:
            (1, 3, T, H, W) float32, and (R, 5) rows of 0 and a box in pixels of these.
        """
        height, width = frames.shape[1:3]
        clip = scale_to_cover(frames.permute(3, 0, 1, 2).float(), self.info.cover)
        clip = clip.round() / 255  # OpenCV scales whole numbers
        clip = clip.flip(0) if self.info.channel_order == "BGR" else clip
        mean, std = (torch.tensor(v)[:, None, None, None] for v in (self.info.mean, self.info.std))
        # The longer side is rounded down, and upstream scales boxes by what became of it. It keeps
        # them off the last pixel before and after.
        scale = max(clip.shape[2:]) / max(height, width)
        pixels = torch.tensor(boxes) * torch.tensor([width, height, width, height])
        pixels = pixels.minimum(torch.tensor([width - 1, height - 1] * 2)) * scale
        pixels = pixels.minimum(torch.tensor([clip.shape[3] - 1, clip.shape[2] - 1] * 2))
        return ((clip - mean) / std)[None], torch.cat([torch.zeros(len(boxes), 1), pixels], dim=1)

    @torch.inference_mode()
    def answer(self, parts: Iterable[Part], batch: int) -> Iterator[Answer]:
        """Answers in order, one clip at a time whatever the batch: widths differ."""
        for part in parts:
            if part.error:
                yield Answer(part)
                continue
            clip, boxes, shown = part.data
            part.data = None
            scores = self.model([clip.to(self.device)], boxes.to(self.device)).float().cpu()
            things = sorted(self._things(scores, shown), key=lambda thing: -thing.score)
            yield Answer(part, things=things, drawing=self._drawing(part, things))

    def _things(self, scores: Tensor, boxes: Tensor) -> Iterator[Thing]:
        """The likeliest labels of each box, (R, classes) and (R, 4) pixels of the video."""
        for row, box in zip(scores, boxes.tolist(), strict=True):
            values, order = row.sort(descending=True)
            for value, index in zip(values[: self.topk].tolist(), order.tolist(), strict=False):
                if value >= self.score:
                    name = self.labels[index] if self.labels is not None else ""
                    yield Thing(index, name, value, tuple(box))

    def _drawing(self, part: Part, things: Sequence[Thing]) -> Any:
        """The middle frame with boxes, and their labels inside from the top."""
        if not self.draw:
            return None
        import numpy as np
        from PIL import Image, ImageDraw, ImageFont

        image = Image.fromarray(part.picture.numpy())
        larger = max(1.0, 480 / image.width)
        image = image.resize((round(image.width * larger), round(image.height * larger)))
        draw, font = ImageDraw.Draw(image), ImageFont.load_default(14)
        lines: dict[tuple[float, ...], int] = defaultdict(int)
        for thing in things:
            left, top, right, bottom = (side * larger for side in thing.box)
            draw.rectangle((left, top, right, bottom), outline="#ffd400", width=2)
            place = (left + 4, top + 3 + 17 * lines[thing.box])
            text = f"{100 * thing.score:.0f} % {thing.text}"
            draw.rectangle(draw.textbbox(place, text, font), fill="black")
            draw.text(place, text, "white", font)
            lines[thing.box] += 1
        part.picture = None
        return np.asarray(image)
