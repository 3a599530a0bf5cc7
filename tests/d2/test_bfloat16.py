"""``bfloat16`` under detectron2: the trunk's arithmetic, and nothing of what comes after it."""

from __future__ import annotations

import copy
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("detectron2", reason="install detectron2 to run: make setup")
from detectron2 import model_zoo
from detectron2.config import LazyConfig, instantiate
from detectron2.layers import ROIAlign
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from mvitv2_d2 import MViT
from mvitv2_d2.training import make_groups, make_optimizer, train_in_bfloat16
from projects.detection.small import shrink
from tests.compare import error, randomize
from tests.d2.running import ROOT
from tests.ranks import start

RECIPE = ROOT / "projects/detection/configs/cascade_mask_rcnn_mvitv2_t_3x.py"
PRODUCTS = ("mm", "addmm", "bmm")


def cascade() -> nn.Module:
    """The recipe of T, small: cascade heads with batch norms over ranks."""
    cfg = LazyConfig.load(str(RECIPE))
    shrink(cfg)
    cfg.model.backbone.bottom_up.drop_path_rate = 0.0
    torch.manual_seed(0)
    return instantiate(cfg.model)


def batch() -> list[dict[str, Any]]:
    """One image, wide enough for boxes that bfloat16 would move by two pixels."""
    generator = torch.Generator().manual_seed(0)
    found = Instances((64, 384))
    found.gt_boxes = Boxes(torch.tensor([[3.0, 5, 40, 50], [301, 7, 371, 61]]))
    found.gt_classes = torch.tensor([0, 2])
    found.gt_masks = BitMasks(torch.ones(2, 64, 384, dtype=torch.bool))
    return [{"image": 255 * torch.rand(3, 64, 384, generator=generator), "instances": found}]


def losses(model: nn.Module) -> dict[str, Tensor]:
    torch.manual_seed(0)  # for the sampling of proposals
    with EventStorage():
        return model.train()(batch())


class Products(TorchDispatchMode):
    """Notes the dtypes of matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function._overloadpacket.__name__ in PRODUCTS:
            self.dtypes |= {arg.dtype for arg in args if isinstance(arg, Tensor)}
        return function(*args, **(kwargs or {}))


def test_heads_are_as_without() -> None:
    """Bit for bit PyTorch's autocast around the trunk; features, boxes and losses in float32."""
    ours, plain = cascade(), cascade()
    reference = copy.deepcopy(plain)
    train_in_bfloat16(ours)
    trunk, forward = plain.backbone.bottom_up, MViT.forward

    def under_autocast(x: Tensor) -> dict[str, Tensor]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            maps = forward(trunk, x)
        return {name: value.float() for name, value in maps.items()}

    trunk.forward = under_autocast
    seen: set[torch.dtype] = set()
    for module in ours.modules():
        if isinstance(module, ROIAlign):
            module.register_forward_pre_hook(lambda _, args: seen.update(a.dtype for a in args))
    got, expected = losses(ours), losses(plain)
    assert seen == {torch.float32}
    assert got.keys() == expected.keys() and len(got) > 8
    assert all(torch.equal(value, expected[name]) for name, value in got.items())
    assert all(value.dtype == torch.float32 for value in got.values())
    for value in (got, expected):
        sum(value.values()).backward()
    for (name, one), other in zip(ours.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad) and one.grad.dtype == torch.float32, name

    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    trunks = [model.backbone.bottom_up.train() for model in (ours, reference)]
    with Products() as inside:
        maps = trunks[0](x)
    assert inside.dtypes == {torch.bfloat16}
    whole = trunks[1](x)
    assert all(1e-4 < error(value, whole[name]) < 0.1 for name, value in maps.items())
    maps, whole = (model.eval()(x) for model in trunks)
    assert all(torch.equal(value, whole[name]) for name, value in maps.items())


@pytest.mark.parametrize("first", ["average", "bfloat16"])
def test_average_and_bfloat16(first: str) -> None:
    """In either order a copy of the model runs its own weights."""
    from mvitv2_core.training import Average

    kwargs: dict[str, Any] = {"embed_dim": 8, "depth": 1, "last_block_indexes": (0,)}
    model = nn.Sequential(MViT(32, adaptive_window_size=0, out_features=("scale2",), **kwargs))
    optimizer = torch.optim.SGD(randomize(model).parameters(), 0.1)
    if first == "bfloat16":
        train_in_bfloat16(model)
    average = Average(model, optimizer, 0.5)
    if first == "average":
        train_in_bfloat16(model)
    plain = copy.deepcopy(model[0])
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    for _ in range(2):
        optimizer.zero_grad()
        model.train()(x)["scale2"].square().mean().backward()
        optimizer.step()
    plain.load_state_dict({n.removeprefix("0."): v for n, v in average.state_dict().items()})
    del plain.forward  # the class's own
    assert isinstance(model[0].forward, MethodType)
    assert torch.equal(model.eval()(x)["scale2"], plain.eval()(x)["scale2"])
    assert not torch.equal(model[0].eval()(x)["scale2"], plain(x)["scale2"])


def test_refused() -> None:
    other = nn.Linear(2, 2)
    adamw = model_zoo.get_config("common/optim.py").AdamW
    with pytest.raises(ValueError, match="must be one that holds an MViT with bfloat16, got 'Lin"):
        make_optimizer(make_groups(other, base_lr=adamw.lr), bfloat16=True, lr=0.1)
    model = cascade()
    train_in_bfloat16(model)
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(RuntimeError, match="trainer's own mixed precision must be off"),
    ):
        losses(model)


def test_batch_norms_over_two_ranks(tmp_path: Path) -> None:
    """detectron2's naiveSyncBN behind the trunk: finite, with float32's statistics."""
    mean, variance = start(tmp_path, "tests.d2.ddp_jobs:batch_norm:2")[0]
    assert mean < 0.01 and variance < 0.05
