"""How long, how fast and with which model a data set of one's own is trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# The published recipe, which the plan scales: 64 images a step, 67500 steps.
BATCH, STEPS, WARMUP_STEPS = 64, 67500, 250
EPOCHS = 36  # what that is on COCO
LEAST, MOST = 48_000, BATCH * STEPS  # images seen, whatever the size of the data set
# Where the learning rate falls tenfold, as shares of the steps: 52500 and 62500 of 67500.
FALLS = (7 / 9, 25 / 27)


@dataclass(frozen=True)
class Model:
    """A model that the command can write a config for.

    Args:
        variant: of ``mvitv2_core.VARIANTS``; "toy" for one that trains on a CPU in minutes.
        lr: of AdamW at 64 images a step.
        sgd_lr: of SGD at 64 images a step.
        drop_path_rate: of the last block.
        weights: official weights to start from.
        extra: further arguments of the backbone, as text.
        short, short_test, longest: edges in pixels that images are resized to.
        least: images to see at least.
    """

    variant: str
    lr: float = 1.6e-4
    sgd_lr: float = 0.02
    drop_path_rate: float = 0.2
    weights: str = ""
    extra: str = ""
    short: tuple[int, ...] = tuple(range(480, 801, 32))
    short_test: int = 800
    longest: int = 1333
    least: int = LEAST


MODELS = {
    "T": Model("T", weights="mvitv2://mvitv2_tiny_in1k"),
    "S": Model("S", weights="mvitv2://mvitv2_small_in1k"),
    "B": Model("B", drop_path_rate=0.4, weights="mvitv2://mvitv2_base_in1k"),
    # The published IN-1K L widens in the MLP of each stage's last block.
    "L": Model("L", 1e-4, 0.02, 0.5, "mvitv2://mvitv2_large_in1k", "dim_mul_in_att=False"),
    # Learning rates of configs/COCO/toy_mask_rcnn_mvitv2.yaml and its Python sister, at 4 images.
    "toy": Model(
        "toy", 0.016, 0.08, 0.0, short=(112, 128), short_test=128, longest=192, least=2400
    ),
}


@dataclass(frozen=True)
class Plan:
    """Everything that a written config says; see ``make_plan``.

    Args:
        name: of the data set; the catalogue has it with "_train" and "_val".
        model: which.
        files: absolute paths of training json, its images, validation json, its images.
        classes: names in the order of their ids.
        images: training images with something to learn from.
        masks: whether there is a mask head.
        bitmasks: whether its targets are kept as bitmasks, not as polygons.
        batch: images a step, on all GPUs together.
        steps: of training.
        warmup: steps in which the learning rate rises.
        period: steps from one evaluation, and checkpoint, to the next.
        weights: what the model starts from; "" for nothing.
        device: "cuda" or "cpu".
        out: folder of the run.
    """

    name: str
    model: Model
    files: tuple[Path, Path, Path, Path]
    classes: Sequence[str]
    images: int
    masks: bool
    batch: int
    steps: int
    warmup: int
    period: int
    weights: str
    device: str
    out: Path
    bitmasks: bool = False

    @property
    def lr(self) -> float:
        """AdamW's, by the linear rule."""
        return float(f"{self.model.lr * self.batch / BATCH:.6g}")

    @property
    def sgd_lr(self) -> float:
        """SGD's, by the linear rule."""
        return float(f"{self.model.sgd_lr * self.batch / BATCH:.6g}")

    @property
    def falls(self) -> tuple[int, int]:
        """Steps at which the learning rate falls tenfold."""
        first, second = (round(share * self.steps) for share in FALLS)
        second = min(max(second, 2), self.steps - 1)  # there are three steps or more
        return min(max(first, 1), second - 1), second

    @property
    def summary(self) -> str:
        """Two lines for a person."""
        epochs = round(self.steps * self.batch / self.images)
        passes = f"{epochs} epoch{'s' if epochs != 1 else ''}"
        kind = "Mask R-CNN" if self.masks else "Faster R-CNN"
        return (
            f"{kind} on MViTv2 ({self.model.variant}), {len(self.classes)} classes, from "
            f"{self.weights or 'random weights'}\n"
            f"{self.images} images, {self.batch} a step: {self.steps} steps ({passes}), "
            f"lr {self.lr:g} (AdamW), {self.sgd_lr:g} (SGD)"
        )


def make_plan(
    name: str,
    model: Model,
    files: tuple[Path, Path, Path, Path],
    classes: Sequence[str],
    images: int,
    masks: bool,
    batch: int,
    epochs: float | None,
    weights: str | None,
    device: str,
    out: Path,
    bitmasks: bool = False,
) -> Plan:
    """The published recipe, scaled.

    Seen are the images of 36 epochs, but at least 48,000 (small data sets need more epochs; the
    toy model 2,400) and at most the 4.32 million of the recipe. The learning rate goes linearly
    with the batch: 1.6e-4 x batch / 64 for AdamW, 0.02 x batch / 64 for SGD. It falls tenfold at
    7/9 and at 25/27 of the steps. Warm-up sees the recipe's 16,000 images, but is at most a tenth
    of the steps. That is this project's choice, after the linear rule; not tuned on any data.

    Args:
        epochs: instead of the rule above.
        weights: instead of the model's official ones.
        For the others see ``Plan``.

    Raises:
        ValueError: no image, batch or epoch.
    """
    if images < 1 or batch < 1 or (epochs is not None and epochs <= 0):
        raise ValueError(
            f"images, --batch and --epochs must be above 0, got {images}, {batch} and {epochs}"
        )
    seen = EPOCHS * images if epochs is None else epochs * images
    if epochs is None:
        seen = min(max(seen, model.least), MOST)
    steps = max(math.ceil(seen / batch), 3)
    warmup = max(1, min(WARMUP_STEPS * BATCH // batch, steps // 10))
    period = min(steps, max(math.ceil(steps / 20), math.ceil(images / batch)))
    start = model.weights if weights is None else weights
    return Plan(
        name,
        model,
        files,
        classes,
        images,
        masks,
        batch,
        steps,
        warmup,
        period,
        start,
        device,
        out,
        bitmasks,
    )
