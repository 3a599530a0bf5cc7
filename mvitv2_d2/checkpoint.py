"""Official image checkpoints through detectron2's unmodified trainers.

detectron2's ``DetectionCheckpointer`` skips tensors of another shape with a warning, so that
position tables of another nominal size would stay at zero, and matches names by their endings. It
offers no hook, so two of its methods are wrapped: for models that hold this project's backbone,
and for no others, the checkpoint is fitted to the backbone first. A third, which saves, is wrapped
so that a run killed at any moment can be resumed, and that no run saves NaN. Where a model keeps an
average of its weights (``training``), it is saved and resumed beside them, and ``FILE?ema=True``
loads it as the weights.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from contextlib import suppress
from pickle import UnpicklingError
from types import MethodType
from typing import Any
from weakref import WeakMethod

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathManager
from torch import Tensor, nn

from mvitv2_core import LoadReport, MViT
from mvitv2_core.checkpoint import CheckpointError, read_checkpoint, read_content
from mvitv2_core.checkpoint.files import check_sums, plain_state
from mvitv2_core.checkpoint.fit import fit_state_dict
from mvitv2_core.checkpoint.formats import NESTS, to_project, uncompiled, unwrapped
from mvitv2_core.checkpoint.report import listing
from mvitv2_core.path_manager import WholeWrites, check_finite, register_with
from mvitv2_core.training import EMA_KEY, average_of

FILE = "the checkpoint"
SAFE_SUFFIXES = (".pkl", ".pyth", ".safetensors")
# After a path, as detectron2's own "?matching_heuristics=True": the average of the weights in it.
EMA_QUERY = "?ema=True"


def install() -> None:
    """Wrap ``DetectionCheckpointer``, and let detectron2 read ``mvitv2://NAME``.

    Doing it again changes nothing.
    """
    if hasattr(DetectionCheckpointer, "_mvitv2_wrapped"):
        return
    load_file, load_model = DetectionCheckpointer._load_file, DetectionCheckpointer._load_model
    save, init = DetectionCheckpointer.save, DetectionCheckpointer.__init__
    load = DetectionCheckpointer.load

    @functools.wraps(init)
    def init_with_average(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        average = average_of(self.model)
        if average is not None:
            self.add_checkpointable(EMA_KEY, average)
        if "trainer" in self.checkpointables and _backbones(self.model):
            _name_steps(self.checkpointables["trainer"])

    @functools.wraps(load)
    def load_asked(self: Any, path: str, *args: Any, **kwargs: Any) -> Any:
        self._mvitv2_ema = bool(path) and path.endswith(EMA_QUERY)
        path = path.removesuffix(EMA_QUERY) if path else path
        try:
            rest = load(self, path, *args, **kwargs)
        finally:
            self._mvitv2_ema = False
        resumed = not args and kwargs.get("checkpointables") is None
        if resumed and "trainer" in self.checkpointables and EMA_KEY in rest:
            self.logger.warning(
                "%s holds an average of the weights, with which this run does not go on: give the "
                "option for it again (docs/training.md)",
                path,
            )
        return rest

    @functools.wraps(load_file)
    def safe_load_file(self: Any, filename: str) -> Any:
        if getattr(self, "_mvitv2_ema", False):
            # Unchecked: of a whole detector, whose norms may count in whole numbers.
            return {"model": read_checkpoint(filename, check=False, ema=True).state}
        if not _backbones(self.model):
            return load_file(self, filename)
        if not filename.endswith(SAFE_SUFFIXES):
            check_sums(filename)
            # torch refuses the ListConfigs that ``_plain_betas`` avoids; our reader does not.
            with suppress(UnpicklingError):
                return load_file(self, filename)
        content = read_content(filename)
        if filename.endswith(".pkl") and "model" not in content:
            return load_file(self, filename)  # Caffe2's: just read without running anything
        return content if "model" in content else {"model": content}

    @functools.wraps(load_model)
    def fitted_load_model(self: Any, checkpoint: Any) -> Any:
        backbones = _backbones(self.model)
        if backbones:
            checkpoint = _fit(checkpoint, self.model, backbones, self.logger)
        return load_model(self, checkpoint)

    @functools.wraps(save)
    def whole_save(self: Any, *args: Any, **kwargs: Any) -> None:
        if not _backbones(self.model):
            return save(self, *args, **kwargs)
        check_finite(self.model)
        _plain_betas(self.checkpointables.get("trainer"))
        manager = self.path_manager
        self.path_manager = WholeWrites(manager)
        try:
            return save(self, *args, **kwargs)
        finally:
            self.path_manager = manager

    DetectionCheckpointer.__init__, DetectionCheckpointer.load = init_with_average, load_asked
    DetectionCheckpointer.save = whole_save
    DetectionCheckpointer._load_file = safe_load_file
    DetectionCheckpointer._load_model = fitted_load_model
    DetectionCheckpointer._mvitv2_wrapped = True
    register_with(PathManager)


def _name_steps(trainer: Any) -> None:
    """Let a trainer say at which iteration a model met NaN: detectron2's RPN, which stops, does
    not know. The trainer goes with its last reference, as detectron2's do."""
    if not isinstance(trainer.run_step, MethodType):
        return  # another checkpointer of this trainer was here, or it has a step of its own
    method = WeakMethod(trainer.run_step)

    @functools.wraps(trainer.run_step.__func__)
    def named_step() -> None:
        run_step: Any = method()
        assert run_step is not None  # its trainer calls this
        try:
            run_step()
        except FloatingPointError as error:
            if "iteration" in str(error):
                raise
            raise FloatingPointError(f"iteration {run_step.__self__.iter}: {error}") from error

    trainer.run_step = named_step


