"""Detectors through detectron2: its model, its resizing of inputs, its visualizer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from mvitv2_core.media import MediaError, Video, open_image

from .answers import Answer, Region, Thing
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
        score: least score of an object that counts. Where the model drops more, it drops that.
        every: of a video, each how-manieth frame is looked at.
        draw: make drawings.
        stuff: of a panoptic model's stuff, detectron2's ``stuff_classes`` and ``stuff_colors``,
            where they are known.
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
        stuff: Mapping[str, Any] | None = None,
    ) -> None:
        from detectron2.data.transforms import AugmentationList

        if image_format not in ("RGB", "BGR"):
            raise ValueError(f"image_format must be RGB or BGR, got {image_format!r}")
        self.model, self.device = model.to(device).eval(), device
        for module in model.modules():  # heads drop what their config says before it gets here
            if getattr(module, "test_score_thresh", 0) > score:
                module.test_score_thresh = score  # type: ignore[assignment]
        self.augmentations = AugmentationList(list(augmentations))
        self.image_format, self.labels = image_format, labels
        self.score, self.every, self.draw = score, every, draw
        self.stuff = dict(stuff or {})
        self.stuff_names = dict(enumerate(self.stuff.pop("stuff_classes", ())))

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
                if video.duration is not None:  # what is left may be less than so many frames
                    end = max(min(end, video.duration), frame.seconds + 1 / video.fps)
                previous = self._part(item, pixels, (frame.seconds, end))
            if previous is None:
                raise MediaError(f"{item.path}: no frame could be decoded")
            yield previous
            if video.broken:
                problem = f"{item.path}: damaged, answered for what comes before: {video.broken}"
                yield Part(item, error=problem)

    def _part(self, item: Input, rgb: Any, span: tuple[float, float] | None) -> Part:
        """The steps of detectron2's ``DefaultPredictor`` up to the model.

        Raises:
            MediaError: a strip that resizing would leave without a single row or column.
        """
        from detectron2.data.transforms import AugInput

        height, width = rgb.shape[:2]
        pixels = AugInput(rgb if self.image_format == "RGB" else rgb[:, :, ::-1])
        try:
            self.augmentations(pixels)
        except ValueError as error:
            raise MediaError(
                f"{item.path}: {width}x{height} pixels cannot be resized as the config has it: "
                f"{error}"
            ) from error
        image = torch.as_tensor(pixels.image.astype("float32").transpose(2, 0, 1))
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
            answer = Answer(part, things=self._things(instances))
            if "panoptic_seg" in output:
                panoptic, segments = output["panoptic_seg"]
                panoptic = panoptic.to("cpu")
                answer.stuff = self._stuff(panoptic, segments)
            if self.draw and answer.stuff is not None:
                sure = [s for s in segments if not s["isthing"] or s["score"] >= self.score]
                drawing = self._visualizer(part.picture).draw_panoptic_seg(panoptic, sure)
                answer.drawing = drawing.get_image()
            elif self.draw:
                drawing = self._visualizer(part.picture).draw_instance_predictions(instances)
                answer.drawing = drawing.get_image()
            yield answer

    def _things(self, instances: Any) -> list[Thing]:
        masks: list[dict[str, Any] | None] = [None] * len(instances)
        if instances.has("pred_masks"):
            masks = [_run_lengths(mask) for mask in instances.pred_masks]
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

    def _stuff(self, panoptic: Tensor, segments: Sequence[dict[str, Any]]) -> list[Region]:
        """Of an (H, W) map of segments' numbers."""
        regions = []
        for segment in segments:
            if segment["isthing"]:
                continue
            index, mask = segment["category_id"], panoptic == segment["id"]
            name = self.stuff_names.get(index, "")
            regions.append(Region(index, name, mask.float().mean().item(), _run_lengths(mask)))
        return sorted(regions, key=lambda region: -region.share)

    def _visualizer(self, rgb: Any) -> Any:
        from detectron2.utils.visualizer import Visualizer

        known: dict[str, Any] = {"stuff_classes": _Numbered(self.stuff_names), **self.stuff}
        known["thing_classes"] = None if self.labels is None else list(self.labels)
        metadata = SimpleNamespace(get=lambda key, default=None: known.get(key) or default, **known)
        return Visualizer(rgb, metadata, scale=max(1.0, 480 / max(rgb.shape[:2])))

    def name(self, index: int) -> str:
        """Of a class, "" where it is not known."""
        return self.labels[index] if self.labels is not None else ""


class _Numbered(dict[int, str]):
    """Names of classes by index, "class 7" where there is none."""

    def __missing__(self, index: int) -> str:
        return f"class {index}"


def _run_lengths(mask: Tensor) -> dict[str, Any]:
    """(H, W) booleans as COCO run lengths."""
    from pycocotools.mask import encode

    run = encode(mask.byte().numpy().copy(order="F"))
    return {"size": run["size"], "counts": run["counts"].decode("ascii")}
