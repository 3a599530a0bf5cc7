"""What training needs beside the model, put onto any trainer's model and optimizer from outside.

Trainers know nothing of it: they call the model and ``optimizer.step()`` as ever.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .checks import check_rate, check_whole, refuse
from .layer_groups import check_decay, layer_scale
from .model import MViT

AVERAGE = "_mvitv2_average"  # where a model keeps its average
ACCUMULATES = "_mvitv2_accumulates"
# Under this name trainers' files hold it, and ``load_checkpoint(ema=True)`` finds it.
EMA_KEY = "model_ema"
# As PyTorch asks of cuBLAS in deterministic mode.
CUBLAS = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


class Average:
    """An exponential moving average of a model's weights, evaluated in the model's place.

    After the first step it is the weights, after each later one ``decay * average + (1 - decay) *
    weights``: PyTorch's ``AveragedModel``. Buffers are the model's own. Calls of the model in
    evaluation mode go to the average, once there is one; in training mode they do not. Its memory
    is that of the weights once more.

    Args:
        model: on its device, not wrapped by DistributedDataParallel.
        optimizer: whose steps it follows; its ``step`` is replaced. ``Accumulation`` comes after.
        decay: in [0, 1); about 1 - 10 / steps averages over the last tenth of the training.

    Raises:
        ValueError: a decay out of range, or an optimizer that accumulates already.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, decay: float) -> None:
        check_rate("EMA decay", decay)
        if hasattr(optimizer, ACCUMULATES):
            refuse("optimizer", "given to Average before Accumulation", "the other order")
        self.model = model
        self.averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
        self.averaged.module.__dict__.pop("forward", None)  # of an instance: it calls the original
        self.averaged.eval().requires_grad_(False)
        leave_skipping_to_scaler(optimizer)
        # Not by PyTorch's hook, which runs twice where a step calls its base class's, as that of
        # detectron2's optimizers that clip.
        step = optimizer.step

        def step_and_average(optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
            result = step(*args, **kwargs)
            self.averaged.update_parameters(model)
            return result

        optimizer.step = MethodType(step_and_average, optimizer)  # type: ignore[method-assign]
        forward = model.forward

        def forward_or_average(*args: Any, **kwargs: Any) -> Any:
            if model.training or not self.started:
                return forward(*args, **kwargs)
            return self.current()(*args, **kwargs)

        model.forward = forward_or_average
        setattr(model, AVERAGE, self)

    @property
    def started(self) -> bool:
        """Whether a step has been taken, or an average loaded."""
        return bool(self.averaged.n_averaged > 0)

    def current(self) -> nn.Module:
        """The averaged model, with buffers that may have changed since the step (PreciseBN)."""
        average = self.averaged.module
        for own, current in zip(average.buffers(), self.model.buffers(), strict=True):
            own.copy_(current)
        return average

    def state_dict(self) -> dict[str, Tensor]:
        """The average under the model's names; before the first step, the weights."""
        return (self.current() if self.started else self.model).state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a saved average."""
        self.averaged.module.load_state_dict(state)
        self.averaged.n_averaged.fill_(1)


def average_of(model: nn.Module) -> Average | None:
    """The average of a model, or of the model that a wrapper's ``module`` is."""
    return getattr(getattr(model, "module", model), AVERAGE, None)


class Accumulation:
    """Step once in ``steps`` backward passes, by the mean of their gradients.

    The same as one pass over a batch ``steps`` times as large, where the loss is a mean over
    batches of equal size. Every call of ``optimizer.step()`` adds the gradients, and every
    ``steps``-th steps; a batch that a GradScaler skips is not counted. It needs memory for one
    more set of gradients. What has been added since the last step is in no checkpoint.

    Args:
        optimizer: its ``step`` is replaced, its ``zero_grad`` must be called before each backward
            pass, as trainers do.
        steps: positive.
        clip: clips ``.grad`` of all parameters, before each step.

    Raises:
        ValueError: steps out of range.
    """

    def __init__(
        self, optimizer: Optimizer, steps: int, clip: Callable[[], object] | None = None
    ) -> None:
        check_whole("gradient accumulation", steps)
        self.steps, self.clip, self.count = steps, clip, 0
        self.sums: dict[nn.Parameter, Tensor] = {}
        self.step = optimizer.step

        def step(optimizer: Optimizer, closure: None = None) -> None:
            self._add(optimizer)
            if self.count == self.steps:
                self._step()

        leave_skipping_to_scaler(optimizer)
        setattr(optimizer, ACCUMULATES, True)
        # A method, since PyTorch's schedulers bind what they find there.
        optimizer.step = MethodType(step, optimizer)  # type: ignore[method-assign]

    def _add(self, optimizer: Optimizer) -> None:
        self.count += 1
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if parameter in self.sums:
                    self.sums[parameter] += parameter.grad
                else:
                    self.sums[parameter] = parameter.grad.clone()

    def _step(self) -> None:
        for parameter, total in self.sums.items():
            parameter.grad = total.div_(self.steps)
        self.sums, self.count = {}, 0
        if self.clip is not None:
            self.clip()
        self.step()


def leave_skipping_to_scaler(optimizer: Optimizer) -> None:
    """Let a GradScaler unscale gradients, and skip infinite ones, before it calls ``step``.

    For PyTorch's fused optimizers it calls every ``step`` with scaled gradients, and leaves both to
    their kernel: what stands around the kernel would sum them, or count steps that were none.
    """
    # A private name: where PyTorch no longer asks for it, setting it changes nothing.
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]


