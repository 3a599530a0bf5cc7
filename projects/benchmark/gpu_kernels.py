"""Times the Triton kernels on a GPU against what they would replace.

    python -m projects.benchmark.gpu_kernels [--dtype float16] [--repeats 50]
    python -m projects.benchmark.gpu_kernels --toy    # tries the script in Triton's interpreter

Attention against positions folded into ``scaled_dot_product_attention``, with windows parted by
copies; pooling against ``conv3d`` or ``conv2d`` over heads and ``layer_norm``. The real sizes of
the tests of both (detection T, video S, image T) with four times their batch. Milliseconds of one
call, medians over ``--repeats`` turns; both ways must agree first.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

from mvitv2_core.fast import triton_pool_op
from tests.core.fast import attention_problem, pool_problem
from tests.core.fast.attention_problem import Problem as Attention
from tests.core.fast.pool_problem import Problem as Pool

TOY: dict[str, Attention | Pool] = {
    "windows": Attention((5, 7), (5, 7), (0, 1), 16, add_q=True, windows=((4, 4), (4, 4))),
    "clip": Attention((2, 3, 3), (2, 2, 2), (0, 1, 2), 16, cls_token=True, add_q=True),
    "k and v": Pool((2, 4, 4), (3, 3, 3), (1, 2, 2), 16, 2, cls_token=True),
}


def parted(x: Tensor, grid: tuple[int, ...], window: tuple[int, ...]) -> Tensor:
    """(B, H * W, heads, d) -> (B * windows, cells, heads, d), filled up with zeros."""
    x = x.unflatten(1, grid)
    fill = [-n % w for n, w in zip(grid, window, strict=True)]
    x = F.pad(x, (0, 0, 0, 0, 0, fill[1], 0, fill[0]))
    x = x.unflatten(2, (-1, window[1])).unflatten(1, (-1, window[0])).transpose(2, 3)
    return x.flatten(3, 4).flatten(0, 2)


def folded(p: Attention, q: Tensor, k: Tensor, v: Tensor, *terms: Tensor) -> Tensor:
    """Attention with one-hot columns in k, so that one product makes the whole logits."""
    first, added = int(p.cls_token), torch.cat(terms, dim=-1)
    added = F.pad(added, (0, 0, 0, 0, first, 0))
    seen = p.windows[1] if p.windows else p.k_thw
    width = -(-(p.head_dim + added.shape[-1]) // 8) * 8
    spare = width - p.head_dim - added.shape[-1]
    whole = F.pad(torch.cat([q * p.head_dim**-0.5, added], -1), (0, spare))
    kv = [k, v]
    if p.windows:
        whole = parted(whole, p.q_thw, p.windows[0])
        kv = [parted(x, p.k_thw, p.windows[1]) for x in kv]
    cells = torch.unravel_index(torch.arange(kv[0].shape[1] - first, device=q.device), seen)
    hot = torch.cat([F.one_hot(cells[a], seen[a]) for a in p.axes], -1).to(q.dtype)
    hot = F.pad(hot, (0, spare, first, 0))
    hot = hot[None, :, None].expand(*kv[0].shape[:3], -1)
    parts = (whole, torch.cat([kv[0], hot], -1), F.pad(kv[1], (0, width - p.head_dim)))
    out = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in parts), scale=1.0)
    out = out.transpose(1, 2)[..., : p.head_dim]
    if p.windows:
        counts = [-(-n // w) for n, w in zip(p.q_thw, p.windows[0], strict=True)]
        out = out.unflatten(1, p.windows[0]).unflatten(0, (-1, *counts)).transpose(2, 3)
        out = out.flatten(3, 4).flatten(1, 2)[:, : p.q_thw[0], : p.q_thw[1]].flatten(1, 2)
    return torch.cat([out[:, :first], out[:, first:] + q[:, first:]], 1) if p.add_q else out


def pooled(p: Pool, tensors: list[Tensor]) -> list[Tensor]:
    xs, weights, norms = p.parts(tensors)
    gains, biases, eps = zip(*norms, strict=True)
    return triton_pool_op.plain(xs, weights, gains, biases, eps, p.thw, p.stride, p.cls_token)


def timed(call: Callable[[], None], cuda: bool) -> float:
    """Milliseconds of a call; on a GPU of one among ten, so that launches overlap."""
    if not cuda:
        start = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - start)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(10):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 10


def measure(ways: list[Callable], inputs: list[Tensor], repeats: int) -> list[float]:
    """Medians of the forward pass and of both passes of each way, called in turns."""
    cuda, times = inputs[0].is_cuda, [[] for _ in range(2 * len(ways))]

    def step(way: Callable, both: bool) -> None:
        with torch.set_grad_enabled(both):
            outs = way(*inputs)
        if both:
            outs = outs if isinstance(outs, (tuple, list)) else [outs]
            torch.autograd.grad(outs, inputs, [torch.ones_like(out) for out in outs])

    for repeat in range(-2 * cuda, repeats):
        for n in range(2 * len(ways)):
            time_ = timed(lambda n=n: step(ways[n // 2], bool(n % 2)), cuda)
            if repeat >= 0:
                times[n].append(time_)
    return [statistics.median(part) for part in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--toy", action="store_true", help="toy sizes in Triton's interpreter")
    args = parser.parse_args()
    if args.toy:
        os.environ["TRITON_INTERPRET"] = "1"
    elif not torch.cuda.is_available():
        parser.error("needs a CUDA GPU; --toy tries the script without")
    device, repeats = ("cpu", 1) if args.toy else ("cuda", args.repeats)
    problems = TOY if args.toy else {**attention_problem.REAL, **pool_problem.REAL}
    print(device if args.toy else torch.cuda.get_device_name(), args.dtype, torch.__version__)
    print(f"{'ms':34}{'Triton: forward':>16}{'both':>9}{'PyTorch: forward':>18}{'both':>9}")
    for name, problem in problems.items():
        batch = problem.batch * (1 if args.toy else 4)
        p = replace(problem, dtype=getattr(torch, args.dtype), device=device, batch=batch)
        inputs = p.tensors()
        if isinstance(p, Attention):
            inputs, ways = (
                inputs[:-1],
                [partial(attention_problem.attend, p), partial(folded, p)],
            )
        else:
            ways = [lambda *x, p=p: p.pool(list(x)), lambda *x, p=p: pooled(p, list(x))]
        with torch.no_grad():
            for a, b in zip(*(pytree.tree_leaves(way(*inputs)) for way in ways), strict=True):
                assert (a - b).abs().max() < 0.05 * b.abs().max(), name
        a, b, c, d = measure(ways, inputs, repeats)
        print(f"{name:34}{a:16.3f}{b:9.3f}{c:18.3f}{d:9.3f}", flush=True)


if __name__ == "__main__":
    main()
