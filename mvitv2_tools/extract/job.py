"""What a process needs to know in order to do tasks: plain values, fit to travel."""

from __future__ import annotations

from dataclasses import dataclass

from ..classify import Classifier
from ..find_model import Options, find_model
from .extractor import Extractor
from .folder import Folder
from .settings import Settings


@dataclass(frozen=True)
class Job:
    """A model by its name, and what to do with it.

    Args:
        model: what ``find_model`` takes.
        options: of the model.
        settings: of the rows.
        out: the folder, by a path that is the same on every machine.
    """

    model: str
    options: Options
    settings: Settings
    out: str

    @property
    def folder(self) -> Folder:
        return Folder(self.out, f".{self.settings.format}")

    def extractor(self) -> Extractor:
        """The model with its inputs and features.

        Raises:
            ValueError, CheckpointError: no such model, a detector, or settings that do not fit.
        """
        predictor, _ = find_model(self.model, self.options)
        if not isinstance(predictor, Classifier):
            raise ValueError(f"{self.model} is a detector, and extract takes classifiers")
        return Extractor(predictor, self.settings)
