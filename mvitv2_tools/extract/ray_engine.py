"""The tasks of an extraction on Ray Data: a process a worker, on one machine or many.

A task's bits depend on the task alone, and its files appear whole, in a folder that all machines
share. So a task that is done twice, because a worker was lost, leaves the files that it leaves
when it is done once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from .folder import Task
from .job import Job
from .work import extract_tasks

INSTALL = "pip install 'mvitv2[ray]'"
MOST_BLOCKS = 4096  # Ray Data keeps account of each
TOKEN = (
    "the cluster asks for a token: set RAY_AUTH_MODE=token, and have the cluster's token in "
    "RAY_AUTH_TOKEN, in the file that RAY_AUTH_TOKEN_PATH names, or in ~/.ray/auth_token "
    "(docs/extract.md)"
)


class Worker:
    """What runs in each process of the cluster.

    Args:
        job: as the command line says.

    Raises:
        ValueError: this machine's rows would not be those of the folder.
    """

    def __init__(self, job: Job) -> None:
        self.extractor = job.extractor()
        self.folder = job.folder
        self.folder.check(self.extractor.facts)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Lines of the plan -> what is known of each task, as JSON."""
        return {"known": [json.dumps(self._do(Task.from_json(str(t)))) for t in batch["task"]]}

    def _do(self, task: Task) -> dict[str, Any]:
        done = self.folder.done(task)
        if done is not None:  # by a worker that was lost before it could say so
            return done
        try:
            (known,) = extract_tasks(self.extractor, [task], self.folder)
            return known
        except FileNotFoundError:  # parts that a worker given up for lost has put together
            done = self.folder.done(task)
            if done is None:
                raise
            return done


def extract_on_ray(
    job: Job, tasks: Sequence[Task], address: str | None = None, workers: int | None = None
) -> Iterator[dict[str, Any]]:
    """What is known of each task, as it is done, in any order.

    Args:
        job: the model and the folder. On CUDA each worker has a GPU.
        tasks: none of them done.
        address: of a cluster; None for one on this machine, which ends with the process.
        workers: processes; None for as many as the nodes' CPUs and GPUs have room for.

    Raises:
        ValueError: Ray is missing, the cluster cannot be had, or a worker cannot go on.
    """
    # Nothing is told to anybody unasked.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ValueError(f"--engine ray needs Ray Data: {INSTALL} ({error})") from error
    begun = not ray.is_initialized()
    try:
        if begun:
            # Without an address Ray would take one from its environment, or the last cluster of
            # this machine, even one that is dead.
            own = address is None
            ray.init(address="local" if own else address, include_dashboard=False if own else None)
        # Settled here for all: a worker finds the GPU that Ray gives it, which is its first one.
        device = job.options.torch_device.type
        job = replace(job, options=replace(job.options, device=device))
        gpus = int(device == "cuda")
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        room = sum(_room(node, job.settings.threads, gpus) for node in nodes)
        count = workers or max(min(room, len(tasks)), 1)
        if room < count:
            cpus, most = (max((n.get(k, 0) for n in nodes), default=0) for k in ("CPU", "GPU"))
            raise ValueError(
                f"--workers {count} of {job.settings.threads} threads have no room: the cluster's "
                f"{len(nodes)} nodes, of up to {cpus:g} CPUs and {most:g} GPUs, take {room}"
            )
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        rows = [{"task": task.to_json()} for task in tasks]
        blocks = min(len(rows), MOST_BLOCKS)
        known = ray.data.from_items(rows, override_num_blocks=blocks).map_batches(
            Worker,
            fn_constructor_args=(job,),
            batch_size=1,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(size=count),
            num_cpus=job.settings.threads,
            num_gpus=gpus,
        )
        for row in known.iter_rows():
            yield json.loads(row["known"])
    except (ray.exceptions.RayError, ConnectionError) as error:
        raise ValueError(f"--engine ray: {_reason(error)}") from error
    finally:
        if begun:
            ray.shutdown()


def _room(node: dict[str, float], threads: int, gpus: int) -> int:
    """Workers that a node's resources have room for: Ray waits for ever for one that fits no node,
    however many CPUs all nodes have together."""
    room = node.get("CPU", 0) // threads
    return int(min(room, node.get("GPU", 0)) if gpus else room)


def _reason(error: Exception) -> str:
    """One line: what to do about a token, which Ray tells in what lies behind the error alone; else
    Ray's last line, which of a worker's traceback is the worker's own error."""
    line = str(error).strip().splitlines()[-1]
    if "AuthenticationError" in f"{type(error).__name__} {error.__cause__}":
        return f"{line.split('. ')[0]}: {TOKEN}"
    return line
