"""Official weights by name, and their download. Every figure is the authors', none was measured by
this project."""

from __future__ import annotations

import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO

import torch

from ..config import MViTConfig
from .files import whole_file
from .report import CheckpointError

_FBAI = "https://dl.fbaipublicfiles.com"
_IMAGE = f"{_FBAI}/mvit/mvitv2_models/"
_VIDEO = f"{_FBAI}/pyslowfast/model_zoo/mvitv2/pysf_video_models/"
_MVITV2 = f"{_FBAI}/detectron2/MViTv2/"
_VITDET = f"{_FBAI}/detectron2/ViTDet/"


@dataclass(frozen=True)
class Official:
    """One published file.

    Args:
        url: where its authors keep it.
        format: whose names it has.
        variant: T, S, B, L or H.
        task: what it was trained on.
        published: the authors' figure, not measured by this project.
        config: makes the config of the classifier that it fits; None for detectors, whose
            backbone comes from the detectron2 config.
        recipe: the official config that it was trained with.
    """

    url: str
    format: str
    variant: str
    task: str
    published: str
    config: Callable[[], MViTConfig] | None
    recipe: str

    @property
    def file(self) -> str:
        """Its name in the cache: the URL's last part, with the model's where that says nothing."""
        parts = self.url.split("/")
        return parts[-1] if self.format != "detectron2" else f"{parts[-3]}-{parts[-1]}"


def _image(size: str, data: str, published: str, **options: object) -> tuple[str, Official]:
    recipe = "facebookresearch/mvit configs"
    names = {"T": "tiny", "S": "small", "B": "base", "L": "large", "H": "huge"}
    official = Official(
        url=f"{_IMAGE}MViTv2_{size}_{data}.pyth",
        format="image",
        variant=size,
        task={"in1k": "ImageNet-1K at 224", "in21k": "ImageNet-21K at 224"}[data],
        published=published,
        config=partial(MViTConfig.variant, size, **options),  # type: ignore[arg-type]
        recipe=f"{recipe}/test/MVITv2_{size}_test.yaml" if data == "in1k" else "none published",
    )
    return f"mvitv2_{names[size]}_{data}", official


def _clip(
    name: str,
    size: str,
    task: str,
    published: str,
    file: str,
    recipe: str,
    config: Callable[[], MViTConfig],
) -> tuple[str, Official]:
    return name, Official(
        f"{_VIDEO}{file}.pyth", "slowfast", size, task, published, config, f"PySlowFast {recipe}"
    )


def _detector(
    name: str, size: str, project: str, recipe: str, published: str, path: str
) -> tuple[str, Official]:
    root = {"MViTv2": _MVITV2, "ViTDet": _VITDET}[project]
    task = "LVIS" if "LVIS" in recipe else "COCO"
    recipe = f"detectron2 projects/{project}/configs/{recipe}.py"
    return name, Official(f"{root}{path}.pkl", "detectron2", size, task, published, None, recipe)


def _video(size: str, frames: int, side: int, classes: int) -> Callable[[], MViTConfig]:
    return partial(MViTConfig.variant, size, (frames, side, side), num_classes=classes)


_IN21K = {"cls_token": True, "num_classes": 19168}
_CASCADE = "cascade_mask_rcnn_mvitv2"

