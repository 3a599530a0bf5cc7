"""Downloads official weights to torch.hub's cache: whole files or nothing."""

from __future__ import annotations

import os
import sys
import tempfile
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO

import torch

from .registry import OFFICIAL
from .report import CheckpointError

CHUNK = 1 << 20


class _Broken(Exception):
    """A download that may be worth another try."""


def official_path(name: str, timeout: float = 30.0, tries: int = 4) -> str:
    """Path of an official file, downloaded on first use.

    It is kept in torch.hub's cache (``$TORCH_HOME/hub/checkpoints``).

    Args:
        name: a key of ``OFFICIAL``.
        timeout: seconds without a byte after which a connection counts as broken.
        tries: connections to make in all; each goes on where the one before broke off.

    Raises:
        CheckpointError: unknown name, or the download failed for good.
    """
    if name not in OFFICIAL:
        raise CheckpointError(
            f"{name}: neither a file nor one of the official weights: {', '.join(OFFICIAL)}"
        )
    target = Path(torch.hub.get_dir()) / "checkpoints" / OFFICIAL[name].file
    if not target.is_file():
        download(OFFICIAL[name].url, target, timeout, tries)
    return str(target)


def download(
    url: str, target: str | os.PathLike[str], timeout: float = 30.0, tries: int = 4
) -> None:
    """Download ``url`` to ``target``, showing progress on a terminal.

    A broken or stalled connection is tried again from where it stopped. Whatever happens,
    ``target`` is either whole or not there.

    Args:
        url: http or https.
        target: its directory is made if needed.
        timeout, tries: as for ``official_path``.

    Raises:
        CheckpointError: names the URL and the cause.
    """
    if not url.startswith(("https://", "http://")):
        raise CheckpointError(f"{url}: only http and https can be downloaded")
    target = Path(target)
    part = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(prefix=f"{target.name}.", suffix=".part", dir=target.parent)
        with os.fdopen(handle, "wb") as stream:
            _fetch(url, stream, timeout, tries)
        os.chmod(part, 0o644)
        os.replace(part, target)
        part = None
    except OSError as error:
        raise CheckpointError(f"{target}: cannot be written: {error.strerror or error}") from error
    finally:
        if part is not None and os.path.exists(part):
            os.unlink(part)


def _fetch(url: str, stream: BinaryIO, timeout: float, tries: int) -> None:
    cause = ""
    for attempt in range(tries):
        if attempt:
            time.sleep(min(0.5 * 2**attempt, 8.0) if timeout >= 1 else 0)
        try:
            return _connect(url, stream, timeout)
        except urllib.error.HTTPError as error:
            cause = f"the server answered {error.code} {error.reason}"
            if error.code == 416:  # the file is no longer what was begun
                stream.seek(0)
                stream.truncate()
            elif error.code < 500 and error.code not in (408, 429):
                break
        except urllib.error.URLError as error:
            if isinstance(error.reason, TimeoutError):
                cause = f"no answer within {timeout:g} s"
            else:
                cause = f"no connection ({error.reason}): is there a network?"
        except (HTTPException, TimeoutError, ConnectionError, _Broken) as error:
            slow = isinstance(error, TimeoutError)
            cause = f"nothing came for {timeout:g} s" if slow else f"broke off: {error}"
    raise CheckpointError(f"{url}: cannot be downloaded: {cause}")


def _connect(url: str, stream: BinaryIO, timeout: float) -> None:
    """One connection, from where ``stream`` stands to the end of the file."""
    start = stream.tell()
    request = urllib.request.Request(url, headers={"User-Agent": "mvitv2"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        if start and answer.status != 206:  # the server starts over, and so do we
            stream.seek(0)
            stream.truncate()
            start = 0
        length = answer.headers.get("Content-Length")
        total = None if length is None else start + int(length)
        shown, done = 0.0, start
        # read1 hands over what has come: a break loses nothing that was received.
        while chunk := answer.read1(CHUNK):
            stream.write(chunk)
            done += len(chunk)
            if sys.stderr.isatty() and time.monotonic() - shown > 0.2:
                shown = time.monotonic()
                _progress(url, done, total)
        if sys.stderr.isatty():
            _progress(url, done, total)
            sys.stderr.write("\n")
    if total is not None and done != total:
        raise _Broken(f"{done} of {total} bytes came")


def _progress(url: str, done: int, total: int | None) -> None:
    name, million = url.rsplit("/", 1)[-1], 1e6
    if total:
        filled = 30 * done // total
        bar = "#" * filled + "." * (30 - filled)
        text = f"{name} [{bar}] {done / million:.0f} of {total / million:.0f} MB"
    else:
        text = f"{name} {done / million:.0f} MB"
    sys.stderr.write(f"\r{text}")
    sys.stderr.flush()
