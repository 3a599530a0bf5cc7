"""Official weights by name, and their download. Every figure is the authors', none was measured by
this project."""

from __future__ import annotations

import os
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ..config import MViTConfig
from .files import whole_file
from .report import CheckpointError

PREFIX = "mvitv2://"  # before an official name where a path is asked for


@dataclass(frozen=True)
class Official:
    """One published file."""

    url: str  # where its authors keep it
    format: str  # whose names it has
    variant: str  # T, S, B, L or H
    task: str  # what it was trained on
    published: str  # the authors' figure, not measured by this project
    # Makes the config of the classifier that it fits; None for detectors, whose backbone comes
    # from the detectron2 config.
    config: Callable[[], MViTConfig] | None
    recipe: str  # the official config that it was trained with

    @property
    def file(self) -> str:
        """Its name in the cache: the URL's last part, with the model's where that says nothing."""
        parts = self.url.split("/")
        return parts[-1] if self.format != "detectron2" else f"{parts[-3]}-{parts[-1]}"

    @property
    def cached(self) -> Path:
        """Where it is kept: ``$TORCH_HOME/hub/checkpoints``."""
        return Path(torch.hub.get_dir()) / "checkpoints" / self.file


_FBAI = "https://dl.fbaipublicfiles.com"
_WORDS = {"T": "tiny", "S": "small", "B": "base", "L": "large", "H": "huge"}
_IN21K = {"cls_token": True, "num_classes": 19168}


def _image(size: str, data: str, published: str, **options: Any) -> tuple[str, Official]:
    recipe = f"facebookresearch/mvit configs/test/MVITv2_{size}_test.yaml"
    return f"mvitv2_{_WORDS[size]}_{data}", Official(
        f"{_FBAI}/mvit/mvitv2_models/MViTv2_{size}_{data}.pyth",
        *("image", size, f"ImageNet-{data[2:].upper()} at 224", published),
        partial(MViTConfig.variant, size, **options),
        recipe if data == "in1k" else "none published",
    )


def _clip(size: str, frames: str, data: str, top1: str, run: str) -> tuple[str, Official]:
    kinetics, side = data == "k400", 312 if size == "L" else 224
    folder, task, classes = (
        ("Kinetics", "Kinetics-400", 400) if kinetics else ("SSv2", "Something-Something v2", 174)
    )
    clip, model = (int(frames.split("x")[0]), side, side), f"{size}_{frames}"
    test = "_test" if kinetics and size == "L" else ""  # the only recipe of it
    return f"mvitv2_{_WORDS[size]}_{frames}_{data}", Official(
        f"{_FBAI}/pyslowfast/model_zoo/mvitv2/pysf_video_models/MViTv2_{model}_{data}_{run}.pyth",
        *("slowfast", size, task, f"top-1 {top1}"),
        partial(MViTConfig.variant, size, clip, num_classes=classes),
        f"PySlowFast configs/{folder}/MVITv2_{model}{test}.yaml",
    )


def _detector(name: str, box: str, mask: str, run: str, final: str) -> tuple[str, Official]:
    data, vitdet, model = name.rpartition("_vitdet_")
    if vitdet:
        recipe = f"{data.upper()}/cascade_mask_rcnn_{model}"
        project, folder = "ViTDet", recipe.rpartition("_")[0]  # without the epochs
    else:
        project, recipe, folder = "MViTv2", name, name.replace("in21k", "in12k")
    size = re.findall("mvitv2_(.)_", name)[0].upper()
    return name, Official(
        f"{_FBAI}/detectron2/{project}/{folder}/{run}/model_final_{final}.pkl",
        *("detectron2", size, data.upper() or "COCO", f"box {box}, mask {mask}", None),
        f"detectron2 projects/{project}/configs/{recipe}.py",
    )


