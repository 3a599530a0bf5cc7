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
            pairs = _in_processes(look, items, crashed, workers)
        for index, result in pairs:
            results[index] = result
            bar.update()
    return [results[index] for index in range(len(items))]


def _in_processes(
    look: Callable[[Item], Result],
    items: Sequence[Item],
    crashed: Callable[[Item], Result],
    workers: int,
) -> Iterator[tuple[int, Result]]:
    context = multiprocessing.get_context("spawn")  # fork is not safe beside torch's threads
    lost = []
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures: dict[Future[Result], int] = {}
        try:
            for index, item in enumerate(items):
                futures[pool.submit(look, item)] = index
        except BrokenProcessPool:
            lost = list(range(len(futures), len(items)))
        for future in as_completed(futures):
            try:
                yield futures[future], future.result()
            except BrokenProcessPool:
                lost.append(futures[future])
    for index in lost:  # one of them killed the pool: each alone
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            try:
                yield index, pool.submit(look, items[index]).result()
            except BrokenProcessPool:
                yield index, crashed(items[index])
