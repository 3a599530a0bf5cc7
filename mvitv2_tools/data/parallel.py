"""A function of many files, in several processes, under a progress bar."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
FEW = 32  # files for which starting processes takes longer than it saves


def map_files(
    look: Callable[[Item], Result],
    items: Sequence[Item],
    crashed: Callable[[Item], Result],
    workers: int,
    title: str,
) -> list[Result]:
    """``look`` of each item, in order.

    Args:
        look: a function of a module; raises nothing.
        items: what it is given.
        crashed: gives the result of an item whose process died: decoders are C.
        workers: processes; 1 for this one, which also takes fewer than ``FEW`` items.
        title: of the progress bar, which is hidden where there is no terminal.
    """
    from tqdm import tqdm

    results: dict[int, Result] = {}
    with tqdm(total=len(items), desc=title, unit="file", disable=None, file=sys.stderr) as bar:
        if workers < 2 or len(items) < FEW:
            pairs: Iterator[tuple[int, Result]] = ((i, look(item)) for i, item in enumerate(items))
        else:
            pairs = _in_processes(look, items, range(len(items)), crashed, workers)
        for index, result in pairs:
            results[index] = result
            bar.update()
    return [results[index] for index in range(len(items))]


def _in_processes(
    look: Callable[[Item], Result],
    items: Sequence[Item],
    indices: Sequence[int],
    crashed: Callable[[Item], Result],
    workers: int,
) -> Iterator[tuple[int, Result]]:
    """Results of the items at ``indices``, as they come.

    A process that dies takes the whole pool with it: what was lost is tried again in halves, until
    the item that kills its process is alone.
    """
    context = multiprocessing.get_context("spawn")  # fork is not safe beside torch's threads
    lost = []
    with ProcessPoolExecutor(min(workers, len(indices)), mp_context=context) as pool:
        futures: dict[Future[Result], int] = {}
        for index in indices:
            try:
                futures[pool.submit(look, items[index])] = index
            except BrokenProcessPool:
                lost.append(index)
        for future in as_completed(futures):
            try:
                yield futures[future], future.result()
            except BrokenProcessPool:
                lost.append(futures[future])
    if len(indices) == 1:
        for index in lost:
            yield index, crashed(items[index])
        return
    half = (len(lost) + 1) // 2
    for part in (lost[:half], lost[half:]):
        if part:
            yield from _in_processes(look, items, part, crashed, workers)
