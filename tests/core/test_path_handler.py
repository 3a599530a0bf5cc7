"""``mvitv2://NAME`` through iopath, from a local server that counts who asks."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from mvitv2_core import CheckpointError, MViTClassifier, cli, load_checkpoint
from mvitv2_core.checkpoint.hub import OFFICIAL, Official
from mvitv2_core.path_manager import local_path, register_with
from tests.structures import small

BODY = bytes(range(256)) * 1024


class Slow(BaseHTTPRequestHandler):
    """Answers after a second, with ``BODY``."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        time.sleep(1)
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """Address of a file; torch.hub's cache is an empty folder."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(Slow, "asked", [], raising=False)
    http = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}/toy.pyth"
    http.shutdown()
    http.server_close()
    thread.join()


def official(url: str) -> Official:
    return Official(url, "image", "T", "nothing", "none", None, "none")


RANK = """
import sys
from mvitv2_core.path_manager import local_path
from mvitv2_core.checkpoint.load import weights_path
from mvitv2_core.checkpoint.hub import OFFICIAL, Official
OFFICIAL["toy"] = Official(sys.argv[1], "image", "T", "nothing", "none", None, "none")
print("ready", flush=True)
sys.stdin.readline()
print(weights_path(local_path(sys.argv[2])))
"""


def test_of_two_processes_one_downloads(server: str, tmp_path: Path) -> None:
    """A trainer's rank by its path manager, and who asks for a model by name."""
    root = str(Path(__file__).parents[2])
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, server, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": root},
        )
        for name in ("mvitv2://toy", "toy")
    ]
    for rank in ranks:
        assert rank.stdout is not None and rank.stdout.readline() == "ready\n"
    for rank in ranks:
        assert rank.stdin is not None
        rank.stdin.write("go\n")
        rank.stdin.flush()
    target = tmp_path / "hub/checkpoints/toy.pyth"
    for rank in ranks:
        assert rank.communicate(timeout=60)[0] == f"{target}\n"
        assert rank.returncode == 0
    assert target.read_bytes() == BODY
    assert Slow.asked == ["/toy.pyth"]
    assert [path.name for path in target.parent.iterdir()] == ["toy.pyth"]


def test_path_manager(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file_io = pytest.importorskip("iopath.common.file_io", reason="install iopath to run")
    monkeypatch.setitem(OFFICIAL, "toy", official(server))
    manager = file_io.PathManager()
    register_with(manager)
    register_with(manager)
    assert manager.exists("mvitv2://toy") and manager.isfile("mvitv2://toy")
    assert not manager.exists("mvitv2://other")
    assert Slow.asked == []  # nobody is asked before the file is opened
    with manager.open("mvitv2://toy", "rb") as stream:
        assert stream.read() == BODY
    assert Path(manager.get_local_path("mvitv2://toy")).read_bytes() == BODY
    assert Slow.asked == ["/toy.pyth"]
    with pytest.raises(OSError, match="can only be read"):
        manager.open("mvitv2://toy", "wb")
    with pytest.raises(CheckpointError, match="other: neither a file nor one of the official"):
        manager.open("mvitv2://other", "rb")


def test_the_prefix_where_a_name_is_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``load_checkpoint`` and the commands take what trainers' configs say."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setitem(OFFICIAL, "toy", official("https://nowhere.invalid/toy.pyth"))
    OFFICIAL["toy"].cached.parent.mkdir(parents=True)
    torch.save(MViTClassifier(small("T")).state_dict(), OFFICIAL["toy"].cached)
    assert load_checkpoint(MViTClassifier(small("T")), "mvitv2://toy").counts()["loaded"] == 242
    assert cli.main(["diff", "mvitv2://toy", "toy"]) == 0
    assert cli.main(["inspect", "mvitv2://other"]) == 2
    assert "other: neither a file nor one of the official weights" in capsys.readouterr().err


def test_other_paths_stay(tmp_path: Path) -> None:
    assert local_path("some/file.pyth") == "some/file.pyth"


def test_cache_that_cannot_be_written_to(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is there needs no lock beside it."""
    monkeypatch.setitem(OFFICIAL, "toy", official(server))
    target = Path(os.environ["TORCH_HOME"], "hub/checkpoints/toy.pyth")
    target.parent.mkdir(parents=True)
    target.write_bytes(BODY)
    assert local_path("mvitv2://toy") == str(target)
    assert [path.name for path in target.parent.iterdir()] == ["toy.pyth"] and Slow.asked == []
