"""detectron2's trainer and ours killed with SIGKILL, and resumed by themselves."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import BinaryIO

import pytest
import torch

pytest.importorskip("detectron2", reason="install detectron2 to run: make setup")

from mvitv2_core.path_manager import UNFINISHED
from projects.detection.find_tools import find_tool
from tests import killing
from tests.d2.running import ROOT
from tests.faults import flip_bit, small_disk

STEPS = 6
# Seven kills of a fast machine's run must not find it at its end.
SOAK_STEPS = 24
CLAIM = "kills survived, detectron2"
DAMAGED = "flipped bits of tensors in checkpoints, refused"
FAULTS = "runs stopped by other faults and resumed, detectron2"
RANKS = "kills on two ranks survived, detectron2"
LAZY = [
    *("--config-file", str(ROOT / "tests/d2/kill_config.py"), "--resume"),
    *("train.eval_period=3", "train.checkpointer.period=2"),
]
YAML = [
    str(ROOT / "projects/detection/train_net.py"),
    *("--config-file", str(ROOT / "configs/COCO/toy_mask_rcnn_mvitv2.yaml"), "--resume"),
    *("SEED", "1", "SOLVER.CHECKPOINT_PERIOD", "2"),
    *("TEST.EVAL_PERIOD", "3", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.BASE_LR", "0.001"),
    *("SOLVER.STEPS", "()", "SOLVER.WARMUP_ITERS", "2"),
]


def starter(
    trainer: str, datasets: Path, steps: int = STEPS, ranks: int = 1, workers: int = 0
) -> Callable[..., str]:
    """``start(folder, kill_at)`` of "lazyconfig_train_net.py" or of our "train_net.py".

    Args:
        ranks, workers: processes that train, and that load data for them; of the first tool alone.
    """
    lazy = ["--num-gpus", str(ranks), "--dist-url", "auto", *LAZY, "train.ddp.device_ids=null"]
    lazy += [f"train.max_iter={steps}", f"dataloader.train.num_workers={workers}"]

    def start(folder: Path, kill_at: str = "") -> str:
        environment = {"DETECTRON2_DATASETS": str(datasets)}
        if trainer == "train_net.py":
            command = [*YAML, "SOLVER.MAX_ITER", str(steps), "OUTPUT_DIR", f"{folder}/out"]
            environment["DETECTRON2_ENV_MODULE"] = "tests.d2.kill_hooks"
        else:
            command = [str(find_tool(trainer)), *lazy, f"train.output_dir={folder}/out"]
        return killing.run(command, folder, kill_at, **environment)

    return start


def last(folder: Path) -> dict:
    """The checkpoint that a resumed run would start from."""
    name = (folder / "out/last_checkpoint").read_text()
    return torch.load(folder / "out" / name, weights_only=True)


def check(start: Callable[..., str], folder: Path, reference: Path, kills: list[str]) -> None:
    killing.survive(start, folder, reference, kills)
    assert killing.same(last(folder), last(reference))  # weights, optimizer, schedule, iteration
    # What a kill left is used up by the next write; there is none after the last one.
    left = [path.name for path in (folder / "out").glob(".mvitv2-*")]
    assert left == ([UNFINISHED] if kills and kills[-1].startswith("save 3") else [])


@pytest.mark.slow
def test_killed_run_resumes(datasets: Path, tmp_path: Path, tally: Callable[..., None]) -> None:
    """While last_checkpoint is written, in evaluation, and in the write of model_final.pth.

    detectron2 alone cannot resume after the first: last_checkpoint is empty. After the last, it
    has no step left and writes no model_final.pth: the same weights are in model_0000005.pth.
    """
    start, reference = starter("lazyconfig_train_net.py", datasets), tmp_path / "reference"
    start(reference)
    kills = ["tag 2 0", "eval 1 0.05", "save 3 0.7"]
    check(start, tmp_path / "killed", reference, kills)
    assert (tmp_path / "killed/out/last_checkpoint").read_text() == "model_0000005.pth"
    assert not (tmp_path / "killed/out/model_final.pth").exists()
    tally(CLAIM, len(kills))


@pytest.mark.slow
def test_killed_ranks_resume(datasets: Path, tmp_path: Path, tally: Callable[..., None]) -> None:
    """Two ranks: one killed while the other writes a checkpoint, both, and their launcher.

    detectron2's launcher ends what is left of them; without it they end by themselves.
    """
    start = starter("lazyconfig_train_net.py", datasets, ranks=2)
    reference = tmp_path / "reference"
    start(reference)
    kills = ["save 1 0.6 other", "step 3 0.1 ranks", "tag 1 0 launcher"]
    check(start, tmp_path / "killed", reference, kills)
    tally(RANKS, len(kills))


@pytest.mark.slow
def test_other_faults(datasets: Path, tmp_path: Path, tally: Callable[..., None]) -> None:
    """The disk full or read-only at a checkpoint, the loader's worker killed, NaN in an image.

    Each ends the run with the cause in its last line, and the old checkpoint is whole.
    """
    start = starter("lazyconfig_train_net.py", datasets, workers=1)
    reference, folder = tmp_path / "reference", tmp_path / "faults"
    start(reference)
    faults = {
        "full 4 0 self": r"OSError: \[Errno 28\] No space left on device: '.*model_0000003.pth'$",
        "readonly 2 0 self": r"OSError: \[Errno 30\] Read-only file system: ",
        # PyTorch notices the death or the silence first, whichever it looks at.
        "worker 3 0 self": r"RuntimeError: DataLoader worker \(pid.*\) (.*Killed|exited)",
        "nan 3 0 self": r"FloatingPointError: .*iteration.?3",
    }
    with small_disk(folder / "out", 128):
        killing.survive_faults(start, folder, reference, faults, partial(tally, FAULTS))
        assert killing.same(last(folder), last(reference))


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(2))
def test_random_kills_of_ranks(
    seed: int, datasets: Path, tmp_path: Path, tally: Callable[..., None]
) -> None:
    """Sixteen kills in two runs: whom, and at which moment, is drawn from the seed."""
    start = starter("lazyconfig_train_net.py", datasets, SOAK_STEPS, ranks=2)
    reference = tmp_path / "reference"
    start(reference)
    phases = [("step", 2, 0.3), ("save", 1, 1.0), ("tag", 1, 0.0), ("eval", 1, 0.2)]
    kills = killing.moments(seed, [*phases, *phases], killing.WHO)
    check(start, tmp_path / "killed", reference, kills)
    tally(RANKS, len(kills))


@pytest.mark.soak
@pytest.mark.parametrize("trainer", ["lazyconfig_train_net.py", "train_net.py"])
def test_random_kills(
    trainer: str, datasets: Path, tmp_path: Path, tally: Callable[..., None]
) -> None:
    """Two runs, seven kills each, at moments drawn from the seed, which are printed (-s).

    Two runs that nothing interrupts are equal bit by bit: that is the tolerance.
    """
    start, reference = starter(trainer, datasets, SOAK_STEPS), tmp_path / "reference"
    start(reference)
    check(start, tmp_path / "again", reference, [])
    phases = [("step", 2, 0.3), ("save", 1, 1.0), ("tag", 1, 0.0), ("step", 2, 0.3)]
    phases += [("tag", 1, 0.0), ("eval", 1, 0.2), ("save", 1, 1.0)]
    for seed in range(2):
        kills = killing.moments(seed, phases)
        check(start, tmp_path / f"seed{seed}", reference, kills)
        tally(CLAIM, len(kills))


def test_only_our_models_are_saved_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that fails leaves the old file; another model's goes as detectron2 writes it."""
    from detectron2.checkpoint import DetectionCheckpointer

    from tests.d2.ddp_jobs import backbone

    def broken(content: dict, stream: BinaryIO) -> None:
        stream.write(b"half")
        raise OSError("no space left")

    for model, whole in ((backbone(), True), (torch.nn.Linear(1, 1), False)):
        checkpointer = DetectionCheckpointer(model, str(tmp_path))
        manager = checkpointer.path_manager
        checkpointer.save("model")
        before = (tmp_path / "model.pth").read_bytes()
        with monkeypatch.context() as patch, pytest.raises(OSError, match="no space left"):
            patch.setattr(torch, "save", broken)
            checkpointer.save("model")
        after = (tmp_path / "model.pth").read_bytes()
        assert after == (before if whole else b"half")
        assert checkpointer.path_manager is manager
        assert sorted(path.name for path in tmp_path.iterdir()) == ["last_checkpoint", "model.pth"]


