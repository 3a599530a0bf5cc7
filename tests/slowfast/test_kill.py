"""PySlowFast's trainer killed with SIGKILL, and resumed by itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import BinaryIO

import pytest
import torch

from mvitv2_slowfast import MViTv2
from tests import killing
from tests.faults import flip_bit, small_disk
from tests.slowfast import toy
from tests.slowfast.launch import needs_pyslowfast, write_config

pytestmark = needs_pyslowfast
EPOCHS = 3
CHANGES = {
    "MVIT": {"DROPPATH_RATE": 0.0},
    "TEST": {"ENABLE": False},
    "SOLVER": {"MAX_EPOCH": EPOCHS},
}
CLAIM = "kills survived, PySlowFast"
FAULTS = "runs stopped by other faults and resumed, PySlowFast"
RANKS = "kills on two ranks survived, PySlowFast"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kinetics") / "data"
    toy.make_kinetics(folder, test=0)
    return folder


@pytest.fixture(scope="module")
def start(data: Path) -> Callable[..., str]:
    def start(folder: Path, kill_at: str = "", ranks: int = 0, workers: int = 0) -> str:
        devices = {"NUM_GPUS": ranks, "DIST_BACKEND": "gloo"}
        loaders = {"DATA_LOADER": {"NUM_WORKERS": workers, "PIN_MEMORY": False}}
        config = write_config(folder, CHANGES, devices, loaders, data=data)
        command = ["-m", "tests.slowfast.kill_driver", "--cfg", str(config)]
        meet = folder / f"meet{len(list(folder.glob('meet*')))}"  # a kill leaves the last one
        meet.touch()
        return killing.run([*command, "--init_method", f"file://{meet}"], folder, kill_at)

    return start


@pytest.fixture(scope="module")
def reference(start: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("reference")
    start(folder)
    return folder


def final(folder: Path) -> dict:
    path = folder / f"out/checkpoints/checkpoint_epoch_{EPOCHS:05d}.pyth"
    content = torch.load(path, weights_only=True)
    return {key: content[key] for key in ("epoch", "model_state", "optimizer_state")}


def check(start: Callable[..., str], folder: Path, reference: Path, kills: list[str]) -> None:
    killing.survive(start, folder, reference, kills)
    assert killing.same(final(folder), final(reference))
    # What a kill left has been used up by the next write.
    names = {path.name for path in (folder / "out/checkpoints").iterdir()}
    assert names == {f"checkpoint_epoch_{epoch:05d}.pyth" for epoch in range(1, EPOCHS + 1)}


def test_killed_runs_resume(
    start: Callable[..., str], reference: Path, tmp_path: Path, tally: Callable[..., None]
) -> None:
    """In the second checkpoint's write, in evaluation, and in a step of the last epoch.

    Upstream alone cannot resume after the first: the half-written file is the newest.
    """
    kills = ["save 2 0.6", "eval 1 0.02", "step 2 0.03"]
    check(start, tmp_path, reference, kills)
    tally(CLAIM, len(kills))


@pytest.mark.slow
def test_killed_ranks_resume(
    start: Callable[..., str], tmp_path: Path, tally: Callable[..., None]
) -> None:
    """Two ranks: one killed while the other writes a checkpoint, both, and their launcher.

    Upstream's launcher ends what is left of them; without it they end by themselves.
    """
    on_two, reference = partial(start, ranks=2), tmp_path / "reference"
    on_two(reference)
    kills = ["save 1 0.6 other", "step 4 0.03 ranks", "eval 1 0.02 launcher"]
    check(on_two, tmp_path / "killed", reference, kills)
    tally(RANKS, len(kills))


@pytest.mark.slow
def test_other_faults(
    start: Callable[..., str], tmp_path: Path, tally: Callable[..., None]
) -> None:
    """The disk full or read-only at a checkpoint, the loader's worker killed, NaN in a clip.

    Each ends the run with the cause in its last line, and the old checkpoint is whole.
    """
    with_worker = partial(start, workers=1)
    reference, folder = tmp_path / "reference", tmp_path / "faults"
    with_worker(reference)
    faults = {
        "full 4 0 self": r"OSError: \[Errno 28\] No space left on device: '.*epoch_00002.pyth'$",
        "readonly 2 0 self": r"OSError: \[Errno 30\] Read-only file system: ",
        # PyTorch notices the death or the silence first, whichever it looks at.
        "worker 6 0 self": r"RuntimeError: DataLoader worker \(pid.*\) (.*Killed|exited)",
        "nan 6 0 self": r"FloatingPointError: the loss became NaN at iteration 2 of 3 in epoch 2",
    }
    with small_disk(folder / "out", 32):
        killing.survive_faults(with_worker, folder, reference, faults, partial(tally, FAULTS))
        assert killing.same(final(folder), final(reference))


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(2))
def test_random_kills_of_ranks(
    seed: int, start: Callable[..., str], tmp_path: Path, tally: Callable[..., None]
) -> None:
    """Twelve kills in two runs: whom, and at which moment, is drawn from the seed."""
    on_two, reference = partial(start, ranks=2), tmp_path / "reference"
    on_two(reference)
    phases = [("step", 2, 0.1), ("save", 1, 1.0), ("eval", 1, 0.05)]
    kills = killing.moments(seed, [*phases, *phases], killing.WHO)
    check(on_two, tmp_path / "killed", reference, kills)
    tally(RANKS, len(kills))


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(2))
def test_random_kills(
    seed: int,
    start: Callable[..., str],
    reference: Path,
    tmp_path: Path,
    tally: Callable[..., None],
) -> None:
    """Ten kills in two runs, at moments drawn from the seed, which are printed (-s)."""
    phases = [("step", 2, 0.1), ("save", 1, 1.0), ("eval", 2, 0.05), ("save", 1, 1.0)]
    kills = killing.moments(seed, [*phases, ("step", 2, 0.1)])
    check(start, tmp_path, reference, kills)
    tally(CLAIM, len(kills))


@pytest.mark.soak
def test_uninterrupted_runs_agree(
    start: Callable[..., str], reference: Path, tmp_path: Path
) -> None:
    """The tolerance of the other tests: two runs that nothing interrupts are equal bit by bit."""
    start(tmp_path)
    killing.check_curve(tmp_path, reference)
    assert killing.same(final(tmp_path), final(reference))


def test_only_our_models_are_saved_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that fails leaves the old file; another model's goes as PySlowFast writes it."""
    from mvitv2_slowfast.plugin import connect

    connect()
    from slowfast.config.defaults import get_cfg
    from slowfast.utils import checkpoint

    from tests.core.rank_jobs import classifier

    def broken(content: dict, stream: BinaryIO) -> None:
        stream.write(b"half")
        raise OSError("no space left")

    cfg, manager = get_cfg(), checkpoint.pathmgr
    cfg.NUM_GPUS = 0
    for model, whole in ((classifier("image"), True), (torch.nn.Linear(1, 1), False)):
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        path = Path(checkpoint.save_checkpoint(str(tmp_path), model, optimizer, 0, cfg))
        before = path.read_bytes()
        with monkeypatch.context() as patch, pytest.raises(OSError, match="no space left"):
            patch.setattr(torch, "save", broken)
            checkpoint.save_checkpoint(str(tmp_path), model, optimizer, 0, cfg)
        assert path.read_bytes() == (before if whole else b"half")
        assert checkpoint.pathmgr is manager
        assert [found.name for found in path.parent.iterdir()] == [path.name]


def test_damaged_and_broken_checkpoints(tmp_path: Path, tally: Callable[..., None]) -> None:
    """A flipped bit ends a resume by name, which ``torch.load`` lets through; NaN is not saved."""
    from mvitv2_core import CheckpointError
    from mvitv2_slowfast.plugin import connect
    from tests.slowfast_cfg import BASE, make_cfg

    connect()
    from slowfast.utils import checkpoint

    cfg = make_cfg(BASE)
    cfg.NUM_GPUS, cfg.NUM_SHARDS = 0, 1
    model = MViTv2(cfg)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    path = Path(checkpoint.save_checkpoint(str(tmp_path), model, optimizer, 0, cfg))
    checkpoint.load_checkpoint(str(path), model, False, optimizer)
    flip_bit(path)
    torch.load(path, weights_only=True)
    with pytest.raises(CheckpointError, match=r"pyth: damaged .*checksum of member"):
        checkpoint.load_checkpoint(str(path), model, False, optimizer)
    tally("flipped bits of tensors in checkpoints, refused")
    damaged = path.read_bytes()
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="no checkpoint is written"):
        checkpoint.save_checkpoint(str(tmp_path), model, optimizer, 0, cfg)
    assert path.read_bytes() == damaged
