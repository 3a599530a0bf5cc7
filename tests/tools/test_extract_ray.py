"""``mvitv2 extract --engine ray``: the files of one process, whatever becomes of the workers."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.tools.extracting import (
    ROOT,
    clip_model,
    contents,
    extract,
    start,
    still_model,
    write_pictures,
    write_videos,
)

pytest.importorskip("ray", reason="pip install 'mvitv2[ray]' to run")
pytest.importorskip("av", reason="videos need PyAV: pip install av")
pytestmark = pytest.mark.slow
NO_DASHBOARD = "--include-dashboard=false"


def workers() -> list[int]:
    """Process ids of this process's Ray workers that hold a model."""
    import psutil

    found = psutil.Process().children(recursive=True)
    return [p.pid for p in found if "MapWorker" in " ".join(p.cmdline())]


@pytest.mark.parametrize("kill", [False, True])
def test_two_workers(kill: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, and with one of them killed while it works; on a cluster of its own, whatever
    the environment names."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    pytest.importorskip("psutil", reason="pip install psutil to run")
    clip_model(tmp_path / "run")
    videos = write_videos(tmp_path / "videos", *(120 + 20 * i for i in range(6)))
    arguments = (tmp_path / "run", videos, "--stride", 1 / 30, "--batch", 2, "--out")
    assert extract(*arguments, tmp_path / "local") == 1
    killed, out = [], tmp_path / "ray"

    def kill_one() -> None:
        while len(list(out.glob("*.npy"))) < 2:
            time.sleep(0.01)
        killed.append(workers()[0])
        os.kill(killed[0], signal.SIGKILL)

    thread = threading.Thread(target=kill_one if kill else lambda: None)
    thread.start()
    assert extract(*arguments, out, "--engine", "ray", "--workers", 2) == 1
    thread.join()
    assert len(killed) == kill
    assert contents(out) == contents(tmp_path / "local")


@contextmanager
def ray_node(log: Path, environment: dict[str, str], *options: str) -> Iterator[tuple[int, str]]:
    """A node with one CPU; gives its process id, and the cluster's address."""
    command = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--num-cpus=1"]
    with log.open("w") as stream:
        process = subprocess.Popen(
            [*command, *options], env=environment, stdout=stream, stderr=subprocess.STDOUT
        )
    try:
        until = time.monotonic() + 300
        while "Ray runtime started" not in log.read_text():
            assert process.poll() is None and time.monotonic() < until, log.read_text()
            time.sleep(0.1)
        found = re.search(r"ray start --address='(.*)'", log.read_text())
        yield process.pid, found[1] if found else ""
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment with a token, and a home without one."""
    kept = {key: text for key, text in os.environ.items() if not key.startswith("RAY_AUTH_")}
    kept |= {"HOME": str(tmp_path_factory.mktemp("home")), "PYTHONPATH": str(ROOT)}
    kept |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_raylet_start_wait_time_s": "300"}
    return {**kept, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}


@pytest.mark.parametrize("lose", [False, True])
def test_a_cluster_by_its_address(lose: bool, tmp_path: Path, token: dict[str, str]) -> None:
    """Two nodes that ask for a token, a worker on each; then with one that goes while it works."""
    psutil = pytest.importorskip("psutil", reason="pip install psutil to run")
    clip_model(tmp_path / "run")
    videos = write_videos(tmp_path / "videos", *(120 + 20 * i for i in range(6)))
    arguments = (tmp_path / "run", videos, "--stride", 1 / 30, "--batch", 2, "--out")
    assert extract(*arguments, tmp_path / "local") == 1
    out, lost = tmp_path / "ray", []
    with (
        ray_node(tmp_path / "head.log", token, "--head", "--port=0", NO_DASHBOARD) as (_, address),
        ray_node(tmp_path / "node.log", token, f"--address={address}") as (node, _),
    ):
        options = ("--engine", "ray", "--address", address, "--workers", 2)
        run = start(*arguments, out, *options, environment=token)
        while lose and not lost and run.poll() is None:
            if len(list(out.glob("*.npy"))) >= 2:
                lost = [psutil.Process(node), *psutil.Process(node).children(recursive=True)]
                assert any("MapWorker" in " ".join(part.cmdline()) for part in lost)
                for part in lost:
                    part.kill()
            time.sleep(0.01)
        _, said = run.communicate(timeout=300)
        assert run.returncode == 1, said  # a file is broken
    assert bool(lost) == lose
    assert contents(out) == contents(tmp_path / "local")


def test_a_cluster_that_asks_for_a_token(tmp_path: Path, token: dict[str, str]) -> None:
    """Without one, or without being told of it, one line says what to do."""
    still_model(tmp_path / "run")
    pictures = write_pictures(tmp_path / "pictures", 1)
    without = {key: text for key, text in token.items() if not key.startswith("RAY_AUTH_")}
    one = {**without, "RAY_AUTH_TOKEN": token["RAY_AUTH_TOKEN"]}
    runs = []
    with ray_node(tmp_path / "log", token, "--head", "--port=0", NO_DASHBOARD) as (_, address):
        for number, given in enumerate((without, {**without, "RAY_AUTH_MODE": "token"}, one)):
            options = ("--out", tmp_path / str(number), "--engine", "ray", "--address", address)
            runs.append(start(tmp_path / "run", pictures, *options, environment=given))
        said = [run.communicate(timeout=300)[1] for run in runs]
    for run, lines in zip(runs, said, strict=True):
        (line,) = (line for line in lines.splitlines() if "--engine ray" in line)
        assert run.returncode == 2 and "set RAY_AUTH_MODE=token" in line, lines


def test_one_engine_ends_what_the_other_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups of pictures, the first two of them by one process, which dies in the third."""
    from mvitv2_tools.extract.extractor import Extractor

    still_model(tmp_path / "run")
    pictures = write_pictures(tmp_path / "pictures", 30)
    arguments = (tmp_path / "run", pictures, "--group", 4, "--batch", 3, "--out")
    assert extract(*arguments, tmp_path / "local") == 1
    real, batches = Extractor.features, []

    def dies(self: Extractor, batch: Any) -> Any:
        if len(batches) == 5:
            raise KeyboardInterrupt
        batches.append(batch)
        return real(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Extractor, "features", dies)
        assert extract(*arguments, tmp_path / "ray") == 130
    assert len(list((tmp_path / "ray").glob("*.npy"))) == 2
    assert extract(*arguments, tmp_path / "ray", "--engine", "ray", "--workers", 2) == 1
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")


def test_more_workers_than_there_is_room_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip_model(tmp_path / "run")
    videos = write_videos(tmp_path / "videos", 20)
    options = ("--engine", "ray", "--workers", 1000)
    assert extract(tmp_path / "run", videos, "--out", tmp_path / "out", *options) == 2
    assert "--workers 1000 of 1 threads have no room" in capsys.readouterr().err