def test_damaged_and_broken_checkpoints(tmp_path: Path, tally: Callable[..., None]) -> None:
    """A flipped bit ends a resume by name, which ``torch.load`` lets through; NaN is not saved."""
    from detectron2.checkpoint import DetectionCheckpointer

    from mvitv2_core import CheckpointError
    from tests.d2.ddp_jobs import backbone

    model, path = backbone(), tmp_path / "model.pth"
    checkpointer = DetectionCheckpointer(model, str(tmp_path))
    checkpointer.save("model")
    flip_bit(path)
    torch.load(path, weights_only=True)
    with pytest.raises(CheckpointError, match=r"model\.pth: damaged .*checksum of member"):
        checkpointer.resume_or_load("", resume=True)
    tally(DAMAGED)
    damaged = path.read_bytes()
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="no checkpoint is written"):
        checkpointer.save("model")
    assert path.read_bytes() == damaged


def test_detectors_stop_names_the_iteration(tmp_path: Path) -> None:
    """detectron2's RPN stops at NaN without saying when: the trainer adds it, once.

    It goes with its last reference, as without.
    """
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.engine import SimpleTrainer

    from tests.d2.ddp_jobs import backbone

    def diverged(data: object) -> None:
        if data == 3:
            raise FloatingPointError("Training has diverged.")
        raise KeyError("other errors stay themselves")

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.forward = backbone(), diverged

    trainer = SimpleTrainer(Model(), [3, 4], torch.optim.SGD([torch.ones(1)], 0.1))
    for _ in range(2):  # as detectron2's trainers give themselves
        DetectionCheckpointer(trainer.model, str(tmp_path), trainer=weakref.proxy(trainer))
    with pytest.raises(FloatingPointError, match=r"^iteration 7: Training has diverged\.$"):
        trainer.train(7, 8)
    with pytest.raises(KeyError, match="stay themselves"):
        trainer.train(7, 8)

    trainer = SimpleTrainer(Model(), [], torch.optim.SGD([torch.ones(1)], 0.1))
    DetectionCheckpointer(trainer.model, str(tmp_path), trainer=weakref.proxy(trainer))
    gone = weakref.ref(trainer)
    del trainer
    assert gone() is None  # no cycle held it
