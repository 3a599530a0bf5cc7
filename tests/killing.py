"""Trainers that kill themselves at a chosen moment, and what they record on the way.

The trainer's process calls ``install``. It then appends to files in ``$KILL_FOLDER``: to
``losses.jsonl`` the loss of every step, in full precision, and to ``phases.txt`` what it is doing.
``$KILL`` holds a phase, a count and an amount, and names the moment of a SIGKILL (no handler runs,
no buffer is flushed):

    step 3 0.02     0.02 s after the third training step of this process began, from a thread
    eval 1 0.1      the same for evaluation
    save 2 0.5      when half of the second checkpoint's bytes have gone to its file
    tag 1 0         when the file that names the last checkpoint (detectron2) has been opened for
                    the first time, and nothing has been written
    worker 5 0 self when a data loader's worker is asked for its fifth sample

A fourth word says who is killed where several processes train; only rank 0 chooses the moment:
"self" for rank 0, "other" for rank 1, "ranks" for both, "launcher" for the process that started
them. Other faults kill nobody, and the trainer must stop by itself:

    nan 3 0 self        the third sample is filled with NaN
    full 3 0 self       the disk of ``$KILL_FOLDER/out`` is full from the third step on
    readonly 3 0 self   it is read-only

Meanwhile the clock jumps by up to a year either way at every step, and between two starts every
file gets another time of change: no resume may depend on either.

Data and every random choice of a step depend on its number alone, or a resumed run could not be
compared with an uninterrupted one: neither trainer resumes its random state.
"""

from __future__ import annotations

import builtins
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.faults import CURES, FAULTS, YEAR, scatter_times

ROOT = Path(__file__).resolve().parents[1]
REAL_SAVE, REAL_OPEN, REAL_TIME = torch.save, builtins.open, time.time
PHASES = ("step", "eval", "save", "tag")
WHO = ("self", "other", "ranks", "launcher")
entered: Counter[str] = Counter()
ranks: list[int] = []  # process ids


def kill() -> None:
    """SIGKILL to the processes that ``$KILL`` names, this one last."""
    victims = {
        "self": [os.getpid()],
        "other": ranks[1:],
        "ranks": ranks[::-1],
        "launcher": [os.getppid()],
    }[target()[3] or "self"]
    assert victims
    for victim in victims:
        os.kill(victim, signal.SIGKILL)


def kill_and_wait() -> None:
    """``kill``; a process that lives on stays where it is until others end it."""
    kill()
    time.sleep(60)
    raise AssertionError("nobody ended this rank for a minute")


def target() -> tuple[str, int, float, str]:
    """The phase, the count and the amount of ``$KILL``, and who is killed."""
    phase, count, amount, *who = (os.environ.get("KILL") or "none 0 0").split()
    return phase, int(count), float(amount), who[0] if who else ""


def is_first_rank() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def append(name: str, line: str) -> None:
    with REAL_OPEN(Path(os.environ["KILL_FOLDER"], name), "a", buffering=1) as stream:
        stream.write(line + "\n")


def enter(phase: str) -> bool:
    """Record that ``phase`` begins; whether it is the one to be killed in."""
    jump = random.Random(f"{os.getpid()} {REAL_TIME()}").uniform(-YEAR, YEAR)
    time.time = lambda: REAL_TIME() + jump
    if dist.is_initialized() and not ranks:
        ranks.extend([0] * dist.get_world_size())
        dist.all_gather_object(ranks, os.getpid())
    if not is_first_rank():
        return False
    append("phases.txt", phase)
    entered[phase] += 1
    chosen, count, amount, _ = target()
    hit = (chosen, count) == (phase, entered[phase])
    if phase == "step" and chosen in FAULTS and count == entered[phase]:
        FAULTS[chosen](Path(os.environ["KILL_FOLDER"], "out"))
    if hit and phase in ("step", "eval"):
        threading.Timer(amount, kill).start()
    return hit


def record(step: int, loss: float) -> None:
    if is_first_rank():
        append("losses.jsonl", json.dumps({"step": step, "loss": loss}))


class Fuse(io.RawIOBase):
    """A stream onto ``stream`` that kills the process after ``limit`` bytes."""

    def __init__(self, stream: Any, limit: int) -> None:
        self.stream, self.left = stream, limit

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        data = bytes(data)
        self.stream.write(data[: self.left])
        self.left -= len(data)
        if self.left <= 0:
            self.stream.flush()
            kill_and_wait()
        return len(data)


