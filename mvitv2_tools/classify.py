"""Classifiers of pictures and clips: parts of inputs in, labels out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from mvitv2_core.media import MediaError, Video, open_image
from mvitv2_core.model_info import ModelInfo
from mvitv2_core.transforms import ClipTransform, ImageTransform

from .answers import Answer, Label
from .feed import Part
from .inputs import Input
from .windows import read_windows

LONG = 60.0  # seconds from which on a video is answered window by window, unless told otherwise
WINDOW = 10.0  # seconds of one, unless told otherwise


class Classifier:
    """A model with its transform and labels.

    Args:
        model: gives (B, classes) logits.
        info: how inputs are prepared.
        labels: names by index, None where they are not known.
        device: where the model runs.
        topk: labels of an answer.
        window, stride: seconds of the windows of videos; ``window`` None for windows of 10 in
            videos longer than a minute and, with a ``stride``, in all, 0 for one answer in any
            case; ``stride`` None for windows that follow each other.
        draw: keep a small picture of each part.

    Raises:
        ValueError: labels of another number than classes, or windows that cannot be.
    """

    def __init__(
        self,
        model: nn.Module,
        info: ModelInfo,
        labels: Sequence[str] | None,
        device: torch.device,
        topk: int = 5,
        window: float | None = None,
        stride: float | None = None,
        draw: bool = False,
    ) -> None:
        if labels is not None and len(labels) != info.num_classes:
            raise ValueError(f"{len(labels)} labels do not fit {info.num_classes} classes")
        if info.task == "clip" and window and window < info.seconds:
            raise ValueError(
                f"--window must be at least the {info.seconds:.2f} s that a clip spans, got "
                f"{window:g}"
            )
        if stride is not None:
            if window == 0:
                raise ValueError(
                    f"--stride {stride:g} is from window to window: --window must be above 0 "
                    f"beside it, got 0"
                )
            window = WINDOW if window is None else window
        self.model, self.info, self.labels = model.to(device).eval(), info, labels
        self.device, self.topk, self.window, self.stride = device, topk, window, stride
        self.draw = draw
        self.image = ImageTransform(info) if info.task == "image" else None
        self.clip = ClipTransform(info) if info.task == "clip" else None

    def read_picture(self, item: Input) -> Part:
        """A picture's (1, 3, H, W).

        Raises:
            MediaError: it cannot be read, or the model takes videos.
        """
        if self.image is None:
            raise MediaError(f"{item.path}: is a picture, and {self.info.name} takes videos")
        image = open_image(item.path)
        part = Part(item, self.image(image)[None])
        if self.draw:
            image.thumbnail((320, 320))
            pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
            part.picture = pixels.view(image.height, image.width, 3)
        return part

    def read_video(self, item: Input) -> Iterator[Part]:
        """A video's (views, 3, T, H, W), or those of each window.

        Raises:
            MediaError: it cannot be read, or the model takes pictures.
        """
        if self.clip is None:
            raise MediaError(f"{item.path}: is a video, and {self.info.name} takes pictures")
        with Video(item.path, self.clip.decoded_cover) as video:
            length = self.window
            if length is None:
                length = WINDOW if (video.duration or 0) > LONG else 0.0
            if not length:
                yield self._part(item, self.clip.read(video), None, self.clip)
            else:
                windows = read_windows(video, self.clip, length, self.stride or length)
                previous = None
                for window, clips in windows:  # one behind, so that the last is known as such
                    if previous is not None:
                        previous.last = False
                        yield previous
                    previous = self._part(item, clips, (window.start, window.end), self.clip)
                if previous is not None:
                    yield previous
            if video.broken:
                problem = f"{item.path}: damaged, answered for what comes before: {video.broken}"
                yield Part(item, error=problem)

    def _part(
        self,
        item: Input,
        clips: list[Tensor],
        span: tuple[float, float] | None,
        transform: ClipTransform,
    ) -> Part:
        # All clips of a short video are the same: once is enough.
        same = all(torch.equal(clip, clips[0]) for clip in clips[1:])
        views = torch.cat([transform.prepare(clip) for clip in clips[: 1 if same else None]])
        middle = clips[len(clips) // 2]
        return Part(item, views, span, middle[len(middle) // 2] if self.draw else None)

    @torch.inference_mode()
    def answer(self, parts: Iterable[Part], batch: int) -> Iterator[Answer]:
        """Answers in order; the model sees at most ``batch`` views at a time."""
        waiting: list[Part] = []
        for part in parts:
            waiting.append(part)
            if part.error or sum(0 if p.error else len(p.data) for p in waiting) >= batch:
                yield from self._answer(waiting, batch)
                waiting = []
        yield from self._answer(waiting, batch)

    def _answer(self, parts: list[Part], batch: int) -> Iterator[Answer]:
        whole = [part for part in parts if not part.error]
        if whole:
            views = torch.cat([part.data for part in whole])
            scores = torch.cat([self._scores(v) for v in views.split(batch)])
            each = iter(scores.split([len(part.data) for part in whole]))
        for part in parts:
            if part.error:
                yield Answer(part)
                continue
            # PySlowFast's test sums the probabilities of the views (DATA.ENSEMBLE_METHOD sum).
            probabilities, order = next(each).mean(dim=0).sort(descending=True)
            top = zip(order[: self.topk].tolist(), probabilities.tolist(), strict=False)
            part.data = None
            yield Answer(part, [Label(i, self.name(i), p) for i, p in top])

    def _scores(self, views: Tensor) -> Tensor:
        logits = self.model(views.to(self.device)).float()
        sigmoid = self.info.activation == "sigmoid"
        return (logits.sigmoid() if sigmoid else logits.softmax(dim=1)).cpu()

    def name(self, index: int) -> str:
        """Of a class, "" where it is not known."""
        return self.labels[index] if self.labels is not None else ""
