"""The classifier under DDP, FSDP and distributed checkpoints: what each rank does (tests.ranks)."""

from __future__ import annotations

import functools
from collections.abc import Collection
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.nn.parallel import DistributedDataParallel

from mvitv2_core import MViTClassifier
from mvitv2_core.block import MultiScaleBlock
from tests.compare import randomize
from tests.ranks import agree, gradients, worst
from tests.structures import small

LIMIT = 1e-12  # float64; the order of sums differs
# (frames, options of the config): every kind of position table and of head, images and clips.
KINDS = {
    "image": (0, {"abs_pos": "joint"}),
    "clip, class token": (4, {"cls_token": True, "abs_pos": "separate"}),
    "clip, mean pooling": (4, {"mean_pooling": True, "in_att": False}),
}


def classifier(kind: str, act_checkpoint: bool = False) -> nn.Module:
    frames, options = KINDS[kind]
    config = small("T", frames=frames, side=32, **options)
    config = replace(config, blocks=config.blocks[:4])  # into the third stage
    return randomize(MViTClassifier(config, act_checkpoint=act_checkpoint).double().train())


def batch(kind: str, samples: list[int]) -> Tensor:
    """Inputs whose grid is not the nominal one, so that position tables are resampled."""
    shape = (3, 6, 40, 36) if KINDS[kind][0] else (3, 40, 36)
    images = [torch.empty(0, *shape, dtype=torch.float64)]
    for index in samples:
        generator = torch.Generator().manual_seed(index)
        images.append(torch.randn(1, *shape, generator=generator, dtype=torch.float64))
    return torch.cat(images)


def loss(logits: Tensor, samples: list[int]) -> Tensor:
    """A sum over samples, each with a label of its own."""
    labels = torch.tensor(samples, dtype=torch.long) % logits.shape[1]
    return nn.functional.cross_entropy(logits, labels, reduction="sum")


@functools.cache
def expected(kind: str, samples: tuple[int, ...]) -> dict[str, Tensor]:
    """Gradients of one process on the joint batch."""
    model = classifier(kind)
    loss(model(batch(kind, list(samples))), list(samples)).backward()
    return gradients(model)


def check(grads: dict[str, Tensor], kind: str, samples: list[int]) -> None:
    """The ranks agree, and hold the joint gradients over their number."""
    ours = {name: grad * dist.get_world_size() for name, grad in grads.items()}
    assert agree(ours)
    if dist.get_rank() == 0:
        error = worst(ours, expected(kind, tuple(samples)))
        assert error < LIMIT, (kind, error)


def ddp(rank: int, ranks: int, folder: Path) -> int:
    """Accumulation over two parts and uneven batches, rank 0's being empty, in every kind."""
    done = 0
    for kind in KINDS:
        for act_checkpoint in (False, True):
            for static in (False, True):
                model = DistributedDataParallel(
                    classifier(kind, act_checkpoint), static_graph=static
                )
                loss(model(batch(kind, [rank])), [rank]).backward()
                check(gradients(model.module), kind, list(range(ranks)))
                model.zero_grad()
                sizes = range(ranks)
                mine = [10 * rank + i for i in range(sizes[rank])]
                with model.no_sync():
                    loss(model(batch(kind, mine)), mine).backward()
                loss(model(batch(kind, [100 + rank])), [100 + rank]).backward()
                joint = [10 * r + i for r in range(ranks) for i in range(sizes[r])]
                joint += [100 + r for r in range(ranks)]
                check(gradients(model.module), kind, joint)
                done += 1
    return done


def fsdp1(model: nn.Module) -> nn.Module:
    """torch's first FSDP, by block; ``use_orig_params`` keeps the names."""
    return FullyShardedDataParallel(
        model,
        auto_wrap_policy=ModuleWrapPolicy({MultiScaleBlock}),
        device_id=torch.device("cpu"),
        use_orig_params=True,
    )


def fsdp2(model: nn.Module) -> nn.Module:
    """torch's second FSDP, by block."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def whole_gradients(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter's gradient, gathered from its shards."""
    if isinstance(model, FullyShardedDataParallel):
        with FullyShardedDataParallel.summon_full_params(model, with_grads=True):
            found = gradients(model)
        return {name.replace("_fsdp_wrapped_module.", ""): grad for name, grad in found.items()}
    return {name: grad.full_tensor() for name, grad in gradients(model).items()}


def sharded(rank: int, ranks: int, folder: Path) -> int:
    """Both kinds of FSDP, two steps each, the second accumulated over two parts."""
    done = 0
    for kind in KINDS:
        for act_checkpoint in (False, True):
            for shard in (fsdp1, fsdp2):
                model = shard(classifier(kind, act_checkpoint))
                for parts in (1, 2):
                    for part in range(parts):
                        mine = [10 * part + rank]
                        last = part == parts - 1
                        if shard is fsdp2:
                            model.set_requires_gradient_sync(last)
                        with nullcontext() if last or shard is fsdp2 else model.no_sync():
                            loss(model(batch(kind, mine)), mine).backward()
                    joint = [10 * part + r for part in range(parts) for r in range(ranks)]
                    check(whole_gradients(model), kind, joint)
                    model.zero_grad()
                done += 1
    return done


def trained(kind: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A sharded model and its optimizer after two steps."""
    model = fsdp2(classifier(kind))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    for step in range(2):
        samples = [10 * step + dist.get_rank()]
        loss(model(batch(kind, samples)), samples).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def whole(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict]:
    """Both states, gathered, as one process would hold them."""
    options = StateDictOptions(full_state_dict=True)
    weights, moments = get_state_dict(model, optimizer, options=options)
    return {"model": weights, "optimizer": moments}


def save(rank: int, ranks: int, folder: Path, kinds: Collection[str] = tuple(KINDS)) -> int:
    """Train, save in shards, and leave rank 0's gathered state beside them."""
    for kind in kinds:
        model, optimizer = trained(kind)
        weights, moments = get_state_dict(model, optimizer)
        state = {"model": weights, "optimizer": moments}
        dcp.save(state, checkpoint_id=str(folder / kind / str(ranks)))
        state = whole(model, optimizer)
        if rank == 0:
            assert all("_fsdp" not in name for name in state["model"])
            torch.save(state, folder / kind / f"whole{ranks}.pt")
    return len(kinds)


def load(
    rank: int, ranks: int, folder: Path, saved: int, kinds: Collection[str] = tuple(KINDS)
) -> int:
    """Load what ``saved`` ranks have saved, and compare every bit; one rank shards nothing."""
    for kind in kinds:
        model = classifier(kind)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        model = fsdp2(model) if ranks > 1 else model
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        weights, moments = get_state_dict(model, optimizer)
        state = {"model": weights, "optimizer": moments}
        dcp.load(state, checkpoint_id=str(folder / kind / str(saved)))
        set_state_dict(
            model,
            optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
        )
        found = whole(model, optimizer)
        if rank == 0:
            kept = torch.load(folder / kind / f"whole{saved}.pt", weights_only=True)
            assert len(kept["model"]) == len(kept["optimizer"]["state"]) > 60
            assert any(value.any() for value in kept["model"].values())
            assert same(found, kept)
    return len(kinds)


save_one = functools.partial(save, kinds=["clip, class token"])
load2, load4 = (functools.partial(load, saved=ranks) for ranks in (2, 4))
load2_one, load4_one = (
    functools.partial(job, kinds=["clip, class token"]) for job in (load2, load4)
)


def same(a: object, b: object) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b
