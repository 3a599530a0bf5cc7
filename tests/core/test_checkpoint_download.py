"""Downloads against a local server that breaks off, stalls and answers with errors."""

from __future__ import annotations

import errno
import io
import ssl
import threading
import urllib.request
from collections.abc import Callable, Iterator
from email.message import Message
from http.client import HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from urllib.response import addinfourl

import pytest
import torch

from mvitv2_core import CheckpointError, MViTClassifier, load_checkpoint
from mvitv2_core.checkpoint import hub
from mvitv2_core.checkpoint.hub import OFFICIAL, Official, download
from tests.structures import small

BODY = bytes(range(256)) * 4096  # 1 MiB, of which no two parts are alike by chance
Answer = Callable[[BaseHTTPRequestHandler, int], None]


class Server:
    """Serves on 127.0.0.1; ``answers`` are taken in turn, the last one again and again."""

    def __init__(self) -> None:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.ranges.append(self.headers.get("Range"))
                index = min(len(outer.ranges), len(outer.answers)) - 1
                outer.answers[index](self, int((outer.ranges[-1] or "bytes=0-")[6:-1]))

            def log_message(self, *_: object) -> None:
                pass

        self.ranges: list[str | None] = []
        self.answers: list[Answer] = []
        self.done = threading.Event()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.thread = threading.Thread(target=self.http.serve_forever, daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}/weights.pyth"

    def close(self) -> None:
        self.done.set()
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(hub.time, "sleep", lambda _: None)
    server = Server()
    yield server
    server.close()


def serve(length: int | None = None, resume: bool = True, body: bytes = BODY) -> Answer:
    """Sends the file, or only its first ``length`` bytes from where the request starts."""

    def answer(handler: BaseHTTPRequestHandler, start: int) -> None:
        start = start if resume else 0
        part = body[start:]
        handler.send_response(206 if start else 200)
        handler.send_header("Content-Length", str(len(part)))
        handler.end_headers()
        handler.wfile.write(part if length is None else part[:length])
        handler.close_connection = True

    return answer


def fail(code: int) -> Answer:
    return lambda handler, _: handler.send_error(code)


def stall(server: Server, length: int) -> Answer:
    """Sends some bytes, then nothing until the test ends."""

    def answer(handler: BaseHTTPRequestHandler, start: int) -> None:
        serve(length)(handler, start)
        handler.wfile.flush()
        server.done.wait(20)

    return answer


def test_whole_file(server: Server, tmp_path: Path) -> None:
    server.answers = [serve()]
    download(server.url, tmp_path / "new" / "x.pyth")
    assert (tmp_path / "new" / "x.pyth").read_bytes() == BODY
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x.pyth"]


@pytest.mark.parametrize("length", [0, 1, 1000, 700_000])
def test_broken_off_and_resumed(server: Server, tmp_path: Path, length: int) -> None:
    server.answers = [serve(length), serve(length), serve()]
    download(server.url, tmp_path / "x.pyth")
    assert (tmp_path / "x.pyth").read_bytes() == BODY
    if length:
        assert server.ranges[1] == f"bytes={length}-"


def test_server_that_cannot_resume(server: Server, tmp_path: Path) -> None:
    server.answers = [serve(5000), serve(resume=False)]
    download(server.url, tmp_path / "x.pyth")
    assert (tmp_path / "x.pyth").read_bytes() == BODY


def test_stalled_connection_is_given_up_and_resumed(server: Server, tmp_path: Path) -> None:
    server.answers = [stall(server, 3000), serve()]
    download(server.url, tmp_path / "x.pyth", timeout=0.5)
    assert (tmp_path / "x.pyth").read_bytes() == BODY
    assert server.ranges == [None, "bytes=3000-"]


def test_passing_server_errors(server: Server, tmp_path: Path) -> None:
    server.answers = [fail(500), fail(503), serve(9), fail(416), serve()]
    download(server.url, tmp_path / "x.pyth", tries=5)
    assert (tmp_path / "x.pyth").read_bytes() == BODY


@pytest.mark.parametrize(
    "fault",
    [
        ssl.SSLError(1, "[SSL] record layer failure"),
        OSError(errno.EHOSTUNREACH, "No route to host"),
    ],
)
def test_faults_of_a_connection_are_not_the_disk_s(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: OSError
) -> None:
    """They are OSErrors like a full disk's, in the middle of the file and before any of it."""
    read1, begin, reads = HTTPResponse.read1, HTTPResponse.begin, count(1)

    def broken(self: HTTPResponse, n: int = -1) -> bytes:
        if next(reads) == 2:
            raise fault
        return read1(self, min(n, 9000))

    monkeypatch.setattr(HTTPResponse, "read1", broken)
    server.answers = [serve()]
    download(server.url, tmp_path / "x.pyth")
    assert (tmp_path / "x.pyth").read_bytes() == BODY
    assert len(server.ranges) == 2 and server.ranges[1]

    def unanswered(self: HTTPResponse) -> None:
        begin(self)
        raise fault

    monkeypatch.setattr(HTTPResponse, "begin", unanswered)
    with pytest.raises(CheckpointError, match=r"cannot be downloaded: broke off: .*(failure|host)"):
        download(server.url, tmp_path / "y.pyth", tries=2)
    assert len(server.ranges) == 4


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has /dev/full")
def test_a_full_disk_is_no_broken_connection(server: Server) -> None:
    server.answers = [serve()]
    with (
        open("/dev/full", "wb", buffering=0) as full,
        pytest.raises(OSError, match="No space left"),
    ):
        hub._fetch(server.url, full, timeout=5.0, tries=3)  # type: ignore[arg-type]
    assert len(server.ranges) == 1