OFFICIAL: dict[str, Official] = dict(
    [
        _image("T", "in1k", "top-1 82.3"),
        _image("S", "in1k", "top-1 83.6"),
        _image("B", "in1k", "top-1 84.4"),
        _image("L", "in1k", "top-1 85.3", dim_mul_in_att=False),
        _image("B", "in21k", "none given", **_IN21K),
        _image("L", "in21k", "top-1 87.5 after fine-tuning on ImageNet-1K", **_IN21K),
        _image("H", "in21k", "top-1 88.0 after fine-tuning on ImageNet-1K", **_IN21K),
        _clip("S", "16x4", "k400", "81.0", "f302660347"),
        _clip("B", "32x3", "k400", "82.9", "f304025456"),
        _clip("L", "40x3", "k400", "86.1", "f306903192"),
        _clip("S", "16x4", "ssv2", "68.2", "f308341823"),
        _clip("B", "32x3", "ssv2", "70.5", "f305803282"),
        _clip("L", "40x3", "ssv2", "73.3", "f309603968"),
        _detector("mask_rcnn_mvitv2_t_3x", "48.3", "43.8", "f307611773", "1a1c30"),
        _detector("cascade_mask_rcnn_mvitv2_t_3x", "52.2", "45.0", "f308344828", "c6967a"),
        _detector("cascade_mask_rcnn_mvitv2_s_3x", "53.2", "46.0", "f308344647", "279baf"),
        _detector("cascade_mask_rcnn_mvitv2_b_3x", "54.1", "46.7", "f308109448", "421a91"),
        _detector("cascade_mask_rcnn_mvitv2_b_in21k_3x", "54.9", "47.4", "f309003202", "be5168"),
        _detector(
            "cascade_mask_rcnn_mvitv2_l_in21k_lsj_50ep", "55.8", "48.3", "f308099658", "c41c5a"
        ),
        _detector(
            "cascade_mask_rcnn_mvitv2_h_in21k_lsj_3x", "56.1", "48.5", "f309013744", "30d36b"
        ),
        _detector("coco_vitdet_mvitv2_b_in21k_100ep", "55.6", "48.1", "f325820315", "8c3da3"),
        _detector("coco_vitdet_mvitv2_l_in21k_50ep", "55.7", "48.3", "f325607715", "2141b0"),
        _detector("coco_vitdet_mvitv2_h_in21k_36ep", "55.9", "48.3", "f326187358", "2234d7"),
        _detector("lvis_vitdet_mvitv2_b_in21k_100ep", "46.3", "42.0", "329477206", "a00567"),
        _detector("lvis_vitdet_mvitv2_l_in21k_50ep", "49.4", "44.2", "329661552", "7838a5"),
        _detector("lvis_vitdet_mvitv2_h_in21k_50ep", "49.5", "44.1", "330445165", "ad4220"),
    ]
)


def official_path(name: str) -> str:
    """Path of an official file in torch.hub's cache, downloaded on first use.

    Args:
        name: a key of ``OFFICIAL``.

    Raises:
        CheckpointError: unknown name, or the download failed for good.
    """
    if name not in OFFICIAL:
        raise CheckpointError(
            f"{name}: neither a file nor one of the official weights: {', '.join(OFFICIAL)}"
        )
    official = OFFICIAL[name]
    if not official.cached.is_file():
        try:
            download(official.url, official.cached)
        except CheckpointError as error:
            hint = f"; a copy from another machine belongs at {official.cached}"
            raise CheckpointError(f"{error}{hint}") from error
    return str(official.cached)


def download(
    url: str, target: str | os.PathLike[str], timeout: float = 30.0, tries: int = 4
) -> None:
    """Download ``url`` to ``target``, showing progress on a terminal.

    A broken or stalled connection is tried again from where it stopped. Whatever happens,
    ``target`` is either whole or not there. Processes that want the same target download it once:
    the others wait, and take it as it is.

    Args:
        url: http or https. A redirect from https must lead to https.
        target: its directory is made if needed. Not there yet.
        timeout: seconds without a byte after which a connection counts as broken.
        tries: connections to make in all; each goes on where the one before broke off.

    Raises:
        CheckpointError: names the URL and the cause.
    """
    if not url.startswith(("https://", "http://")):
        raise CheckpointError(f"{url}: only http and https can be downloaded")
    try:
        os.makedirs(os.path.dirname(target) or ".", exist_ok=True)
        with _alone(target):
            if os.path.exists(target):  # another process was quicker
                return
            with whole_file(target) as part, open(part, "wb") as stream:
                _fetch(url, stream, timeout, tries)
    except OSError as error:
        raise CheckpointError(f"{target}: cannot be written: {error.strerror or error}") from error