def _plain_betas(trainer: Any) -> None:
    """Make an optimizer's ``betas`` tuples. A LazyConfig gives it an omegaconf ListConfig, which
    some versions of torch keep, and ``torch.load`` refuses in a file."""
    optimizer = getattr(getattr(trainer, "_trainer", trainer), "optimizer", None)
    for group in optimizer.param_groups if optimizer is not None else ():
        if "betas" in group:
            group["betas"] = tuple(group["betas"])


def _backbones(model: nn.Module) -> dict[str, MViT]:
    """This project's models inside of ``model``, by the prefix of their names."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, MViT)}
    return {f"{name}." if name else "": module for name, module in found.items()}


def _fit(
    checkpoint: dict[str, Any],
    model: nn.Module,
    backbones: Mapping[str, MViT],
    logger: logging.Logger,
) -> dict[str, Any]:
    """The checkpoint with every tensor that belongs to a backbone at its name and shape."""
    content = checkpoint["model"]
    for nest in NESTS:
        if isinstance(content.get(nest), Mapping):
            content = content[nest]
    state = plain_state(FILE, content)
    # Wrappers' parts of names are taken from the model's as they were from the file's.
    names = unwrapped(model.state_dict())
    own = {prefix: _inside(state, _plain(prefix, names)) for prefix in backbones}
    if any(own.values()):
        ours = {short: name for name, short in names.items()}
        state = {ours.get(name, name): value for name, value in state.items()}
        for prefix, inside in own.items():
            fitted, report = _fit_one(backbones[prefix], inside)
            state.update({prefix + name: value for name, value in fitted.items()})
            _log(logger, prefix, report)
        return {**checkpoint, "model": state}
    if len(backbones) > 1:
        return checkpoint
    # A classifier's or another library's file: none of its names is the detector's.
    prefix, backbone = next(iter(backbones.items()))
    try:
        fitted, report = _fit_one(backbone, state)
    except CheckpointError:  # not an MViTv2's: detectron2 matches what it can
        return checkpoint
    state = {prefix + name: value for name, value in fitted.items()}
    _log(logger, prefix, report)
    return {**checkpoint, "model": state, "matching_heuristics": False}


def _fit_one(backbone: MViT, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], LoadReport]:
    return fit_state_dict(FILE, to_project(FILE, state), backbone.state_dict())


def _plain(prefix: str, names: Mapping[str, str]) -> str:
    """A prefix of names without what wrappers put into it."""
    name = next(name for name in names if name.startswith(prefix))
    return names[name].removesuffix(uncompiled(name.removeprefix(prefix)))


def _inside(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under ``prefix``, without it; none where it is empty and nothing tells."""
    if not prefix:
        return {}
    return {n.removeprefix(prefix): value for n, value in state.items() if n.startswith(prefix)}


def _log(logger: logging.Logger, prefix: str, report: LoadReport) -> None:
    counts = ", ".join(f"{count} {status}" for status, count in report.counts().items() if count)
    logger.info(f"MViTv2 {prefix.rstrip('.') or 'model'} from {report.format} names: {counts}")
    for status, text in (("new", "kept at initial values"), ("unused", "not used")):
        names = report.names(status)  # type: ignore[arg-type]
        if names:
            logger.warning(f"MViTv2 {text}: {listing(names)}")
