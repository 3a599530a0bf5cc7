"""Measure our models and every installed peer side by side.

    python projects/benchmark/bench.py                       # the project's targets
    python projects/benchmark/bench.py --device cuda --dtype bf16 --batch 8
    python projects/benchmark/bench.py --scaling             # time and memory against size
    python projects/benchmark/bench.py --profile --cases detection-1024   # where the time goes

Peers take turns in one process for time, so that drift of the machine hits all alike, and every run
is a process of its own; each gets another for peak memory. Quote the ratios, and their range:
absolute times differ from run to run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from projects.benchmark import work
from projects.benchmark.cases import CASES, CHECKPOINTING, COMPILED, TARGETS, Case, builders
from projects.benchmark.kept import DETECTRON2, keep, machine
from projects.benchmark.report import write, write_profile

SIDES, FRAMES = (512, 1024, 2048), (8, 16, 32)
SLOW = 10.0  # seconds; of slower steps in a sweep, the one that measures memory is the time too
Job = tuple[str, dict, str]  # key of a case, changes to it, mode


def worker(args: Namespace) -> None:
    """One measurement in a process of its own; prints one JSON line."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    if args.device == "cpu":
        work.bound_memory()
    key, change, task, mode, names = args.worker
    case = changed(key, json.loads(change))
    who = names.split(";")
    if task == "matmul":
        result: object = work.matmul_rate(args)
    elif task == "time":
        result = work.time_case(case, who, mode, args)
    else:
        result = {"memory": work.peak_memory, "profile": work.profile}[task](
            case, who[0], mode, args
        )
    print(json.dumps(result))


def changed(key: str, change: dict) -> Case:
    """The case of ``key`` with other fields."""
    case = replace(CASES[key], **change)
    return replace(case, size=tuple(case.size))


def spawn(job: Job, task: str, who: list[str], args: Namespace) -> Any:
    """Run ``worker`` in a new process, at most ``--timeout`` seconds for each of ``who``.

    Returns:
        Its result, or {"error": text} where it failed: out of memory, say, or out of time.
    """
    key, change, mode = job
    command = [sys.executable, __file__, "--worker", key, json.dumps(change), task, mode]
    command.append(";".join(who))
    for name in ("device", "dtype", "threads", "repeats", "warmup"):
        command += [f"--{name}", str(getattr(args, name))]
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    limit = args.timeout * len(who)
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, check=False, timeout=limit
        )
    except subprocess.TimeoutExpired:
        return {"error": f"more than {limit:.0f} s"}
    if done.returncode:
        text = done.stderr.strip()
        memory = "allocate memory" in text or "out of memory" in text or done.returncode == -9
        last = (text.splitlines() or [f"exit status {done.returncode}"])[-1]
        return {"error": "out of memory" if memory else last}
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(job: Job, args: Namespace, rate: float) -> list[dict]:
    """Rows of one case and mode: median and spread of time, peak memory, for ours and peers."""
    key, change, mode = job
    case = changed(key, change)
    facts = {"key": key, "case": case.name, "kind": case.kind, "size": list(case.size)}
    facts |= {"windows": case.windows, "mode": mode, "flops": case.flops(mode)}
    facts |= {"limit": case.flops(mode) / rate, "matrix_mib": case.matrix_mib()}
    who = [n for n in builders(case)[0] if mode == "training" or n != CHECKPOINTING]
    if args.compile:
        who += [name + COMPILED for name in who if name != CHECKPOINTING]
    memory = {name: spawn(job, "memory", [name], args) for name in who}
    alive = [name for name in who if "error" not in memory[name]]
    slow = args.scaling and any(memory[name]["seconds"] > SLOW for name in alive)
    if args.memory:
        times: dict[str, Any] = {}
    elif slow or not case.windows:  # without windows, minutes a step: and memory is what matters
        times = {name: [memory[name]["seconds"]] for name in alive}
    else:
        times = time_runs(job, alive, args)
    rows = []
    for name in who:
        row = {**facts, "who": name, "peak_mib": memory[name].get("peak_mib")}
        result = times.get(name, memory[name])
        if isinstance(result, dict):
            rows.append({**row, "error": result["error"]} if "error" in result else row)
            continue
        row |= {"median": statistics.median(result), "min": min(result), "max": max(result)}
        rows.append({**row, "runs": result})
    return rows


def time_runs(job: Job, who: list[str], args: Namespace) -> dict[str, Any]:
    """{name: median seconds of each run, or {"error": text}}; every run is a process of its own."""
    runs: dict[str, Any] = {name: [] for name in who}
    for _ in range(args.runs):
        alive = [name for name in who if isinstance(runs[name], list)]
        found = spawn(job, "time", alive, args) if alive else {}
        if "error" in found:  # one may have failed beside the others
            found = {name: spawn(job, "time", [name], args) for name in alive}
            found = {name: times.get(name, times) for name, times in found.items()}
        for name, times in found.items():
            if isinstance(times, dict):
                runs[name] = times
            else:
                runs[name].append(statistics.median(times))
    return runs


