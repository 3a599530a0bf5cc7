"""What a measuring process does: one step of a model, its time, its memory, its profile."""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import re
import resource
import time
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor, nn

from projects.benchmark.cases import COMPILED, Case, builders

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
# Seconds that all peers' steps take together from which on one warm-up does.
LONG_ROUND = 10.0
# Operators by kind of work, first match wins.
KINDS = {
    "attention": r"scaled_dot_product|softmax|bmm|einsum|_Chunked|_Twice",
    "convolutions": r"conv|_Frames",
    "linears": r"addmm|::mm|[Ll]inear|matmul",
    "norms": r"norm",
    "GELU": r"gelu",
    "max pooling": r"max_pool",
    "copies": r"copy|contiguous|clone|cat|pad|repeat|fill|zero|index|::to$|slice|empty",
    "sums and products": r"add|mul|sub|sum|div|mean",
    "other": r"",
}


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


def prepare(case: Case, who: str, mode: str, args: argparse.Namespace) -> nn.Module:
    """The model on its device; training mode without randomness that only some peers have."""
    model = builders(case)[0][who.removesuffix(COMPILED)]().to(args.device)
    model.train(mode == "training")
    for module in model.modules():  # peers drop paths in different places
        if isinstance(module, nn.Dropout) or type(module).__name__ in (
            "DropPath",
            "StochasticDepth",
        ):
            module.eval()
    return torch.compile(model) if who.endswith(COMPILED) else model


def time_case(
    case: Case, who: list[str], mode: str, args: argparse.Namespace
) -> dict[str, list[float]]:
    """Seconds of each repeat, peers taking turns."""
    clip = case.input(args.device)
    models = {name: prepare(case, name, mode, args) for name in who}
    times: dict[str, list[float]] = {name: [] for name in who}
    repeat = -args.warmup
    while repeat < args.repeats:
        begun = time.perf_counter()
        for name, model in models.items():
            start = time.perf_counter()
            step(model, clip, mode, DTYPES[args.dtype])
            if repeat >= 0:
                times[name].append(time.perf_counter() - start)
        warm = time.perf_counter() - begun > LONG_ROUND
        repeat = max(repeat + 1, 0) if warm else repeat + 1
    return times


def peak_memory(case: Case, who: str, mode: str, args: argparse.Namespace) -> dict[str, float]:
    """Peak memory in MiB above the built model with its input, of this process, and seconds."""
    clip = case.input(args.device)
    model = prepare(case, who, mode, args)
    dtype = DTYPES[args.dtype]
    if args.device == "cuda":
        step(model, clip, mode, dtype)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 2**20
    else:
        before = current_rss()
    start = time.perf_counter()
    step(model, clip, mode, dtype)
    seconds = time.perf_counter() - start
    if args.device == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**20
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return {"peak_mib": peak - before, "seconds": seconds}


def current_rss() -> float:
    """Resident memory of this process in MiB, without what is free to be used again."""
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def bound_memory() -> None:
    """Let this process fail, instead of the machine, where a peer wants more than there is."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        free = int(re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text())[1])
        limit = int(0.9 * free * 2**10)
        resource.setrlimit(
            resource.RLIMIT_DATA, (limit, resource.getrlimit(resource.RLIMIT_DATA)[1])
        )


def matmul_rate(args: argparse.Namespace) -> float:
    """Floating-point operations a second of one big square matrix product, best of five."""
    side = 8192 if args.device == "cuda" else 4096
    dtype = DTYPES[args.dtype] or torch.float32
    a, b = (torch.randn(side, side, device=args.device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        start = time.perf_counter()
        a @ b
        if args.device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def profile(case: Case, who: str, mode: str, args: argparse.Namespace) -> dict[str, float]:
    """Seconds of one step by kind of work, operators' own time, after one step to warm up."""
    clip = case.input(args.device)
    model = prepare(case, who, mode, args)
    step(model, clip, mode, DTYPES[args.dtype])
    activities = [torch.profiler.ProfilerActivity.CPU]
    if args.device == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        step(model, clip, mode, DTYPES[args.dtype])
    times = Counter(dict.fromkeys(KINDS, 0.0))
    for event in profiler.events():
        own = event.self_cpu_time_total
        if args.device == "cuda":
            own = event.self_device_time_total if event.device_type.name == "CPU" else 0
        times[kind(event)] += own / 1e6
    return dict(times)


def kind(event: object) -> str:
    """Kind of work of a profiled operator; all that our chunked attention calls is attention."""
    above = event
    while above is not None:
        if "_Chunked" in above.name:
            return "attention"
        above = above.cpu_parent
    name = event.name.rsplit("/", 1)[-1]
    return next(key for key, pattern in KINDS.items() if re.search(pattern, name))
