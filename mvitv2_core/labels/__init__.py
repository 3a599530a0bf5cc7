"""Names of the classes, in the order of the published checkpoints' outputs.

One name a line. They are facts about the data sets, taken from these lists:

- ``imagenet-1k``: the 1000 classes in the order of their WordNet ids, the order in which
  facebookresearch/mvit numbers its folders (``mvit/datasets/imagenet.py``); short names as in
  torchvision's ``models/_meta.py``.
- ``kinetics-400``: alphabetical, the order of PySlowFast's Kinetics models; as in torchvision's
  ``models/_meta.py``, whose ``mvit_v2_s`` is PySlowFast's.
- ``coco``: the 80 things in the order of their ids without the gaps, as detectron2 numbers them.

Something-Something v2's names may be had only under its own terms, and no list of ImageNet-21K's
19168 classes came with the weights: for these models the answer is an index, unless a file of
labels is given.
"""

from __future__ import annotations

import json
import os
from importlib.resources import files
from pathlib import Path

LISTS = ("imagenet-1k", "kinetics-400", "coco")


def read_labels(source: str | os.PathLike[str]) -> list[str]:
    """Names of classes, in order.

    Args:
        source: one of ``LISTS``; or a ``.txt`` file with one name a line, or a ``.json`` file
            with a list of names, an object from index to name or from name to index.

    Raises:
        ValueError: no such list, or a file that does not hold one.
    """
    if source in LISTS:
        return files(__package__).joinpath(f"{source}.txt").read_text("utf-8").splitlines()
    path = Path(source)
    try:
        text = path.read_text("utf-8")
        if path.suffix.lower() != ".json":
            names = [line.strip() for line in text.splitlines()]
            while names and not names[-1]:
                names.pop()
        else:
            names = _from_json(json.loads(text))
    except OSError as error:
        raise ValueError(
            f"{path}: labels cannot be read: {error.strerror or error}; a file, or one of "
            f"{', '.join(LISTS)}, is needed"
        ) from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: labels cannot be read: {error}") from error
    except (TypeError, KeyError) as error:
        raise ValueError(
            f"{path}: labels must be a list of names, or an object of index and name, one for "
            f"each index from 0"
        ) from error
    if not names:
        raise ValueError(f"{path}: holds no labels")
    return names


def _from_json(content: object) -> list[str]:
    if isinstance(content, dict):
        if all(isinstance(value, int) for value in content.values()):
            content = {index: name for name, index in content.items()}
        by_index = {int(index): name for index, name in content.items()}
        content = [by_index[index] for index in range(len(by_index))]
    if not isinstance(content, list) or not all(isinstance(name, str) for name in content):
        raise TypeError
    return content
