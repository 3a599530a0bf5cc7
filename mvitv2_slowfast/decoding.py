"""A cure for ``DATA.DECODING_BACKEND: pyav``, which fails on every file."""

from __future__ import annotations

import functools
import inspect
from types import SimpleNamespace
from typing import Any


def cure_pyav_backend() -> str | None:
    """Let ``pyav`` go the way of ``torchvision``, whose readers are over PyAV here.

    Upstream hands its list of numbers of frames to code that wants one number, and its ``decode``
    then reads a time that only the other backend sets. Frames come in the file's own size, as
    upstream says of this backend; ``DATA_LOADER.ENABLE_MULTI_THREAD_DECODE`` has no effect.

    Returns:
        What was done, in one line; None where nothing was needed.
    """
    from slowfast.datasets import decoder, video_container

    open_container, decode = video_container.get_video_container, decoder.decode
    if hasattr(decode, "_mvitv2_pyav") or not _wants_one_number(decoder):
        return None
    signature = inspect.signature(decode)

    @functools.wraps(open_container)
    def get_video_container(
        path_to_vid: Any, multi_thread_decode: bool = False, backend: str = "pyav"
    ) -> Any:
        backend = "torchvision" if backend == "pyav" else backend
        return open_container(path_to_vid, multi_thread_decode, backend)

    @functools.wraps(decode)
    def decode_file(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        if given["backend"] == "pyav" and isinstance(given["container"], bytes):
            given.update(backend="torchvision", max_spatial_scale=0)
            if given["video_meta"] is None:
                given["video_meta"] = {}
        return decode(*bound.args, **bound.kwargs)

    decode_file._mvitv2_pyav = True  # type: ignore[attr-defined]
    video_container.get_video_container, decoder.decode = get_video_container, decode_file
    return "DATA.DECODING_BACKEND pyav: clips are read as for torchvision, since upstream's fails"


def _wants_one_number(decoder: Any) -> bool:
    """Whether ``pyav_decode`` computes with the list of numbers of frames that it is given."""
    stream = SimpleNamespace(average_rate=30, frames=9, duration=9)
    head = SimpleNamespace(streams=SimpleNamespace(video=[stream]))  # it cannot seek or decode
    try:
        decoder.pyav_decode(head, [1], [2], 0)
    except TypeError:
        return True
    except AttributeError:
        pass
    return False
