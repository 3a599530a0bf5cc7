"""What only a GPU can show: results equal the CPU's, fused kernels, no synchronisation."""

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mvitv2_core import MViTClassifier, MViTConfig
from tests.compare import error, gradient_error, loss_of, randomize

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA GPU: run the suite on a machine with one"
)
SIZES = {
    "image": ("T", (97, 131), {}),
    "clip": ("T", (6, 64, 80), {"cls_token": True}),
    "clip without class token": ("T", (6, 64, 80), {"cls_token": False}),
    "width in the MLP": ("T", (64, 64), {"dim_mul_in_att": False}),
}


def pair(name: str) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    """The same float64 model on the CPU and on the GPU, and an input."""
    variant, size, options = SIZES[name]
    config = MViTConfig.variant(variant, size, num_classes=7, **options)
    cpu = randomize(MViTClassifier(config).double())
    gpu = MViTClassifier(config).double()
    gpu.load_state_dict(cpu.state_dict())
    return cpu, gpu.cuda(), torch.randn(2, 3, *size, dtype=torch.float64)


@pytest.mark.parametrize("name", SIZES)
def test_gpu_equals_cpu(name: str) -> None:
    cpu, gpu, clip = pair(name)
    expected, got = cpu(clip), gpu(clip.cuda())
    assert error(got.cpu(), expected) < 1e-9
    loss_of(expected).backward()
    loss_of(got).backward()
    assert gradient_error(gpu.cpu(), cpu) < 1e-8


@pytest.mark.parametrize("name", SIZES)
def test_no_synchronisation(name: str) -> None:
    """Nothing in a forward or backward pass waits for the GPU, not even with new sizes."""
    _, gpu, clip = pair(name)
    gpu, clip = gpu.float(), clip.float().cuda()
    other = clip[..., :-9].contiguous()
    gpu(clip).sum().backward()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        gpu(other).sum().backward()
        with torch.autocast("cuda", torch.bfloat16):
            loss = gpu(clip).float().sum()
        loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", SIZES)
def test_fused_kernels_take_half_precision(name: str, dtype: torch.dtype) -> None:
    """No attention of the model falls off to the kernel that holds the whole matrix."""
    _, gpu, clip = pair(name)
    fused = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]
    with sdpa_kernel(fused), torch.autocast("cuda", dtype):
        loss_of(gpu.float()(clip.float().cuda()).cpu()).backward()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", SIZES)
def test_autocast_is_close_to_float64(name: str, dtype: torch.dtype) -> None:
    cpu, gpu, clip = pair(name)
    with torch.no_grad(), torch.autocast("cuda", dtype):
        got = gpu.float()(clip.float().cuda())
    assert error(got.double().cpu(), cpu(clip)) < 20 * torch.finfo(dtype).eps


def test_compiles_whole() -> None:
    _, gpu, clip = pair("image")
    torch._dynamo.reset()
    compiled = torch.compile(gpu, fullgraph=True, dynamic=False)
    assert error(compiled(clip.cuda()), gpu(clip.cuda())) < 1e-9
