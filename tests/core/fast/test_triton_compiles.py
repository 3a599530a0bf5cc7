"""Compiles the Triton kernels for a Hopper GPU, which needs none: Triton brings its assembler.

What the interpreter cannot show: types that change in a loop, products that miss the tensor cores,
blocks that do not fit into shared memory.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from mvitv2_core.fast import triton_attention, triton_attention_op, triton_pool_op

pytestmark = [
    pytest.mark.skipif(not triton_attention.available(), reason="needs Triton"),
    pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="kernels are interpreted"),
]
# What one block may have on an H100.
SHARED = 227 * 1024
POINTERS = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
FLOATS = ("lse", "delta", "sums", "parts_k", "parts_v")
PARAMETERS = ("weight", "ga", "gb", "ba", "bb")


def compiled(
    kernel: Any,
    dtype: torch.dtype,
    pointers: str,
    constants: dict[str, Any],
    warps: int,
    stages: int,
) -> Any:
    """The kernel for sm_90; arguments that are neither pointers nor constants are sizes."""
    from triton import compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, values, attributes = {}, {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name], values[(i,)] = "constexpr", constants[name]
        elif name in pointers.split():
            signature[name] = "*fp32" if name in FLOATS + PARAMETERS else POINTERS[dtype]
            attributes[(i,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32" if name in ("scale", "eps_a", "eps_b") else "i32"
    return compile(
        ASTSource(kernel, signature, values, attributes),
        target=GPUTarget("cuda", 90, 32),
        options={"num_warps": warps, "num_stages": stages},
    )


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize("name", ["forward", "backward_queries", "backward_keys"])
@pytest.mark.parametrize(
    ("dtype", "head_dim", "columns", "windows"),
    [
        (torch.bfloat16, 96, 32, True),
        slow(torch.bfloat16, 96, 128, False),
        slow(torch.bfloat16, 128, 256, False),
        slow(torch.float16, 72, 32, False),
        slow(torch.bfloat16, 64, 32, True),
        slow(torch.float32, 96, 32, False),
    ],
)
@pytest.mark.parametrize("short", [False, slow(True)])
def test_attention(
    name: str, dtype: torch.dtype, head_dim: int, columns: int, windows: bool, short: bool
) -> None:
    from mvitv2_core.fast import triton_attention_backward, triton_attention_kernels

    module = triton_attention_kernels if name == "forward" else triton_attention_backward
    single = dtype == torch.float32
    table = triton_attention_op.SINGLE if single else triton_attention_op.HALF
    queries, keys, warps, stages = table[f"{name}_short" if short else name]
    d0, d1 = triton_attention_op.tiles(head_dim)
    constants = {
        **{"D": head_dim, "D0": d0, "D1": d1, "KP": columns, "AXES": 6 if windows else 7},
        **{"CLS": int(not windows), "WINDOWS": windows, "UNIT": 8, "ADD_Q": True, "KEEP": True},
        **{"D_TERMS": True, "PRECISION": "ieee" if single else "tf32"},
        **{"BLOCK_M": queries, "BLOCK_N": keys},
    }
    pointers = "q k v t0 t1 t2 out attn lse grad dq dt0 dt1 dt2 delta packed dk dv"
    kernel = compiled(getattr(module, name), dtype, pointers, constants, warps, stages)
    assert kernel.metadata.shared <= SHARED
    # Tensor cores by way of Hopper's own products; none in float32.
    assert ("wgmma.mma_async" in kernel.asm["ptx"]) != single
    if not single:  # whole lines of keys, past the registers
        assert "cp.async.cg.shared.global [ " in kernel.asm["ptx"]


@pytest.mark.parametrize(
    "name", ["forward", "backward_norm", "backward_input", "backward_weight", "add_sums"]
)
@pytest.mark.parametrize(
    ("dtype", "head_dim", "kernel", "stride", "two"),
    [
        (torch.bfloat16, 96, (3, 3, 3), (1, 2, 2), 1),
        slow(torch.float16, 72, (1, 3, 3), (1, 1, 1), 0),
        slow(torch.float32, 64, (3, 3, 3), (1, 8, 8), 1),
        slow(torch.bfloat16, 96, (1, 1, 4), (1, 1, 2), 0),
    ],
)
def test_pool(
    name: str, dtype: torch.dtype, head_dim: int, kernel: tuple, stride: tuple, two: int
) -> None:
    from mvitv2_core.fast import triton_pool_kernels

    constants = {
        **{"D": head_dim, "WIDTH": 1 << (head_dim - 1).bit_length(), "TWO": two, "NORM": True},
        **{f"K{axis}": size for axis, size in enumerate(kernel)},
        **{f"S{axis}": size for axis, size in enumerate(stride)},
        **{"CLS": 1, "UNIT": 8, "Y_UNIT": 8, "ROWS": triton_pool_op.ROWS},
        **{"SIZE": 29 * head_dim, "BLOCK": 32, "LINES": 32},
    }
    pointers = "xa xb weight ga gb ba bb ya yb dya dyb dza dzb dxa dxb sums"
    if name == "add_sums":
        pointers += " out"
    function = getattr(triton_pool_kernels, name)
    done = compiled(function, dtype, pointers, constants, triton_pool_op.WARPS, 3)
    assert done.metadata.shared <= SHARED
    if name != "add_sums":  # whole lines of 16 bytes
        assert ".v4.b32" in done.asm["ptx"]
