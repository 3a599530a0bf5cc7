"""Two "machines" on this one: the trainers' own commands, once for each, meeting on 127.0.0.1.

A machine is a process group of its own, so that killing it takes its ranks with it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.killing import ROOT

LIMIT = 600  # seconds that any run here may take


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Machine:
    """A command in a process group of its own, its output in ``folder``/``name``.txt."""

    def __init__(self, name: str, command: list[str], folder: Path, **environment: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / f"{name}.txt"
        base = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RECORD_FOLDER": str(folder)}
        base["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        with self.log.open("a") as stream:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env={**os.environ, **base, **environment},
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def kill(self) -> None:
        """SIGKILL to the machine's processes, as when its power fails."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def ended(self) -> int:
        """Its status, once it has ended by itself; one that hangs is killed and fails the test."""
        try:
            return self.process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"hangs: {self.output()[-3000:]}") from None

    def output(self) -> str:
        return self.log.read_text()


def finish(machines: list[Machine]) -> str:
    """Wait for a run that nothing interrupts; what the first machine has printed."""
    for machine in machines:
        status = machine.ended()
        if status:
            for other in machines:
                if other.process.poll() is None:
                    other.kill()
        assert status == 0, "\n".join(m.output()[-3000:] for m in machines)
    return machines[0].output()


def lose_one(machines: list[Machine], ready: Callable[[], bool]) -> None:
    """Kill the last machine when ``ready``; the others must end by themselves, with an error."""
    start = time.monotonic()
    while not ready():
        assert all(m.process.poll() is None for m in machines), machines[0].output()[-3000:]
        assert time.monotonic() - start < LIMIT, machines[0].output()[-3000:]
        time.sleep(0.02)
    machines[-1].kill()
    for machine in machines[:-1]:
        assert machine.ended() != 0


def record(rank: int, step: int, loss: float) -> None:
    """Append a rank's loss of a step to ``rank``.jsonl of the run's folder."""
    with Path(os.environ["RECORD_FOLDER"], f"rank{rank}.jsonl").open("a", buffering=1) as stream:
        stream.write(json.dumps({"step": step, "loss": loss}) + "\n")


def curve(folder: Path, rank: int) -> list[tuple[int, float]]:
    """A rank's recorded (step, loss), in the order in which they were recorded."""
    file = folder / f"rank{rank}.jsonl"
    rows = file.read_text().split("\n")[:-1] if file.exists() else []  # the last may be half
    return [(row["step"], row["loss"]) for row in map(json.loads, rows)]


def check_resumed(folder: Path, reference: Path, ranks: int, steps: int) -> None:
    """Every loss of an interrupted run is the uninterrupted one's bit by bit, on every rank."""
    for rank in range(ranks):
        expected = dict(curve(reference, rank))
        assert sorted(expected) == list(range(steps)) and len(set(expected.values())) == steps
        found = curve(folder, rank)
        assert dict(found) == expected and all(expected[s] == loss for s, loss in found), rank
        assert len(found) > steps or rank > 0  # a step was repeated: the run did not go on alone