@contextmanager
def _alone(target: str | os.PathLike[str]) -> Iterator[None]:
    """Hold the lock of a target, which the system frees when a process dies."""
    from filelock import FileLock, Timeout  # torch needs it itself

    lock = FileLock(f"{os.fspath(target)}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        sys.stderr.write(f"waiting for another process that downloads {target}\n")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
        with suppress(OSError):  # who comes later finds the target, or downloads beside another
            os.unlink(lock.lock_file)


def _fetch(url: str, stream: BinaryIO, timeout: float, tries: int) -> None:
    cause = ""
    for attempt in range(tries):
        time.sleep(min(0.5 * 2**attempt, 8.0) if attempt else 0.0)
        try:
            return _connect(url, stream, timeout)
        except urllib.error.HTTPError as error:
            cause = f"the server answered {error.code} {error.reason}"
            if error.code == 416:  # the file is no longer what was begun
                stream.truncate(stream.seek(0))
            elif error.code < 500 and error.code not in (408, 429):
                break
        except _Broken as error:
            cause = str(error)
    raise CheckpointError(f"{url}: cannot be downloaded: {cause}")


class _Broken(Exception):
    """A connection that failed; says how."""


@contextmanager
def _connection(timeout: float) -> Iterator[None]:
    """What fails inside is the connection's fault, not the disk's: both raise OSErrors."""
    try:
        yield
    except urllib.error.HTTPError:  # an answer
        raise
    except (OSError, HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else None
        if isinstance(error, TimeoutError) or isinstance(reason, TimeoutError):
            cause = f"nothing came for {timeout:g} s"
        elif reason is not None:
            cause = f"no connection ({reason}): is there a network?"
        else:
            cause = f"broke off: {error}"
        raise _Broken(cause) from error


class _StayEncrypted(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but none from https to anything else."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if req.type == "https" and not newurl.lower().startswith("https:"):
            raise CheckpointError(f"{req.full_url}: redirects to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _connect(url: str, stream: BinaryIO, timeout: float) -> None:
    """One connection, from where ``stream`` stands to the end of the file."""
    done = stream.tell()
    headers = {"User-Agent": "mvitv2"} | ({"Range": f"bytes={done}-"} if done else {})
    request = urllib.request.Request(url, headers=headers)
    with _connection(timeout):
        answer = urllib.request.build_opener(_StayEncrypted).open(request, timeout=timeout)
    with answer:
        if done and answer.status != 206:  # the server starts over, and so do we
            done = stream.truncate(stream.seek(0))
        length = answer.headers.get("Content-Length")
        total = None if length is None else done + int(length)
        shown, terminal = 0.0, sys.stderr.isatty()
        while True:
            with _connection(timeout):
                # read1 hands over what has come: a break loses nothing that was received.
                chunk = answer.read1(1 << 20)
            if not chunk:
                break
            done += stream.write(chunk)
            if terminal and (time.monotonic() - shown > 0.2 or done == total):
                shown = time.monotonic()
                _progress(url, done, total)
        if terminal:
            sys.stderr.write("\n")
    if total is not None and done != total:
        raise _Broken(f"broke off: {done} of {total} bytes came")


def _progress(url: str, done: int, total: int | None) -> None:
    bar, end = "", ""
    if total:
        filled = 30 * done // total
        bar, end = f"[{'#' * filled:.<30}] ", f" of {total / 1e6:.0f}"
    sys.stderr.write(f"\r{url.rsplit('/', 1)[-1]} {bar}{done / 1e6:.0f}{end} MB")
    sys.stderr.flush()
