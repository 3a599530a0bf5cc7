"""Reads and prepares inputs in the background, so that the model does not wait for them."""

from __future__ import annotations

import itertools
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from mvitv2_core.media import MediaError

from .inputs import Input

T = TypeVar("T")
AHEAD = 4  # unless told otherwise


@dataclass
class Part:
    """What one answer is given for: a picture, a video, or a part of one.

    Args:
        input: the file.
        data: what the model takes.
        span: (first, last) second within a video; None for all of it.
        picture: (H, W, 3) uint8 that stands for it in drawings.
        error: why there is no data.
        last: whether it is the last of its file.
    """

    input: Input
    data: Any = None
    span: tuple[float, float] | None = None
    picture: Any = None
    error: str = ""
    last: bool = True


def feed(
    inputs: Iterable[Input],
    read_picture: Callable[[Input], Part],
    read_video: Callable[[Input], Iterator[Part]],
    workers: int = 2,
    ahead: int = AHEAD,
) -> Iterator[Part]:
    """The parts of all inputs, in order. An unreadable file is a part with an ``error``.

    Args:
        inputs: the files.
        read_picture: prepares a picture; runs in several threads.
        read_video: prepares a video part by part, in one thread at a time.
        workers: threads for pictures.
        ahead: prepared parts that may wait, beyond those in work.
    """
    with ThreadPoolExecutor(workers, thread_name_prefix="picture") as pool:

        def produce() -> Iterator[Part]:
            for kind, group in itertools.groupby(inputs, key=lambda item: item.kind):
                if kind == "picture":
                    yield from _ahead(pool, lambda item: _safe(read_picture, item), group, workers)
                else:
                    for item in group:
                        yield from _safe_parts(read_video, item)

        yield from _in_thread(produce(), ahead)


def _safe(read: Callable[[Input], Part], item: Input) -> Part:
    try:
        return read(item)
    except MediaError as error:
        return Part(item, error=str(error))


def _safe_parts(read: Callable[[Input], Iterator[Part]], item: Input) -> Iterator[Part]:
    try:
        yield from read(item)
    except MediaError as error:
        yield Part(item, error=str(error))


def _ahead(
    pool: ThreadPoolExecutor, call: Callable[[Input], T], items: Iterable[Input], count: int
) -> Iterator[T]:
    """``call`` of each item, in order, ``count`` of them in work at a time."""
    waiting: deque[Future[T]] = deque()
    for item in items:
        waiting.append(pool.submit(call, item))
        if len(waiting) > count:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _in_thread(items: Iterator[T], ahead: int) -> Iterator[T]:
    """``items``, made in a thread of its own, at most ``ahead`` of them waiting."""
    ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(ahead)
    stop = threading.Event()

    def put(entry: tuple[T | None, BaseException | None]) -> None:
        while not stop.is_set():
            try:
                return ready.put(entry, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        end: BaseException = StopIteration()
        try:
            for item in items:
                put((item, None))
                if stop.is_set():
                    return
        except BaseException as error:  # raised again where the items are taken
            end = error
        put((None, end))

    thread = threading.Thread(target=work, name="feed", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            assert item is not None
            yield item
    finally:
        stop.set()
        thread.join()