def bfloat16(device: torch.device) -> torch.autocast:
    """bfloat16 autocast on a device, for the trunk of a model alone.

    bfloat16 has float32's range, so that no GradScaler is needed; autocast keeps weights,
    gradients and the optimizer in float32.

    Raises:
        RuntimeError: another autocast is on already, such as the trainer's own.
    """
    if torch.is_autocast_enabled(device.type):
        raise RuntimeError(
            "bfloat16: the trainer's own mixed precision must be off (SOLVER.AMP.ENABLED, "
            "train.amp.enabled, TRAIN.MIXED_PRECISION), got both"
        )
    return torch.autocast(device.type, dtype=torch.bfloat16)


def train_deterministically() -> None:
    """Let this process use deterministic algorithms alone; an operation without one raises.

    The same seed then gives the same weights to the last bit on the same machine. Seeds are the
    trainers' own. To be called before CUDA is used.
    """
    os.environ.setdefault(*CUBLAS)
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True)


def scale_layers(optimizer: Optimizer, model: nn.Module, decay: float) -> None:
    """Multiply every parameter's learning rate by its ``layer_scale``.

    The groups of the optimizer are divided by layer, and keep what else they say, such as weight
    decay. To be called before a learning-rate schedule is made, and before the first step.

    Args:
        optimizer: any of PyTorch's; its ``param_groups`` change.
        model: holds at least one ``MViT``, at any depth; parameters outside of it keep their rate.
        decay: as for ``layer_scale``.

    Raises:
        ValueError: no ``MViT`` in the model, or a decay out of range.
    """
    check_decay("decay", decay)
    trunks = [module for module in model.modules() if isinstance(module, MViT)]
    if not trunks:
        refuse("model", "one that holds an MViT", type(model).__name__)
    scales = {
        parameter: layer_scale(name, len(trunk.blocks), decay)
        for trunk in trunks
        for name, parameter in trunk.named_parameters()
    }
    groups: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        by_scale: dict[float, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            by_scale.setdefault(scales.get(parameter, 1.0), []).append(parameter)
        groups += [{**group, "params": p, "lr": group["lr"] * s} for s, p in by_scale.items()]
    optimizer.param_groups[:] = groups
