"""DistributedDataParallel around the detection backbone: what each rank does (``tests.ranks``)."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from itertools import combinations, product
from pathlib import Path

import torch
from detectron2.layers import get_norm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mvitv2_d2 import MViT
from mvitv2_d2.training import train_in_bfloat16
from tests.compare import randomize
from tests.ranks import agree, gradients, worst

SCALES = ("scale2", "scale3", "scale4", "scale5")
SUBSETS = [chosen for n in range(1, 5) for chosen in combinations(SCALES, n)]
LIMIT = 1e-12  # float64; the order of sums differs


def backbone(features: tuple[str, ...] = SCALES, act_checkpoint: bool = False) -> nn.Module:
    model = MViT(
        img_size=64,
        embed_dim=8,
        depth=5,
        num_heads=1,
        last_block_indexes=(0, 1, 3, 4),
        adaptive_window_size=8,
        use_abs_pos=True,
        pretrain_img_size=32,
        use_act_checkpoint=act_checkpoint,
        out_features=features,
    )
    return randomize(model.double().train())


def sample(index: int) -> Tensor:
    """(1, 3, 40, 56): an image of which no two are alike, and which windows do not divide."""
    generator = torch.Generator().manual_seed(index)
    return torch.randn(1, 3, 40, 56, generator=generator, dtype=torch.float64)


def batch(samples: list[int]) -> Tensor:
    return torch.cat([sample(0)[:0], *map(sample, samples)])


def loss(outputs: Mapping[str, Tensor], samples: list[int]) -> Tensor:
    """A sum over samples, each with weights of its own, however they are batched."""
    total = torch.zeros((), dtype=torch.float64)
    for number, tensor in enumerate(outputs.values()):
        for row, index in enumerate(samples):
            generator = torch.Generator().manual_seed(100 * index + number)
            weight = torch.randn(tensor.shape[1:], generator=generator, dtype=torch.float64)
            total = total + (tensor[row] * weight).sum()
        total = total + tensor.sum() * 0  # an empty batch has a graph as well
    return total


def expected(features: tuple[str, ...], samples: list[int]) -> dict[str, Tensor]:
    """Gradients of one process on the joint batch."""
    model = backbone(features)
    loss(model(batch(samples)), samples).backward()
    return gradients(model)


def check(model: DistributedDataParallel, features: tuple[str, ...], samples: list[int]) -> None:
    """After a backward pass: the ranks agree, and hold the joint gradients over their number."""
    ranks = torch.distributed.get_world_size()
    ours = {name: grad * ranks for name, grad in gradients(model.module).items()}
    assert agree(ours)
    if torch.distributed.get_rank() == 0:
        error = worst(ours, expected(features, samples))
        assert error < LIMIT, (features, error)
    model.zero_grad()


def every_subset(rank: int, ranks: int, options: list[tuple[bool, bool]]) -> int:
    """Every subset of features, twice each: DDP reports unused parameters at the second step."""
    done = 0
    for features, (act_checkpoint, static) in product(SUBSETS, options):
        model = DistributedDataParallel(backbone(features, act_checkpoint), static_graph=static)
        for step in range(2):
            mine = [2 * ranks * step + 2 * rank + i for i in range(2)]
            loss(model(batch(mine)), mine).backward()
            if step:
                joint = [2 * ranks * step + i for i in range(2 * ranks)]
                check(model, features, joint)
            model.zero_grad()
        done += 1
    return done


def subsets(rank: int, ranks: int, folder: Path) -> int:
    """Activation checkpointing and static graph, each on and off."""
    return every_subset(rank, ranks, [(a, s) for a in (False, True) for s in (False, True)])


def accumulation(rank: int, ranks: int, folder: Path) -> int:
    """Three parts of a batch, only the last of which is synchronised; two rounds.

    Before, one step as usual: torch's static graph fails, of any model, where the first step is
    within ``no_sync``.
    """
    done = 0
    for act_checkpoint, static in ((False, False), (True, False), (False, True), (True, True)):
        model = DistributedDataParallel(backbone(SCALES, act_checkpoint), static_graph=static)
        loss(model(sample(rank)), [rank]).backward()
        model.zero_grad()
        for round_ in range(2):
            first = 3 * ranks * round_
            for part in range(3):
                mine = [first + 3 * rank + part]
                with nullcontext() if part == 2 else model.no_sync():
                    loss(model(batch(mine)), mine).backward()
            check(model, SCALES, [first + i for i in range(3 * ranks)])
        done += 1
    return done


def uneven(rank: int, ranks: int, folder: Path) -> int:
    """Batches of 0, 1, 2 ... images; then one, two, three ... steps under DDP's ``join``."""
    done = 0
    for act_checkpoint in (False, True):
        model = DistributedDataParallel(backbone(SCALES, act_checkpoint))
        sizes = range(ranks)  # rank 0 has no image
        for _ in range(2):
            mine = [10 * rank + i for i in range(sizes[rank])]
            loss(model(batch(mine)), mine).backward()
            check(model, SCALES, [10 * r + i for r in range(ranks) for i in range(sizes[r])])
        done += 1
        with model.join():
            for step in range(rank + 1):
                mine = [10 * rank + step]
                loss(model(batch(mine)), mine).backward()
                if rank == ranks - 1:  # the last one to have data
                    joint = [10 * r + step for r in range(step, ranks)]
                    ours = {n: grad * ranks for n, grad in gradients(model.module).items()}
                    assert worst(ours, expected(SCALES, joint)) < LIMIT
                model.zero_grad()
        done += 1
    return done


class Normed(nn.Module):
    """A trunk and a box head's convolution with its batch norm over all ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = backbone(("scale2",))
        self.conv = nn.Conv2d(8, 16, 3, bias=False)
        self.norm = get_norm("naiveSyncBN_N", 16)
        self.float()
        with torch.no_grad():  # means of several deviations, as trained convolutions give
            torch.manual_seed(0)
            self.conv.weight.copy_(0.02 * torch.randn_like(self.conv.weight) + 0.1)
            self.backbone.scale2_norm.bias.fill_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(self.backbone(x)["scale2"]))


def batch_norm(rank: int, ranks: int, folder: Path) -> tuple[float, float]:
    """Largest relative differences of running means and variances from float32's."""
    plain, ours = Normed().train(), Normed().train()
    train_in_bfloat16(ours)
    for model in (plain, ours):
        model.norm.momentum = 1.0
        out = model(sample(rank).float())
        assert out.isfinite().all(), model
        out.square().mean().backward()
        assert all(grad.isfinite().all() for grad in gradients(model).values())
    assert agree(dict(ours.norm.named_buffers()))
    differences = [
        (getattr(ours.norm, name) / getattr(plain.norm, name) - 1).abs().max().item()
        for name in ("running_mean", "running_var")
    ]
    return differences[0], differences[1]
