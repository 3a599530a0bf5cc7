"""A small model as an exported file, for the blocks of docs/export.md."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from mvitv2_core.model_info import image_info
from mvitv2_tools.classify import Classifier
from mvitv2_tools.export.command import export
from mvitv2_tools.export.subject import Subject, classifier_subject
from tests.small import small_model


def small_subject(*free: str) -> Subject:
    """A classifier of images of 32 x 40 pixels in five classes with names."""
    model: Any = small_model("image")
    classifier = Classifier(model, image_info("small", 5), list("abcde"), torch.device("cpu"))
    return classifier_subject(classifier, 1, (32, 40), None, free)


def made(name: str, compiled: bool = False) -> str:
    """The path of a file of such a name that ``small_subject`` was exported to."""
    file = Path(tempfile.mkdtemp()) / name
    export(small_subject(), file, compiled=compiled)
    return str(file)