FAILURES: dict[str, tuple[Callable[[Server], Answer], str, int]] = {
    "404": (lambda _: fail(404), "the server answered 404", 1),
    "403": (lambda _: fail(403), "the server answered 403", 1),
    "500": (lambda _: fail(500), "the server answered 500", 3),
    "always broken off": (lambda _: serve(10), "broke off", 3),
    "always stalled": (lambda server: stall(server, 10), "nothing came for 0.3 s", 3),
    "silent": (lambda server: lambda *_: server.done.wait(20) and None, "0.3 s", 3),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_failures_leave_nothing(server: Server, tmp_path: Path, kind: str) -> None:
    make, cause, tries = FAILURES[kind]
    server.answers = [make(server)]
    with pytest.raises(CheckpointError) as caught:
        download(server.url, tmp_path / "x.pyth", timeout=0.3, tries=3)
    assert server.url in str(caught.value) and cause in str(caught.value)
    assert len(server.ranges) == tries
    assert not list(tmp_path.iterdir())


def test_no_network(server: Server, tmp_path: Path) -> None:
    url = server.url
    server.close()
    with pytest.raises(CheckpointError, match=r"no connection .* is there a network"):
        download(url, tmp_path / "x.pyth", tries=2)
    assert not list(tmp_path.iterdir())


def test_other_schemes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    with pytest.raises(CheckpointError, match="only http and https"):
        download(f"file://{tmp_path}/secret", tmp_path / "x.pyth")


def redirect(place: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler, _: int) -> None:
        handler.send_response(302)
        handler.send_header("Location", place)
        handler.end_headers()

    return answer


def test_redirect_is_followed(server: Server, tmp_path: Path) -> None:
    server.answers = [redirect("/elsewhere"), serve()]
    download(server.url, tmp_path / "x.pyth")
    assert (tmp_path / "x.pyth").read_bytes() == BODY


def test_https_is_not_left(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An https server, here a fake one, that sends on to http."""

    def redirected(_: object, request: urllib.request.Request) -> addinfourl:
        headers = Message()
        headers["Location"] = server.url
        answer = addinfourl(io.BytesIO(), headers, request.full_url, 302)
        answer.msg = "Found"
        return answer

    monkeypatch.setattr(urllib.request.HTTPSHandler, "https_open", redirected)
    server.answers = [serve()]
    with pytest.raises(CheckpointError) as caught:
        download("https://authors.invalid/x.pyth", tmp_path / "x.pyth")
    cause = f"authors.invalid/x.pyth: redirects to {server.url}, which is not https"
    assert cause in str(caught.value)
    assert not server.ranges and not list(tmp_path.iterdir())


def test_unwritable_cache(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    server.answers = [serve()]
    with pytest.raises(CheckpointError, match="cannot be written"):
        download(server.url, tmp_path / "file" / "x.pyth")


def test_progress_on_a_terminal(
    server: Server,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server.answers = [serve()]
    download(server.url, tmp_path / "quiet.pyth")
    assert not capsys.readouterr().err
    monkeypatch.setattr(hub.sys.stderr, "isatty", lambda: True, raising=False)
    download(server.url, tmp_path / "x.pyth")
    assert "weights.pyth [" + "#" * 30 + "]" in capsys.readouterr().err


def test_load_by_name(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first use downloads into torch.hub's cache, the second one does not."""
    source = MViTClassifier(small("T"))
    torch.save({"model_state": source.state_dict()}, tmp_path / "served")
    server.answers = [serve(40_000, body=(tmp_path / "served").read_bytes())] * 2
    server.answers += [serve(body=(tmp_path / "served").read_bytes())]
    row = Official(server.url, "image", "T", "a test", "none", None, "none")
    monkeypatch.setitem(OFFICIAL, "mvitv2_toy", row)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    for _ in range(2):
        model = MViTClassifier(small("T"))
        report = load_checkpoint(model, "mvitv2_toy")
        assert report.counts()["loaded"] == len(source.state_dict())
        for name, value in model.state_dict().items():
            assert torch.equal(value, source.state_dict()[name])
    assert len(server.ranges) == 3
    assert (tmp_path / "home/hub/checkpoints/weights.pyth").is_file()


def test_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(CheckpointError, match=r"neither a file nor one of .*mvitv2_tiny_in1k"):
        hub.official_path("mvitv2_micro_in1k")
    with pytest.raises(CheckpointError, match=r"mvitv2_micro_in1k.*MODEL_ZOO"):
        load_checkpoint(MViTClassifier(small("T")), "mvitv2_micro_in1k")


def test_failed_download_says_where_a_copy_belongs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)

    def fail(*_: object) -> None:
        raise CheckpointError("no connection")

    monkeypatch.setattr(hub, "download", fail)
    place = str(tmp_path / "hub/checkpoints/MViTv2_T_in1k.pyth")
    with pytest.raises(CheckpointError, match=r"no connection; a copy.* at ") as raised:
        hub.official_path("mvitv2_tiny_in1k")
    assert place in str(raised.value)


def test_cache_names_are_distinct() -> None:
    files = [row.file for row in OFFICIAL.values()]
    assert len(set(files)) == len(files)
    assert all("/" not in name and name.endswith((".pyth", ".pkl")) for name in files)
    page = (Path(__file__).parents[2] / "docs/weights.md").read_text()
    assert f"`{OFFICIAL['mask_rcnn_mvitv2_t_3x'].file}`" in page
