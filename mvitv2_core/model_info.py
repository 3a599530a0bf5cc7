"""What a model takes and what its answers mean: the test settings behind each published figure.

Sources, in the official repositories:

- images: facebookresearch/mvit ``mvit/config/defaults.py`` (``DATA.MEAN``, ``STD``,
  ``TEST_CROP_SIZE``, ``VAL_CROP_RATIO``) and ``mvit/datasets/imagenet.py`` (Pillow's bicubic,
  centre crop);
- clips: PySlowFast ``slowfast/config/defaults.py``, the recipe that each model names
  (``DATA``, ``TEST``), ``slowfast/datasets/kinetics.py`` and ``ssv2.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from .checkpoint.hub import OFFICIAL, Official

Sampling = Literal["offset", "fraction", "segments"]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SLOWFAST_MEAN, SLOWFAST_STD = (0.45,) * 3, (0.225,) * 3
LICENCE = "Apache-2.0, as {repository} states for itself; none is stated for the weights alone"


@dataclass(frozen=True)
class ModelInfo:
    """A classifier's input and output, as its published figure was tested.

    Args:
        name: the model's.
        task: "image" or "clip".
        num_classes: outputs.
        labels: name of a list that ``mvitv2_core.labels.read_labels`` knows; None where the
            names of the classes are not known here.
        input_size: (H, W), or (T, H, W) for clips, in pixels and frames.
        mean, std: of pixel values in 0 to 1, for channels in ``channel_order``.
        resize: length in pixels of the shorter side before the crop; of a crop that is not square,
            see ``cover``. At least the crop's shorter side.
        interpolation: "bicubic" is Pillow's, antialiased, on 8-bit pixels. "area" is swscale's,
            at decoding. "bilinear" is PyTorch's, without antialiasing, on floating point.
        views: clips in time, and crops of each: one central, or three along the longer side.
        sampling_rate: frames of a video at ``target_fps`` from one frame of a clip to the next;
            not used by "segments".
        target_fps: frames a second that ``sampling_rate`` counts in.
        sampling: how clips lie in a video. "offset": from its start to its end in whole frames
            (the centre where there is one). "fraction": view i starts at i / views of what is
            left. "segments": one clip, a frame from the middle of each of T equal parts.
        activation: "softmax", or "sigmoid" where several labels may hold at once.
        channel_order: "RGB" or "BGR", of what the model takes.
        source: URL of the weights; "" without.
        licence: of the weights.
        published: the authors' figure, not measured by this project; "" where there is none.
        recipe: the official config that it was tested with; "" without.

    Raises:
        ValueError: ``resize`` leaves less than the crop.
    """

    name: str
    task: Literal["image", "clip"]
    num_classes: int
    labels: str | None
    input_size: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int
    interpolation: Literal["bicubic", "area", "bilinear"]
    views: tuple[int, int] = (1, 1)
    sampling_rate: int = 1
    target_fps: float = 30.0
    sampling: Sampling = "offset"
    activation: Literal["softmax", "sigmoid"] = "softmax"
    channel_order: Literal["RGB", "BGR"] = "RGB"
    source: str = ""
    licence: str = ""
    published: str = ""
    recipe: str = ""

    def __post_init__(self) -> None:
        if self.resize < min(self.crop):
            raise ValueError(
                f"resize must be at least the shorter side of the crop {self.crop}, got "
                f"{self.resize}"
            )

    @property
    def crop(self) -> tuple[int, int]:
        """(H, W) that is cut out after resizing."""
        return self.input_size[-2], self.input_size[-1]

    @property
    def cover(self) -> tuple[int, int]:
        """(H, W) that a picture is resized to just cover before the crop: the crop in proportion,
        its shorter side ``resize`` long."""
        height, width = (n * self.resize // min(self.crop) for n in self.crop)
        return height, width

    @property
    def frames(self) -> int:
        """Frames of a clip; 1 for images."""
        return self.input_size[0] if self.task == "clip" else 1

    @property
    def seconds(self) -> float:
        """What a clip spans in time; 0 for images and for "segments", which span the video."""
        spans = self.task == "clip" and self.sampling != "segments"
        return self.frames * self.sampling_rate / self.target_fps if spans else 0.0

    def sized(self, input_size: tuple[int, ...]) -> ModelInfo:
        """The same for another input size, ``resize`` in proportion to the crop's shorter side."""
        ratio = self.resize / min(self.crop)
        return replace(self, input_size=input_size, resize=int(ratio * min(input_size[-2:])))


def official_info(name: str) -> ModelInfo:
    """What an official image or clip model was tested with.

    Raises:
        ValueError: ``name`` is not that of an official classifier.
    """
    official = OFFICIAL.get(name)
    if official is None or official.config is None:
        raise ValueError(f"name must be that of an official classifier, got {name!r}")
    config = official.config()
    return _info(name, official, config.num_classes, config.input_size)


def plain_info(name: str, num_classes: int, input_size: Sequence[int]) -> ModelInfo:
    """For a model without official weights: tested as the image or Kinetics models are."""
    size = tuple(input_size)
    info = image_info(name, num_classes) if len(size) == 2 else clip_info(name, num_classes, size)
    return info.sized(size)


def image_info(name: str, num_classes: int, labels: str | None = None) -> ModelInfo:
    """facebookresearch/mvit's validation transform at 224."""
    return ModelInfo(
        name=name,
        task="image",
        num_classes=num_classes,
        labels=labels,
        input_size=(224, 224),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        resize=int(1 / 0.875 * 224),
        interpolation="bicubic",
    )


def clip_info(
    name: str, num_classes: int, input_size: tuple[int, ...], labels: str | None = None
) -> ModelInfo:
    """PySlowFast's test of MViTv2-S 16x4 on Kinetics, for any size."""
    return ModelInfo(
        name=name,
        task="clip",
        num_classes=num_classes,
        labels=labels,
        input_size=(input_size[0], 224, 224),
        mean=SLOWFAST_MEAN,
        std=SLOWFAST_STD,
        resize=256,
        interpolation="area",
        views=(5, 1),
        sampling_rate=4,
    ).sized(input_size)


def _info(name: str, official: Official, classes: int, size: tuple[int, ...]) -> ModelInfo:
    if official.format == "image":
        info = image_info(name, classes, "imagenet-1k" if name.endswith("in1k") else None)
        return _with_origin(info, official, "facebookresearch/mvit")
    large = official.variant == "L"
    kinetics = name.endswith("k400")
    info = clip_info(name, classes, size, "kinetics-400" if kinetics else None)
    info = replace(info, sampling_rate=4 if official.variant == "S" else 3)
    if large:
        info = replace(info, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    if not kinetics:
        # Frames are read as BGR, normalised, and only then turned into RGB
        # (DATA.REVERSE_INPUT_CHANNEL): L's three means meet the channels in reverse.
        mean, std = info.mean[::-1], info.std[::-1]
        info = replace(info, mean=mean, std=std, sampling="segments", interpolation="bilinear")
    if large or not kinetics:
        # With three crops the shorter side is the crop (TEST.NUM_SPATIAL_CROPS).
        info = replace(info, resize=min(size[-2:]), views=(5 if kinetics else 1, 3))
    return _with_origin(info, official, "PySlowFast")


def _with_origin(info: ModelInfo, official: Official, repository: str) -> ModelInfo:
    return replace(
        info,
        source=official.url,
        licence=LICENCE.format(repository=repository),
        published=official.published,
        recipe=official.recipe,
    )
