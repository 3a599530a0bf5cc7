"""Models whose blocks are compiled: names, files, copies, training, changing sizes."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from mvitv2_core import MViTClassifier, MViTConfig, load_checkpoint
from mvitv2_core.block import DropPath
from mvitv2_core.config import lay_out
from mvitv2_core.rows import stage_rows
from tests.compare import error, gradient_error, loss_of, randomize
from tests.small import stage_blocks


@pytest.fixture(autouse=True)
def traced_only() -> Iterator[None]:
    """Programs as Dynamo traces them, run by PyTorch's own operations: no compiler is needed."""
    torch._dynamo.reset()
    with torch.compiler.set_stance("default", force_backend="aot_eager"):
        yield
    torch._dynamo.reset()


def pair(**options: object) -> tuple[nn.Module, nn.Module]:
    """The same float64 classifier of two blocks, compiled and not."""
    rows = stage_rows((1, 1), 8, 1, (2, 2))
    config = MViTConfig(lay_out(rows, 8, (8, 8)), (32, 32), (7, 7), (4, 4), (3, 3), num_classes=3)
    plain = randomize(MViTClassifier(config).double())
    compiled = MViTClassifier(config, compile=True, **options).double()  # type: ignore[arg-type]
    compiled.load_state_dict(plain.state_dict(), strict=True)
    return compiled, plain


def image(side: int, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(side)
    return torch.randn(batch, 3, side, side, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("act_checkpoint", [False, True])
def test_it_is_the_same_model(act_checkpoint: bool) -> None:
    """Names, outputs and gradients; and what was asked to be compiled is."""
    compiled, plain = pair(act_checkpoint=act_checkpoint)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    expected, got = plain(image(32)), compiled(image(32))
    assert error(got, expected) < 1e-12
    loss_of(expected).backward()
    loss_of(got).backward()
    assert gradient_error(compiled, plain) < 1e-10
    assert torch._dynamo.utils.counters["frames"]["ok"] >= 2


@pytest.mark.filterwarnings("ignore")  # a trace says what it records as constants
def test_files_copies_and_traces() -> None:
    """None of them is compiled; PyTorch itself refuses to trace what is."""
    compiled, plain = pair()
    compiled(image(32))
    load_checkpoint(plain, compiled.state_dict())
    load_checkpoint(compiled, plain.state_dict())
    twin = copy.deepcopy(compiled)
    assert torch.equal(twin(image(32)), plain(image(32)))
    traced = torch.jit.trace(compiled, image(32), check_trace=False)
    assert error(traced(image(32)), plain(image(32))) < 1e-12


def test_without_the_private_name_of_what_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.Module, "compile", lambda block, **options: None)
    compiled, plain = pair()
    assert torch.equal(compiled(image(32)), plain(image(32)))


def test_frozen_parts() -> None:
    compiled, plain = pair()
    for model in (compiled, plain):
        model.blocks[0].requires_grad_(False)  # type: ignore[index, union-attr]
        loss_of(model(image(32))).backward()
    for a, b in zip(compiled.parameters(), plain.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        assert a.grad is None or error(a.grad, b.grad) < 1e-10 or b.grad.abs().max() < 1e-12


def test_equal_blocks_share_programs_whatever_their_drop_path() -> None:
    counts = []
    for depth in (3, 6):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        blocks = stage_blocks((depth,), 8, 1, (8, 8), (2, 2), drop_path_rate=0.5)
        config = MViTConfig(blocks, (32, 32), (7, 7), (4, 4), (3, 3), num_classes=3)
        model = MViTClassifier(config, compile=True)
        loss_of(model(image(32).float())).backward()
        counts.append(torch._dynamo.utils.counters["frames"]["ok"])
    assert counts[0] == counts[1] <= 3


def test_drop_path_drops_whole_samples_at_its_rate_when_compiled() -> None:
    dropped = torch.compile(DropPath(0.25), dynamic=True)(torch.ones(20000, 3))
    assert torch.equal(dropped, dropped[:, :1].expand_as(dropped))
    values = dropped[:, 0]
    assert set(values.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert abs(values.mean().item() - 1) < 0.02  # five standard deviations


@pytest.mark.slow
def test_changing_sizes(caplog: pytest.LogCaptureFixture) -> None:
    """Programs for the first size, then some for any: the number of them stops growing."""
    compiled, plain = pair()
    counts = []
    with torch.no_grad(), caplog.at_level(logging.WARNING, logger="torch._dynamo"):
        for side in (32, 40, 48, 64, 36, 56, 72, 44, 80, 100):
            assert error(compiled(image(side)), plain(image(side))) < 1e-9
            counts.append(torch._dynamo.utils.counters["frames"]["ok"])
    assert counts[-1] == counts[4]
    assert not any("recompile_limit" in record.getMessage() for record in caplog.records)
