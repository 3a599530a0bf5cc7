"""Detectors through detectron2: its model, its resizing of inputs, its visualizer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from mvitv2_core.media import MediaError, Video, open_image

from .answers import Answer, Thing
from .feed import Part
from .inputs import Input


class Detector:
    """A detectron2 model with its test-time resizing and labels.

    Args:
        model: takes and gives detectron2's lists of dicts.
        augmentations: detectron2's, as the config has them for testing.
        image_format: channels that the model takes, "RGB" or "BGR".
        labels: names by index, None where they are not known.
        device: where the model runs.
        score: least score of an object that counts.
        every: of a video, each how-manieth frame is looked at.
        draw: make drawings.
    """

    def __init__(
        self,
        model: nn.Module,
        augmentations: Sequence[Any],
        image_format: str,
        labels: Sequence[str] | None,
        device: torch.device,
        score: float = 0.5,
        every: int = 1,
        draw: bool = False,
    ) -> None:
        from detectron2.data.transforms import AugmentationList

        if image_format not in ("RGB", "BGR"):
            raise ValueError(f"image_format must be RGB or BGR, got {image_format!r}")
        self.model, self.device = model.to(device).eval(), device
        self.augmentations = AugmentationList(list(augmentations))
        self.image_format, self.labels = image_format, labels
        self.score, self.every, self.draw = score, every, draw

    def read_picture(self, item: Input) -> Part:
        """A picture as detectron2's model takes it.

        Raises:
            MediaError: it cannot be read.
        """
        import numpy as np

        return self._part(item, np.array(open_image(item.path)), None)

    def read_video(self, item: Input) -> Iterator[Part]:
        """Each ``every``-th frame of a video.

        Raises:
            MediaError: it cannot be read.
        """
        with Video(item.path) as video:
            previous = None
            for number, frame in enumerate(video.frames()):
                if number % self.every:
                    continue
                if previous is not None:  # one behind, so that the last is known as such
                    previous.last = False
                    yield previous
                pixels = video.to_tensor(frame.picture).numpy()
                end = frame.seconds + self.every / video.fps
                previous = self._part(item, pixels, (frame.seconds, end))
            if previous is None:
                raise MediaError(f"{item.path}: no frame could be decoded")
            yield previous
            if video.broken:
                problem = f"{item.path}: damaged, answered for what comes before: {video.broken}"
                yield Part(item, error=problem)

    def _part(self, item: Input, rgb: Any, span: tuple[float, float] | None) -> Part:
        """The steps of detectron2's ``DefaultPredictor`` up to the model."""
        from detectron2.data.transforms import AugInput

        pixels = AugInput(rgb if self.image_format == "RGB" else rgb[:, :, ::-1])
        self.augmentations(pixels)
        image = torch.as_tensor(pixels.image.astype("float32").transpose(2, 0, 1))
        height, width = rgb.shape[:2]
        return Part(
            item,
            {"image": image, "height": height, "width": width},
            span,
            rgb if self.draw else None,
        )

    @torch.inference_mode()
    def answer(self, parts: Iterable[Part], batch: int) -> Iterator[Answer]:
        """Answers in order; the model sees at most ``batch`` pictures at a time.

        Only pictures of one size go together: detectron2 would pad the smaller ones, and
        attention sees the padding.
        """
        waiting: list[Part] = []
        for part in parts:
            shapes = {p.data["image"].shape for p in (*waiting, part) if not p.error}
            if len(shapes) > 1:
                yield from self._answer(waiting)
                waiting = []
            waiting.append(part)
            if part.error or len(waiting) == batch:
                yield from self._answer(waiting)
                waiting = []
        yield from self._answer(waiting)

    def _answer(self, parts: list[Part]) -> Iterator[Answer]:
        whole = [part.data for part in parts if not part.error]
        found = iter(self.model(whole) if whole else [])
        for part in parts:
            if part.error:
                yield Answer(part)
                continue
            output = next(found)
            part.data = None
            if "instances" not in output:
                raise ValueError(f"the model gives {', '.join(output)}: no objects to show")
            instances = output["instances"].to("cpu")
            instances = instances[instances.scores >= self.score]
            instances = instances[instances.scores.argsort(descending=True)]
            drawing = self._drawing(part.picture, instances) if self.draw else None
            yield Answer(part, things=self._things(instances), drawing=drawing)

    def _things(self, instances: Any) -> list[Thing]:
        masks: list[dict[str, Any] | None] = [None] * len(instances)
        if instances.has("pred_masks"):
            from pycocotools.mask import encode

            for index, mask in enumerate(instances.pred_masks.byte().numpy()):
                run = encode(mask.copy(order="F"))
                masks[index] = {"size": run["size"], "counts": run["counts"].decode("ascii")}
        rows = zip(
            instances.pred_classes.tolist(),
            instances.scores.tolist(),
            instances.pred_boxes.tensor.tolist(),
            masks,
            strict=True,
        )
        return [
            Thing(index, self.name(index), score, tuple(box), mask)
            for index, score, box, mask in rows
        ]

    def _drawing(self, rgb: Any, instances: Any) -> Any:
        from detectron2.utils.visualizer import Visualizer

        metadata = SimpleNamespace(get=lambda key, default=None: default)
        if self.labels is not None:
            names = list(self.labels)
            metadata.get = lambda key, default=None: names if key == "thing_classes" else default
        scale = max(1.0, 480 / max(rgb.shape[:2]))
        visualizer = Visualizer(rgb, metadata, scale=scale)
        return visualizer.draw_instance_predictions(instances).get_image()

    def name(self, index: int) -> str:
        """Of a class, "" where it is not known."""
        return self.labels[index] if self.labels is not None else ""
