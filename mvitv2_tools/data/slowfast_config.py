"""Lists and YAML for PySlowFast's own trainer."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mvitv2_core.checkpoint.files import whole_file
from mvitv2_core.recipes import recipe_path

from .findings import Findings
from .labelled import Item
from .slowfast_recipes import Recipe
from .start import LEAST_CLASSES, labels, other_classes, start_keys

LEAST_EPOCHS, MOST_EPOCHS = 10, 100


@dataclass(frozen=True)
class Plan:
    """What a written YAML says.

    Args:
        recipe: it is based on.
        dataset: PySlowFast's, "kinetics", "imagenet" or "ava".
        classes: names in the order of their numbers.
        train: how many clips or images there are to learn from.
        batch: of them a step, on all GPUs of a machine.
        gpus: of a machine; 0 for the CPU.
        epochs: of training.
        weights: what the model starts from; "" for nothing.
        data: folder of the lists.
        keys: further keys, "NODE.KEY" to value.
    """

    recipe: Recipe
    dataset: str
    classes: Sequence[str]
    train: int
    batch: int
    gpus: int
    epochs: int
    weights: str
    data: Path
    keys: dict[str, Any]

    @property
    def lr(self) -> float:
        """The recipe's, by the linear rule."""
        return float(f"{self.recipe.lr * self.batch / self.recipe.batch:.6g}")

    @property
    def summary(self) -> str:
        """Some lines for a person."""
        return other_classes(self.weights, self.classes) + (
            f"{self.recipe.file}, {len(self.classes)} classes, from "
            f"{self.weights or 'random weights'}\n"
            f"{self.train} to learn from, {self.batch} a step: {self.epochs} epochs, lr {self.lr:g}"
        )


def make_plan(
    recipe: Recipe,
    dataset: str,
    classes: Sequence[str],
    train: int,
    options: Any,
    gpus: int,
    data: Path,
    keys: dict[str, Any],
) -> Plan:
    """A recipe, scaled to the data and the batch.

    Epochs: as many as see the recipe's ``seen`` clips or images, but 10 at least and 100 at most.
    The learning rate is the recipe's x batch / its batch (the linear rule), over a warm-up of a
    tenth of the epochs. That is this project's choice for fine-tuning; not tuned on any data.

    Raises:
        ValueError: a batch of more than all there is.
    """
    batch = options.batch
    if batch > train:
        raise ValueError(f"--batch must be at most the {train} to learn from, got {batch}")
    epochs = options.epochs
    if epochs is None:
        epochs = min(max(math.ceil(recipe.seen / train), LEAST_EPOCHS), MOST_EPOCHS)
    weights = recipe.weights if options.weights is None else options.weights
    return Plan(recipe, dataset, classes, train, batch, gpus, epochs, weights, data, keys)


def yaml_text(plan: Plan, command: str, task: str) -> str:
    """The YAML; ``task`` is what wrote it."""
    period, top5 = max(1, plan.epochs // 10), plan.dataset != "ava"
    keys: dict[str, Any] = {
        "TRAIN.BATCH_SIZE": plan.batch,
        "TRAIN.EVAL_PERIOD": period,
        "TRAIN.CHECKPOINT_PERIOD": period,
        "TRAIN.CHECKPOINT_EPOCH_RESET": True,
        "DATA.PATH_TO_DATA_DIR": str(plan.data),
        "MODEL.NUM_CLASSES": max(len(plan.classes), LEAST_CLASSES if top5 else 1),
        "SOLVER.BASE_LR": plan.lr,
        "SOLVER.WARMUP_START_LR": plan.lr / 100,
        "SOLVER.COSINE_END_LR": plan.lr / 100,
        "SOLVER.WARMUP_EPOCHS": plan.epochs / 10,
        "SOLVER.MAX_EPOCH": plan.epochs,
        # AVA is tested on whole frames, which differ in width: PySlowFast takes one for each GPU.
        "TEST.BATCH_SIZE": max(plan.gpus, 1) if plan.dataset == "ava" else plan.batch,
        "NUM_GPUS": plan.gpus,
        "OUTPUT_DIR": str(plan.data / "run"),
        **start_keys(plan.weights, plan.dataset),
        **plan.keys,
    }
    if not plan.gpus:
        keys["DATA_LOADER.PIN_MEMORY"] = False
        keys["DATA_LOADER.NUM_WORKERS"] = 1
    unused = LEAST_CLASSES - len(plan.classes)
    lines = [
        f"# {plan.train} to learn from, {len(plan.classes)} classes.",
        f"# Written by `mvitv2 data {task}`; everything may be edited, here or after --opts:",
        "#",
        f"#   {command}",
    ]
    if unused > 0 and top5:
        lines += [
            "#",
            f"# NUM_CLASSES is {LEAST_CLASSES}, {unused} of them unused: PySlowFast's trainer",
            "# measures top-5, and by itself stops where there are fewer outputs.",
        ]
    base = recipe_path(f"configs/{plan.recipe.file}").resolve()
    return "\n".join([*lines, f"_BASE_: {_quoted(str(base))}", *_nodes(keys)]) + "\n"


def _nodes(keys: dict[str, Any]) -> list[str]:
    tree: dict[str, Any] = {}
    for key, value in keys.items():
        *parents, name = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value

    def lines(node: dict[str, Any], indent: str) -> list[str]:
        made = []
        for name, value in node.items():
            if isinstance(value, dict):
                made += [f"{indent}{name}:", *lines(value, f"{indent}  ")]
            else:
                made.append(f"{indent}{name}: {_quoted(value)}")
        return made

    return lines(tree, "")


def _quoted(value: Any) -> str:
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, float):
        # A float has a point: YAML 1.1 reads 1e-05 as a text, and 1 as a whole number.
        text = f"{value:.6g}"
        digits, e, exponent = text.partition("e")
        return text if "." in digits else f"{digits}.0{e}{exponent}"
    return json.dumps(value, ensure_ascii=False)  # JSON is YAML


def labels_text(classes: Sequence[str]) -> str:
    """One name a line, and one for each output that no class has."""
    return "".join(f"{name}\n" for name in labels(classes))


def list_texts(
    items: Sequence[Item], classes: Sequence[str], root: Path, findings: Findings
) -> tuple[dict[str, str], str]:
    """PySlowFast's ``train.csv``, ``val.csv`` and ``test.csv`` (val's, where there is none).

    Returns:
        Their texts by name, and what parts path from label (``DATA.PATH_LABEL_SEPARATOR``).
    """
    paths = {item: os.path.relpath(item.path, root) for item in items}
    separator = "," if any(" " in path for path in paths.values()) else " "
    for item, path in paths.items():
        if separator in path or "\n" in path:
            findings.add("path that a list cannot hold", item.row, f"{path!r}")
    numbers = {name: number for number, name in enumerate(classes)}
    lines: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for item in items:
        lines[item.split].append(f"{paths[item]}{separator}{numbers[item.label]}\n")
    lines["test"] = lines["test"] or lines["val"]
    return {f"{name}.csv": "".join(rows) for name, rows in lines.items()}, separator


def write_all(folder: Path, texts: dict[str, str]) -> None:
    """Write each text to its file, whole or not at all."""
    for name, text in texts.items():
        with whole_file(folder / name) as temporary:
            Path(temporary).write_text(text, "utf-8")
