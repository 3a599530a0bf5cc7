"""Measure our models and every installed peer side by side.

    python projects/benchmark/bench.py                       # the project's targets, a few minutes
    python projects/benchmark/bench.py --device cuda --dtype bf16 --batch 8
    python projects/benchmark/bench.py --scaling             # time and memory against size

Peers take turns in one process for time, so that drift of the machine hits all alike; each gets a
process of its own for peak memory. Quote the ratios: absolute times differ from run to run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from cases import CASES, Case, builders

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def step(model: nn.Module, clip: Tensor, mode: str, dtype: torch.dtype | None) -> None:
    """One inference, or one forward and backward pass."""
    training = mode == "training"
    with (
        torch.set_grad_enabled(training),
        torch.autocast(clip.device.type, dtype, enabled=dtype is not None),
    ):
        out = model(clip)
    if training:
        tensors = [out] if isinstance(out, Tensor) else list(out.values())
        # Checkpointing must not be undone by keeping several losses' graphs.
        torch.autograd.backward([t.float().sum() for t in tensors])
        for parameter in model.parameters():
            parameter.grad = None
    if clip.device.type == "cuda":
        torch.cuda.synchronize()


def prepare(case: Case, who: str, mode: str, device: str, compiled: bool) -> nn.Module:
    """The model on its device; training mode without randomness that only some peers have."""
    model = builders(case)[who]().to(device)
    for module in model.modules():  # peers drop paths in different places
        if isinstance(module, nn.Dropout) or type(module).__name__ in (
            "DropPath",
            "StochasticDepth",
        ):
            module.eval()
    model.train(mode == "training")
    return torch.compile(model) if compiled else model


def time_case(
    case: Case, who: list[str], mode: str, args: argparse.Namespace
) -> dict[str, list[float]]:
    """Seconds of each repeat, peers taking turns."""
    clip = case.input(args.device)
    models = {name: prepare(case, name, mode, args.device, args.compile) for name in who}
    times: dict[str, list[float]] = {name: [] for name in who}
    for repeat in range(-args.warmup, args.repeats):
        for name, model in models.items():
            start = time.perf_counter()
            step(model, clip, mode, DTYPES[args.dtype])
            if repeat >= 0:
                times[name].append(time.perf_counter() - start)
    return times


def peak_memory(case: Case, who: str, mode: str, args: argparse.Namespace) -> float:
    """Peak memory in MiB above the built model with its input, of this process."""
    clip = case.input(args.device)
    model = prepare(case, who, mode, args.device, args.compile)
    if args.device == "cuda":
        step(model, clip, mode, DTYPES[args.dtype])
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(model, clip, mode, DTYPES[args.dtype])
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    import resource

    before = current_rss()
    step(model, clip, mode, DTYPES[args.dtype])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10 - before


def current_rss() -> float:
    """Resident memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def worker(args: argparse.Namespace) -> None:
    """One measurement in a process of its own; prints one JSON line."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    case = replace(CASES[args.worker[0]], **json.loads(args.worker[1]))
    case = replace(case, size=tuple(case.size))
    task, mode, who = args.worker[2], args.worker[3], args.worker[4].split(";")
    if task == "time":
        result: object = time_case(case, who, mode, args)
    else:
        result = peak_memory(case, who[0], mode, args)
    print(json.dumps(result))


def spawn(
    key: str, change: dict, task: str, mode: str, who: list[str], args: argparse.Namespace
) -> object:
    """Run ``worker`` in a new process.

    Returns:
        Its result, or an error text where it failed (out of memory, say).
    """
    command = [
        sys.executable,
        __file__,
        "--worker",
        key,
        json.dumps(change),
        task,
        mode,
        ";".join(who),
    ]
    for name in ("device", "dtype", "threads", "repeats", "warmup"):
        command += [f"--{name}", str(getattr(args, name))]
    command += ["--compile"] * args.compile
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no output"])[-1]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(key: str, change: dict, mode: str, args: argparse.Namespace) -> list[dict]:
    """Rows of one case and mode: median and spread of time, peak memory, for ours and peers."""
    case = replace(CASES[key], **change)
    who = [name for name in builders(case) if mode == "training" or "checkpointing" not in name]
    times = spawn(key, change, "time", mode, who, args)
    if not isinstance(times, dict) or "error" in times:
        return [{"case": case.name, "mode": mode, "who": "all", "error": str(times)}]
    rows = []
    for name in who:
        seconds = times[name]
        memory = spawn(key, change, "memory", mode, [name], args)
        row = {"key": key, "case": case.name, "size": list(case.size), "mode": mode, "who": name}
        row |= {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)}
        rows.append({**row, "peak_mib": memory if isinstance(memory, float) else None})
    return rows


def machine(args: argparse.Namespace) -> dict[str, str | int]:
    """What the figures were measured on."""
    from importlib.metadata import PackageNotFoundError, version

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].split(":", 1)[1].strip() if names else cpu
    facts: dict[str, str | int] = {"cpu": cpu, "threads": args.threads, "torch": torch.__version__}
    if args.device == "cuda":
        facts["gpu"] = torch.cuda.get_device_name()
    for package in ("torchvision", "timm", "sal-detectron2", "detectron2"):
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            continue
    return facts | {"dtype": args.dtype, "compile": args.compile, "repeats": args.repeats}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument(
        "--modes", nargs="+", choices=["inference", "training"], default=["inference", "training"]
    )
    parser.add_argument("--batch", type=int, help="images or clips a step (default: the case's)")
    parser.add_argument("--size", type=int, nargs="+", help="H W, or T H W (default: the case's)")
    parser.add_argument("--scaling", action="store_true", help="sweep image size and clip length")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="fp32", choices=DTYPES, help="autocast dtype")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="torch.compile ours and peers")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmark"))
    parser.add_argument("--worker", nargs=5, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    if args.worker:
        worker(args)
        return
    from report import write

    jobs = [(key, {}, mode) for key in args.cases for mode in args.modes]
    if args.scaling:
        sizes = [(n, n) for n in (256, 512, 1024, 1536, 2048)]
        jobs = [("detection-1024", {"size": size}, mode) for size in sizes for mode in args.modes]
        jobs += [("video-S", {"size": (t, 224, 224)}, m) for t in (8, 16, 32) for m in args.modes]
    override = {"batch": args.batch} if args.batch else {}
    override |= {"size": tuple(args.size)} if args.size else {}
    rows = []
    for index, (key, change, mode) in enumerate(jobs, 1):
        print(
            f"[{index}/{len(jobs)}] {replace(CASES[key], **change, **override).name}, {mode}",
            flush=True,
        )
        rows += measure(key, {**change, **override}, mode, args)
        for path in write(rows, machine(args), args.out, args.scaling):
            written = path
    print(f"\n{(args.out / 'table.txt').read_text()}\nwritten to {written.parent}")


if __name__ == "__main__":
    main()