def profile(job: Job, args: Namespace, rate: float) -> list[dict]:
    """Rows of one case and mode: seconds by kind of work, for ours and peers."""
    key, change, mode = job
    case = changed(key, change)
    facts = {"case": case.name, "mode": mode, "limit": case.flops(mode) / rate}
    who = [name for name in builders(case)[0] if name != CHECKPOINTING]
    return [{**facts, "who": name, "kinds": spawn(job, "profile", [name], args)} for name in who]


def arguments() -> Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(TARGETS))
    parser.add_argument(
        "--modes", nargs="+", choices=["inference", "training"], default=["inference", "training"]
    )
    parser.add_argument("--batch", type=int, help="images or clips a step (default: the case's)")
    parser.add_argument("--size", type=int, nargs="+", help="H W, or T H W (default: the case's)")
    parser.add_argument("--scaling", action="store_true", help="sweep image size and clip length")
    parser.add_argument("--sides", type=int, nargs="*", default=SIDES, help="of the sweep, pixels")
    parser.add_argument("--frames", type=int, nargs="*", default=FRAMES, help="of the sweep")
    parser.add_argument("--memory", action="store_true", help="peak memory alone, no times")
    parser.add_argument("--profile", action="store_true", help="time by kind of work instead")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="fp32", choices=work.DTYPES, help="autocast dtype")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, help="processes for time; default 5, in a sweep 1")
    parser.add_argument("--repeats", type=int, help="timed steps of a run; default 3, in a sweep 2")
    parser.add_argument("--warmup", type=int, help="default 2, in a sweep 1")
    parser.add_argument("--timeout", type=float, default=180.0, help="seconds a measurement")
    parser.add_argument("--compile", action="store_true", help="ours and peers compiled, too")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmark"))
    parser.add_argument("--keep", help="name under which `make figures` finds the results")
    parser.add_argument("--worker", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.scaling and args.size:
        parser.error("--size does not go with --scaling: see --sides and --frames")
    for name, whole, sweep in (("runs", 5, 1), ("repeats", 3, 2), ("warmup", 2, 1)):
        if getattr(args, name) is None:
            setattr(args, name, sweep if args.scaling else whole)
    return args


def plan(args: Namespace) -> tuple[list[Job], list[str]]:
    """What to measure, and one line for each peer that is not there."""
    cases: list[tuple[str, dict]] = [(key, {}) for key in args.cases]
    if args.scaling:
        change: dict = {"checkpointing": False}
        cases = [("detection-1024", {**change, "size": (n, n)}) for n in args.sides]
        cases += [("video-S", {"size": (t, 224, 224)}) for t in args.frames]
    override = {"batch": args.batch} if args.batch else {}
    override |= {"size": tuple(args.size)} if args.size else {}
    jobs, lines = [], []
    for key, change in cases:
        change = {**change, **override}
        found, missing = builders(changed(key, change))
        lines += [line for line in missing if line not in lines]
        jobs += [(key, change, mode) for mode in args.modes if found]
    if args.scaling and args.sides and builders(CASES["detection-global"])[0]:
        # Where a queries x keys matrix would be largest; training there takes minutes, at half
        # the side it does not.
        sides = {"inference": max(args.sides), "training": max(args.sides) // 2}
        jobs += [("detection-global", {"size": (sides[m],) * 2}, m) for m in args.modes]
    return jobs, lines


def main() -> None:
    args = arguments()
    if args.worker:
        worker(args)
        return
    jobs, missing = plan(args)
    print("\n".join(missing), flush=True)
    counts = {"runs": args.runs, "repeats": args.repeats}
    peers = ("torchvision", "timm", *DETECTRON2)
    facts = machine(peers, args.threads, args.device, args.dtype, **counts)
    rate = spawn(("image-T", {}, "inference"), "matmul", [""], args)
    if not isinstance(rate, float):
        sys.exit(f"the big matrix product failed: {rate['error']}")
    facts["matmul"] = f"{rate / 1e9:.0f} GFLOP/s"
    print(f"one big matrix product: {facts['matmul']}", flush=True)
    rows, start = [], time.perf_counter()
    for index, job in enumerate(jobs, 1):
        case, mode = changed(*job[:2]), job[2]
        seconds = time.perf_counter() - start
        print(f"[{index}/{len(jobs)}, {seconds:.0f} s] {case.name}, {mode}", flush=True)
        if args.profile:
            rows += profile(job, args, rate)
            text = write_profile(rows, facts, args.out)
        else:
            rows += measure(job, args, rate)
            text = write(rows, facts, missing, args.out, args.scaling)
    print(f"\n{text}\nwritten to {args.out}")
    if args.keep:
        name = "profile.json" if args.profile else "results.json"
        keep(args.keep, json.loads((args.out / name).read_text()))


if __name__ == "__main__":
    main()
