"""``mvitv2 extract --engine ray``: the files of one process, whatever becomes of the workers."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.tools.extracting import (
    clip_model,
    contents,
    extract,
    still_model,
    write_pictures,
    write_videos,
)

pytest.importorskip("ray", reason="pip install 'mvitv2[ray]' to run")
pytest.importorskip("av", reason="videos need PyAV: pip install av")
pytestmark = pytest.mark.slow


def workers() -> list[int]:
    """Process ids of this process's Ray workers that hold a model."""
    import psutil

    found = psutil.Process().children(recursive=True)
    return [p.pid for p in found if "MapWorker" in " ".join(p.cmdline())]


@pytest.mark.parametrize("kill", [False, True])
def test_two_workers(kill: bool, tmp_path: Path) -> None:
    """Bit for bit, and with one of them killed while it works."""
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


@pytest.mark.parametrize("lose", [False, True])
def test_a_cluster_by_its_address(lose: bool, tmp_path: Path) -> None:
    """Two nodes on this machine, a worker on each; then with one that goes while it works."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    clip_model(tmp_path / "run")
    videos = write_videos(tmp_path / "videos", *(120 + 20 * i for i in range(6)))
    arguments = (tmp_path / "run", videos, "--stride", 1 / 30, "--batch", 2, "--out")
    assert extract(*arguments, tmp_path / "local") == 1
    out = tmp_path / "ray"
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        node = cluster.add_node(num_cpus=1)

        def lose_one() -> None:
            while len(list(out.glob("*.npy"))) < 2:
                time.sleep(0.01)
            cluster.remove_node(node, allow_graceful=False)

        thread = threading.Thread(target=lose_one if lose else lambda: None)
        thread.start()
        options = ("--engine", "ray", "--address", cluster.address, "--workers", 2)
        assert extract(*arguments, out, *options) == 1
        thread.join()
    finally:
        cluster.shutdown()
    assert contents(out) == contents(tmp_path / "local")


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

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Extractor, "features", dies)
        extract(*arguments, tmp_path / "ray")
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
