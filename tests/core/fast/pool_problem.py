"""Pooling problems for the Triton kernels, and the formula that they are held against."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from mvitv2_core.fast import triton_pool
from tests import plain
from tests.core.fast import interpreted

Grid = tuple[int, ...]


@dataclass(frozen=True)
class Problem:
    """Inputs of a pool, but for the tensors."""

    thw: Grid
    kernel: Grid
    stride: Grid
    head_dim: int
    count: int = 1  # q alone, or k and v
    batch: int = 1
    heads: int = 1
    cls_token: bool = False
    normed: bool = True
    dtype: torch.dtype = torch.float32
    weight_dtype: torch.dtype = torch.float32
    device: str = "cpu"

    def tensors(self) -> list[Tensor]:
        """The product of qkv, weights, and norms' weights and biases."""

        def draw(*shape: int, dtype: torch.dtype = self.weight_dtype) -> Tensor:
            x = torch.randn(shape, dtype=torch.float64).to(self.device, dtype)
            return x.requires_grad_()

        rows = prod(self.thw) + int(self.cls_token)
        qkv = draw(self.batch, rows, 3, self.heads, self.head_dim, dtype=self.dtype)
        weights = [draw(self.head_dim, 1, *self.kernel) for _ in range(self.count)]
        norms = [draw(self.head_dim) for _ in range(2 * self.count if self.normed else 0)]
        return [qkv, *weights, *norms]

    def parts(self, tensors: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list | None]:
        """xs, weights and norms as ``pool_heads`` takes them."""
        qkv, *rest = tensors
        xs = list(qkv.unbind(2))[3 - self.count :] if self.count == 2 else [qkv[:, :, 0]]
        weights, gains = rest[: self.count], rest[self.count : 2 * self.count]
        norms = list(zip(gains, rest[2 * self.count :], (1e-5, 1e-3), strict=False))
        return xs, weights, norms if self.normed else None

    def pool(self, tensors: list[Tensor]) -> tuple[Tensor, ...]:
        xs, weights, norms = self.parts(tensors)
        return triton_pool.pool_heads(xs, weights, norms, self.thw, self.stride, self.cls_token)

    def formula(self, tensors: list[Tensor]) -> tuple[Tensor, ...]:
        """One convolution, and one norm, after the other."""
        xs, weights, norms = self.parts(tensors)
        first, outs = int(self.cls_token), []
        for n, (x, weight) in enumerate(zip(xs, weights, strict=True)):
            grid = x[:, first:].flatten(2).unflatten(1, self.thw)
            y = plain.pool(grid, weight.to(x.dtype), self.stride).flatten(1, -2)
            y = torch.cat([x[:, :first].flatten(2), y], dim=1)
            y = y.unflatten(-1, (self.heads, self.head_dim))
            if norms:
                gain, bias, eps = norms[n]
                y = F.layer_norm(y, y.shape[-1:], gain.to(y.dtype), bias.to(y.dtype), eps)
            outs.append(y)
        return tuple(outs)

    def exact(self, tensors: list[Tensor], grads: list[Tensor], wide: bool) -> list[Tensor]:
        """Results and gradients by the formula, in float64 or in the problem's precision."""
        inputs = [x.detach().double() if wide else x.detach() for x in tensors]
        inputs = [x.requires_grad_() for x in inputs]
        outs = self.formula(inputs)
        grads = [grad.to(out.dtype) for grad, out in zip(grads, outs, strict=True)]
        return [*(out.detach() for out in outs), *torch.autograd.grad(outs, inputs, grads)]

    def names(self) -> list[str]:
        names = ["out", "dqkv", "dweight"]
        return [name for name in names for _ in range(1 if name == "dqkv" else self.count)] + [
            name for name in ("dgain", "dbias") for _ in range(self.count * self.normed)
        ]


def held_against_formula(problem: Problem) -> None:
    tensors = problem.tensors()
    outs = problem.pool(tensors)
    grads = [torch.randn_like(out) for out in outs]
    got = [*outs, *torch.autograd.grad(outs, tensors, grads)]
    assert all(out.is_contiguous() for out in outs)
    usual, exact = (problem.exact(tensors, grads, wide) for wide in (False, True))
    interpreted.check(problem.names(), got, usual, exact, problem.dtype)


# Of detection T at 1024x1088, video S and image T: pools of q, and of k and v in one.
REAL = {
    "detection q, stage 1": Problem((256, 272), (3, 3), (1, 1), 96, 1, 1, 1),
    "detection kv, stage 1": Problem((256, 272), (3, 3), (4, 4), 96, 2, 1, 1),
    "detection q, stage 2": Problem((256, 272), (3, 3), (2, 2), 96, 1, 1, 2),
    "video q, stage 1": Problem((8, 56, 56), (3, 3, 3), (1, 1, 1), 96, 1, 2, 1, True),
    "video kv, stage 1": Problem((8, 56, 56), (3, 3, 3), (1, 8, 8), 96, 2, 2, 1, True),
    "video kv, stage 4": Problem((8, 7, 7), (3, 3, 3), (1, 1, 1), 96, 2, 2, 8, True),
    "image kv, stage 1": Problem((56, 56), (3, 3), (4, 4), 96, 2, 8, 1),
    "heads of 72": Problem((14, 14), (3, 3), (1, 1), 72, 2, 4, 8),
}