def save(content: Any, file: Any, *args: Any, **kwargs: Any) -> None:
    checkpoint = isinstance(content, dict) and not {"model", "model_state"}.isdisjoint(content)
    if checkpoint and enter("save"):
        whole = io.BytesIO()
        REAL_SAVE(content, whole)
        limit = round(target()[2] * whole.tell())
        file = Fuse(file if hasattr(file, "write") else REAL_OPEN(file, "wb"), limit)
    REAL_SAVE(content, file, *args, **kwargs)


def install_saving() -> None:
    """Make ``torch.save`` burn the fuse."""
    torch.save = save


def install_tagging(checkpointer: Any) -> None:
    """The phase "tag" for fvcore's ``Checkpointer``: the first file opened for writing there."""
    tag = checkpointer.tag_last_checkpoint

    def tag_last_checkpoint(self: Any, name: str) -> None:
        hit = enter("tag")

        def opened(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            stream = REAL_OPEN(file, mode, *args, **kwargs)
            if hit and "w" in mode:
                kill_and_wait()
            return stream

        builtins.open = opened
        try:
            tag(self, name)
        finally:
            builtins.open = REAL_OPEN

    checkpointer.tag_last_checkpoint = tag_last_checkpoint


def before(method: Callable, act: Callable[[], object]) -> Callable:
    """``method`` with ``act`` called first."""

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        act()
        return method(*args, **kwargs)

    return wrapped


def run(command: list[str], folder: Path, kill_at: str = "", **environment: str) -> str:
    """Start a trainer that records into ``folder``; its output. It must end as ``kill_at`` says.

    So must the ranks that it started: they hold the pipe that is read to its end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "KILL_FOLDER": str(folder),
        "KILL": kill_at,
        **environment,
    }
    process = subprocess.run(
        [sys.executable, *command],
        env=environment,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    who = kill_at.split()[3:]  # a launcher reports what became of others
    expected = 0 if not kill_at else -signal.SIGKILL if who in ([], ["launcher"]) else 1
    assert process.returncode == expected, f"{kill_at or 'no kill'}:\n{process.stdout[-5000:]}"
    if expected == 1 and kill_at.split()[0] in PHASES:
        assert "terminated with signal SIGKILL" in process.stdout, process.stdout[-5000:]
    return process.stdout


def survive(
    start: Callable[..., str], folder: Path, reference: Path, kills: list[str]
) -> list[str]:
    """Kill a run at each of ``kills``, resume it every time, and compare it with ``reference``.

    Args:
        start: ``start(folder, kill_at)`` starts or resumes the trainer in ``folder``.
        reference: folder of a run that was not interrupted.

    Returns:
        What the runs printed, the last one's output last.
    """
    outputs = []
    for moment in kills:
        print(f"{folder.name}: fault at {moment!r}")
        outputs.append(start(folder, moment))
        cure = CURES.get(moment.split()[0])
        if cure is not None:
            cure(folder / "out")
        scatter_times(folder / "out")
    outputs.append(start(folder))
    check_curve(folder, reference)
    return outputs


def survive_faults(
    start: Callable[..., str],
    folder: Path,
    reference: Path,
    faults: dict[str, str],
    count: Callable[[], None],
) -> None:
    """``survive`` of faults that end a run; the last line must say what a pattern asks for."""
    outputs = survive(start, folder, reference, list(faults))
    for output, (moment, pattern) in zip(outputs, faults.items(), strict=False):
        lines = output.strip().splitlines()[-12:]
        assert any(re.match(pattern, line) for line in lines), (moment, output[-3000:])
        count()


def check_curve(folder: Path, reference: Path) -> None:
    """Every loss ever recorded is the uninterrupted run's, to the last bit, and all are there."""
    expected = {}
    for line in (reference / "losses.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert row["step"] not in expected
        expected[row["step"]] = row["loss"]
    assert sorted(expected) == list(range(len(expected)))
    assert len(set(expected.values())) == len(expected) > 4  # it moves
    seen = set()
    for line in (folder / "losses.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert row["loss"] == expected[row["step"]], row
        seen.add(row["step"])
    # A step that ended, but was killed before it was recorded, is repeated: none is missing.
    assert seen == set(expected)


def same(a: Any, b: Any) -> bool:
    """Whether two checkpoints hold the same, bit by bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def moments(
    seed: int, phases: list[tuple[str, int, float]], who: tuple[str, ...] = ("",)
) -> list[str]:
    """Random moments, one in each of ``phases``: its name, greatest count, greatest amount.

    Args:
        who: who may be killed; each in turn, from a random one on.
    """
    draw = random.Random(seed)
    first, words = draw.randrange(len(who)), []
    for number, (phase, count, amount) in enumerate(phases):
        moment = f"{phase} {draw.randint(1, count)} {draw.uniform(0, amount):.4f}"
        words.append(f"{moment} {who[(first + number) % len(who)]}".rstrip())
    return words