# fmt: off
OFFICIAL: dict[str, Official] = dict([
    _image("T", "in1k", "top-1 82.3"),
    _image("S", "in1k", "top-1 83.6"),
    _image("B", "in1k", "top-1 84.4"),
    _image("L", "in1k", "top-1 85.3", dim_mul_in_att=False),
    _image("B", "in21k", "none given", **_IN21K),
    _image("L", "in21k", "top-1 87.5 after fine-tuning on ImageNet-1K", **_IN21K),
    _image("H", "in21k", "top-1 88.0 after fine-tuning on ImageNet-1K", **_IN21K),
    _clip("mvitv2_small_16x4_k400", "S", "Kinetics-400", "top-1 81.0",
          "MViTv2_S_16x4_k400_f302660347", "configs/Kinetics/MVITv2_S_16x4.yaml",
          _video("S", 16, 224, 400)),
    _clip("mvitv2_base_32x3_k400", "B", "Kinetics-400", "top-1 82.9",
          "MViTv2_B_32x3_k400_f304025456", "configs/Kinetics/MVITv2_B_32x3.yaml",
          _video("B", 32, 224, 400)),
    _clip("mvitv2_large_40x3_k400", "L", "Kinetics-400", "top-1 86.1",
          "MViTv2_L_40x3_k400_f306903192", "configs/Kinetics/MVITv2_L_40x3_test.yaml",
          _video("L", 40, 312, 400)),
    _clip("mvitv2_small_16x4_ssv2", "S", "Something-Something v2", "top-1 68.2",
          "MViTv2_S_16x4_ssv2_f308341823", "configs/SSv2/MVITv2_S_16x4.yaml",
          _video("S", 16, 224, 174)),
    _clip("mvitv2_base_32x3_ssv2", "B", "Something-Something v2", "top-1 70.5",
          "MViTv2_B_32x3_ssv2_f305803282", "configs/SSv2/MVITv2_B_32x3.yaml",
          _video("B", 32, 224, 174)),
    _clip("mvitv2_large_40x3_ssv2", "L", "Something-Something v2", "top-1 73.3",
          "MViTv2_L_40x3_ssv2_f309603968", "configs/SSv2/MVITv2_L_40x3.yaml",
          _video("L", 40, 312, 174)),
    _detector("mask_rcnn_mvitv2_t_3x", "T", "MViTv2", "mask_rcnn_mvitv2_t_3x",
              "box 48.3, mask 43.8", "mask_rcnn_mvitv2_t_3x/f307611773/model_final_1a1c30"),
    _detector(f"{_CASCADE}_t_3x", "T", "MViTv2", f"{_CASCADE}_t_3x",
              "box 52.2, mask 45.0", f"{_CASCADE}_t_3x/f308344828/model_final_c6967a"),
    _detector(f"{_CASCADE}_s_3x", "S", "MViTv2", f"{_CASCADE}_s_3x",
              "box 53.2, mask 46.0", f"{_CASCADE}_s_3x/f308344647/model_final_279baf"),
    _detector(f"{_CASCADE}_b_3x", "B", "MViTv2", f"{_CASCADE}_b_3x",
              "box 54.1, mask 46.7", f"{_CASCADE}_b_3x/f308109448/model_final_421a91"),
    _detector(f"{_CASCADE}_b_in21k_3x", "B", "MViTv2", f"{_CASCADE}_b_in21k_3x",
              "box 54.9, mask 47.4", f"{_CASCADE}_b_in12k_3x/f309003202/model_final_be5168"),
    _detector(f"{_CASCADE}_l_in21k_lsj_50ep", "L", "MViTv2", f"{_CASCADE}_l_in21k_lsj_50ep",
              "box 55.8, mask 48.3", f"{_CASCADE}_l_in12k_lsj_50ep/f308099658/model_final_c41c5a"),
    _detector(f"{_CASCADE}_h_in21k_lsj_3x", "H", "MViTv2", f"{_CASCADE}_h_in21k_lsj_3x",
              "box 56.1, mask 48.5", f"{_CASCADE}_h_in12k_lsj_3x/f309013744/model_final_30d36b"),
    _detector("coco_vitdet_mvitv2_b_in21k_100ep", "B", "ViTDet", f"COCO/{_CASCADE}_b_in21k_100ep",
              "box 55.6, mask 48.1", f"COCO/{_CASCADE}_b_in21k/f325820315/model_final_8c3da3"),
    _detector("coco_vitdet_mvitv2_l_in21k_50ep", "L", "ViTDet", f"COCO/{_CASCADE}_l_in21k_50ep",
              "box 55.7, mask 48.3", f"COCO/{_CASCADE}_l_in21k/f325607715/model_final_2141b0"),
    _detector("coco_vitdet_mvitv2_h_in21k_36ep", "H", "ViTDet", f"COCO/{_CASCADE}_h_in21k_36ep",
              "box 55.9, mask 48.3", f"COCO/{_CASCADE}_h_in21k/f326187358/model_final_2234d7"),
    _detector("lvis_vitdet_mvitv2_b_in21k_100ep", "B", "ViTDet", f"LVIS/{_CASCADE}_b_in21k_100ep",
              "box 46.3, mask 42.0", f"LVIS/{_CASCADE}_b_in21k/329477206/model_final_a00567"),
    _detector("lvis_vitdet_mvitv2_l_in21k_50ep", "L", "ViTDet", f"LVIS/{_CASCADE}_l_in21k_50ep",
              "box 49.4, mask 44.2", f"LVIS/{_CASCADE}_l_in21k/329661552/model_final_7838a5"),
    _detector("lvis_vitdet_mvitv2_h_in21k_50ep", "H", "ViTDet", f"LVIS/{_CASCADE}_h_in21k_50ep",
              "box 49.5, mask 44.1", f"LVIS/{_CASCADE}_h_in21k/330445165/model_final_ad4220"),
])
# fmt: on

CHUNK = 1 << 20


class _Broken(Exception):
    """A download that may be worth another try."""


def cached_path(name: str) -> Path:
    """Where the file of a name in ``OFFICIAL`` is kept: ``$TORCH_HOME/hub/checkpoints``."""
    return Path(torch.hub.get_dir()) / "checkpoints" / OFFICIAL[name].file


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
    target = cached_path(name)
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
    try:
        os.makedirs(os.path.dirname(target) or ".", exist_ok=True)
        with whole_file(target) as part, open(part, "wb") as stream:
            _fetch(url, stream, timeout, tries)
    except OSError as error:
        raise CheckpointError(f"{target}: cannot be written: {error.strerror or error}") from error


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
