"""Training with weights, gradients and moments divided over the ranks: PyTorch's FSDP2.

``projects/detection/train_net.py`` calls ``train`` for a LazyConfig with ``train.sharded=True``.
Every block of the backbone is gathered when it runs, the rest for a whole step. Checkpoints are
folders of ``torch.distributed.checkpoint``; the end writes a plain model_final.pth beside them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import instantiate
from detectron2.engine import HookBase, SimpleTrainer, default_writers, hooks
from detectron2.engine.train_loop import TrainerBase
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm
from omegaconf import OmegaConf
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from mvitv2_core.block import MultiScaleBlock
from mvitv2_core.checkpoint.files import not_finite, read_content, whole_file
from mvitv2_core.checks import check_flag, check_whole, refuse
from mvitv2_core.path_manager import UNFINISHED, refuse_broken

from .checkpoint import install

install()  # official weights are fitted, and files appear whole
LAST, TRAINER = "last_checkpoint", "trainer.pth"
# What copies the weights or holds gradients outside of the optimizer, and float16's scaler.
REFUSED = {"optimizer.ema_decay": 0.0, "optimizer.accumulate": 1, "train.amp.enabled": False}


def check(cfg: Any) -> None:
    """ValueError for a key that does not go with ``train.sharded``, or for one process alone."""
    check_flag("train.sharded", cfg.train.sharded)
    for key, off in REFUSED.items():
        value = OmegaConf.select(cfg, key, default=off)
        if value != off:
            refuse(key, f"{off} with train.sharded", value)
    if comm.get_world_size() == 1:
        refuse("number of processes", "2 or more with train.sharded", 1)


def shard(model: nn.Module, device: str) -> nn.Module:
    """Divide a model's parameters over all ranks, by block; rank 0's weights become everybody's.

    Args:
        model: on the CPU, with as many parameters as fit one process's memory there.
        device: "cuda", the rank's current one, or "cpu".

    Returns:
        The same model; its parameters are ``DTensor``s under the same names.
    """
    state = model.state_dict() if comm.is_main_process() else {}
    mesh = init_device_mesh(torch.device(device).type, (comm.get_world_size(),))
    for module in [m for m in model.modules() if isinstance(m, MultiScaleBlock)] + [model]:
        fully_shard(module, mesh=mesh)
    model.to(device)  # buffers that no state holds
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, state, options=options)
    return model


@torch.no_grad()
def gather(model: nn.Module, plain: nn.Module) -> nn.Module:
    """``plain`` with the weights of ``model``, of which it is an unsharded twin; on all ranks."""
    twins = {**dict(plain.named_parameters()), **dict(plain.named_buffers())}
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        twins[name].copy_(value.full_tensor() if isinstance(value, DTensor) else value)
    return plain


def load(folder: str | Path, model: nn.Module) -> nn.Module:
    """Read the weights of a checkpoint that ranks wrote into a plain model, in one process.

    PyTorch's reader unpickles the folder's ``.metadata``: for folders of your own.
    """
    state = {"model": model.state_dict()}
    dcp.load(state, checkpoint_id=str(folder))
    model.load_state_dict(state["model"])
    return model


class Shards:
    """Saves and resumes a run in ``folder``, which all machines see and every rank writes to."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, folder: str | Path) -> None:
        self.model, self.optimizer, self.folder = model, optimizer, Path(folder)
        # What a scheduler that goes on asks for; what the optimizer does not hold when a checkpoint
        # is read is not read.
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])

    def save(self, name: str, trainer: TrainerBase) -> None:
        """Write ``folder``/``name``, which appears whole; called on all ranks.

        Raises:
            FloatingPointError: on all ranks, where a weight is NaN or infinite on any.
        """
        named = self.model.named_parameters()
        held = {n: p.to_local() if isinstance(p, DTensor) else p for n, p in named}
        refuse_broken(sorted(set().union(*comm.all_gather(not_finite(held)))))
        target, unfinished = self.folder / name, self.folder / f"{UNFINISHED}-{name}"
        weights, moments = get_state_dict(self.model, self.optimizer)
        if comm.is_main_process():
            shutil.rmtree(unfinished, ignore_errors=True)
        comm.synchronize()
        dcp.save({"model": weights, "optimizer": moments}, checkpoint_id=str(unfinished))
        if comm.is_main_process():
            with whole_file(unfinished / TRAINER) as file:
                torch.save(TrainerBase.state_dict(trainer), file)
            shutil.rmtree(target, ignore_errors=True)
            unfinished.rename(target)
            with whole_file(self.folder / LAST) as file:
                Path(file).write_text(name)
        comm.synchronize()

    def resume(self, trainer: TrainerBase) -> int:
        """Load the last checkpoint; the iteration to go on from, 0 where there is none."""
        if not (self.folder / LAST).exists():
            return 0
        folder = self.folder / (self.folder / LAST).read_text()
        weights, moments = get_state_dict(self.model, self.optimizer)
        state: dict[str, Any] = {"model": weights, "optimizer": moments}
        dcp.load(state, checkpoint_id=str(folder))
        set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
        )
        TrainerBase.load_state_dict(trainer, dict(read_content(folder / TRAINER)))
        return int(trainer.iter) + 1


