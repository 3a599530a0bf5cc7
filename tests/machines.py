"""Trainers on several "machines": groups of processes on this one, met at a loopback address."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MACHINES, RANKS = 2, 2  # of each
LIMIT = 600.0  # seconds
# DDP orders its buckets anew after the first step, and a resumed run has one more first step: sums
# over ranks round in another order there.
WITHIN = 1e-5


class Machine:
    """One machine's launcher and ranks, in a process group of their own."""

    def __init__(self, command: list[str], log: Path, environment: dict[str, str]) -> None:
        self.log = log
        with open(log, "w") as stream:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
                cwd=log.parent,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def kill(self) -> None:
        """All of its processes at once, as if its plug were pulled."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def end(self) -> int:
        """Wait; the launcher's exit code."""
        try:
            return self.process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(self.log.read_text()[-5000:]) from None


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(command: Callable[[int, str], list[str]], folder: Path, **environment: str) -> list:
    """Start all machines: ``command(machine, url)`` is what one runs, after Python."""
    folder.mkdir(exist_ok=True)
    url = f"tcp://127.0.0.1:{free_port()}"
    environment["KILL_FOLDER"] = str(folder)  # of killing.record
    return [
        Machine(command(number, url), folder / f"machine{number}.log", environment)
        for number in range(MACHINES)
    ]


def run(command: Callable[[int, str], list[str]], folder: Path, **environment: str) -> None:
    """Run all machines to their end."""
    machines = start(command, folder, **environment)
    for machine in machines:
        assert machine.end() == 0, machine.log.read_text()[-5000:]


def lose_one(
    command: Callable[[int, str], list[str]], folder: Path, steps: int, **environment: str
) -> None:
    """Kill the last machine after ``steps`` steps; the others must not go on without it."""
    machines = start(command, folder, **environment)
    losses = folder / f"rank{MACHINES * RANKS - 1}" / "losses.jsonl"
    begun = time.monotonic()
    while not losses.exists() or losses.read_text().count("\n") < steps:
        assert machines[-1].process.poll() is None, machines[-1].log.read_text()[-5000:]
        assert time.monotonic() - begun < LIMIT
        time.sleep(0.01)
    machines[-1].kill()
    for machine in machines[:-1]:
        assert machine.end() != 0, machine.log.read_text()[-5000:]