class SaveShards(HookBase):
    """detectron2's ``PeriodicCheckpointer`` on all ranks, with its period and max_to_keep."""

    def __init__(self, shards: Shards, period: int, max_to_keep: int = 0) -> None:
        check_whole("train.checkpointer.period", period)
        self.shards, self.period, self.most = shards, period, max_to_keep
        self.names: list[str] = []

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self.period and done != self.trainer.max_iter:
            return
        name = f"model_{self.trainer.iter:07d}"
        self.shards.save(name, self.trainer)
        self.names.append(name)
        if self.most and len(self.names) > self.most:
            old = self.names.pop(0)
            if comm.is_main_process():
                shutil.rmtree(self.shards.folder / old, ignore_errors=True)


class SaveFinal(HookBase):
    """Plain weights when training is over: before the last evaluation, which may fail."""

    def __init__(self, plain: Callable[[], nn.Module], folder: Path) -> None:
        self.plain, self.folder = plain, folder

    def after_train(self) -> None:
        if self.trainer.iter < self.trainer.max_iter:  # ended by an error
            return
        whole = self.plain()
        if comm.is_main_process():
            with whole_file(self.folder / "model_final.pth") as file:
                torch.save({"model": whole.state_dict()}, file)


def train(cfg: Any, resume: bool = False) -> None:
    """Train as detectron2's lazyconfig_train_net.py does, sharded.

    Args:
        cfg: a LazyConfig; ``train.ddp`` is not read.
        resume: go on from the last checkpoint in ``train.output_dir``, if there is one.

    Raises:
        ValueError: see ``check``.
    """
    check(cfg)
    model = instantiate(cfg.model).cpu()
    if comm.is_main_process():
        DetectionCheckpointer(model).load(cfg.train.init_checkpoint)
    shard(model, cfg.train.device)
    cfg.optimizer.params.model = model
    trainer = SimpleTrainer(model, instantiate(cfg.dataloader.train), instantiate(cfg.optimizer))
    shards = Shards(model, trainer.optimizer, cfg.train.output_dir)

    def plain() -> nn.Module:
        return gather(model, instantiate(cfg.model).to(cfg.train.device))

    def evaluate() -> Any:
        if "evaluator" not in cfg.dataloader:
            return None
        # Whole, since ranks have different numbers of images, and gathering waits for all of them.
        loader, evaluator = instantiate(cfg.dataloader.test), instantiate(cfg.dataloader.evaluator)
        results = inference_on_dataset(plain(), loader, evaluator)
        if comm.is_main_process():
            print_csv_format(results)
        return results

    registered = [
        hooks.IterationTimer(),
        hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
        SaveShards(shards, **cfg.train.checkpointer),
        SaveFinal(plain, shards.folder),
        hooks.EvalHook(cfg.train.eval_period, evaluate),
    ]
    if comm.is_main_process():
        writers = default_writers(cfg.train.output_dir, cfg.train.max_iter)
        registered.append(hooks.PeriodicWriter(writers, period=cfg.train.log_period))
    trainer.register_hooks(registered)
    trainer.train(shards.resume(trainer) if resume else 0, cfg.train.max_iter)
