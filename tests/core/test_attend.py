"""Every attention path against the plain arithmetic, and the choice between them."""

import itertools
import threading
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mvitv2_core import MViTClassifier, MViTConfig, ops
from mvitv2_core.fast import attention_chunked, rows_exported, rows_remembered, terms_in_place
from mvitv2_core.fast.attention_folded import HEAD_DIM_STEP, MAX_HEAD_DIM, key_cells
from mvitv2_core.fast.memory import TensorCache
from mvitv2_core.rel_pos import rel_pos_index, rel_pos_terms
from tests.compare import error, randomize
from tests.forms import attend_plain, forced
from tests.small import small_input, small_model, stage_blocks

GRIDS = {
    "image": ((6, 5), (3, 2), (True, True)),
    "same grid": ((4, 4), (4, 4), (True, True)),
    "more keys than queries": ((2, 3), (5, 7), (True, True)),
    "clip": ((3, 4, 5), (3, 2, 2), (True, True, True)),
    "clip, space only": ((3, 4, 5), (2, 2, 2), (False, True, True)),
    "one axis of three": ((3, 4, 5), (2, 2, 2), (True, False, False)),
    "single cell": ((1, 1), (1, 1), (True, True)),
}


def tensors(name: str, cls_token: bool, heads: int = 2) -> tuple[list[Tensor], list]:
    """q, k, v and position tables that need gradients, and the remaining arguments."""
    q_thw, k_thw, used = GRIDS[name]
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    queries, keys = (torch.Size(g).numel() + cls_token for g in (q_thw, k_thw))
    qkv = [draw(3, queries, heads, 4), draw(3, keys, heads, 4), draw(3, keys, heads, 4)]
    # One row more than the live grid needs: tables are resampled.
    tables = [
        draw(2 * max(a, b), 4) if use else None
        for a, b, use in zip(q_thw, k_thw, used, strict=True)
    ]
    return [*qkv, *(t for t in tables if t is not None)], [tables, q_thw, k_thw, cls_token]


@pytest.mark.parametrize(
    ("path", "limit"), [("folded", 0), ("chunked", 2**21), ("chunked", 40), ("chunked", 1)]
)
@pytest.mark.parametrize("cls_token", [False, True])
@pytest.mark.parametrize("name", GRIDS)
def test_forms_equal_plain(name: str, cls_token: bool, path: str, limit: int) -> None:
    """Values and gradients, with chunks of the whole batch, of parts of a sample, of one query."""
    leaves, rest = tensors(name, cls_token)
    expected = attend_plain(*leaves[:3], *rest)
    weight = torch.randn(expected.shape, dtype=torch.float64)
    with forced(limit, attention=path):
        got = ops.attention(*leaves[:3], *rest)
        grads = torch.autograd.grad(got, leaves, weight)
    assert error(got, expected) < 1e-12
    for ours, reference in zip(grads, torch.autograd.grad(expected, leaves, weight), strict=True):
        assert error(ours, reference) < 1e-10 or reference.abs().max() < 1e-12


@pytest.mark.parametrize("batch", [0, 1, 5])
@pytest.mark.parametrize("queries", [1, 7, 1025, 3000])
@pytest.mark.parametrize("heads", [1, 3, 8])
@pytest.mark.parametrize("keys", [1, 49, 1088, 5000])
def test_backward_chunks(
    batch: int, queries: int, heads: int, keys: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They cover every query of every head once, none holds more logits than it may."""
    monkeypatch.setattr(attention_chunked, "CPU_LOGITS", 2**17)
    count = torch.zeros(batch, queries, heads, 1, dtype=torch.int)
    k = torch.empty(batch, keys, heads, 1)
    plan = attention_chunked._Plan(count, k, ((0,), (queries,), (keys,), False, False, None))
    for chunk in plan.backward_chunks():
        part = chunk.of_queries(count)
        assert 0 < part.numel() * keys <= 2**17
        chunk.put_queries(count, part + 1)
    assert (count == 1).all()


def test_without_positions() -> None:
    q, k, v = (torch.randn(2, n, 2, 4, dtype=torch.float64) for n in (6, 4, 4))
    rest = ([None, None], (3, 2), (2, 2))
    assert error(ops.attention(q, k, v, *rest), attend_plain(q, k, v, *rest)) < 1e-12


@pytest.mark.parametrize(
    ("device", "head_dim", "channels", "path"),
    [
        ("cuda", 96, 0, "fused"),
        ("cpu", 96, 0, "fused"),
        ("cpu", 96, 28, "chunked"),
        ("cuda", 96, 28, "folded"),
        ("cuda", 96, 160, "folded"),
        ("cuda", 96, 161, "chunked"),  # 257 channels: no fused kernel takes them
        ("cuda", 72, 177, "folded"),  # 249, padded to 256
        ("cuda", 72, 185, "chunked"),
    ],
)
def test_choice_of_form(
    device: str, head_dim: int, channels: int, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On tensors that are of a device in name only."""
    monkeypatch.setattr(ops, "REFERENCE", False)
    with FakeTensorMode(allow_non_fake_inputs=True):
        q = torch.empty(1, 4, 1, head_dim, device=device)
        terms = [torch.empty(1, 4, 1, channels, device=device)] if channels else []
        call = (q, q, q, terms, [0] * bool(channels), (4,), (channels,), False, False, None)
        form = ops.choose("attention", *call)
    assert form.name == path


@pytest.mark.parametrize("form", ["folded", "fused"])
def test_checkpointing_runs_blocks_twice_and_keeps_nothing(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the forms of GPUs: nothing of attention outlives the forward pass, or the backward one."""
    inside: list[weakref.ref[Tensor]] = []
    kernel = torch.nn.functional.scaled_dot_product_attention

    def watched(q: Tensor, *rest: Tensor, **options: float) -> Tensor:
        out = kernel(q, *rest, **options)
        inside.extend(map(weakref.ref, (q, *rest, out)))
        return out

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    for act_checkpoint in (True, False):
        rel_pos = (form == "folded",) * 2
        model = small_model("image", act_checkpoint=act_checkpoint, rel_pos=rel_pos)
        blocks = len(model.blocks)  # type: ignore[arg-type]
        inside.clear()
        with forced(attention=form):
            loss = model(small_input("image")).square().sum()
            assert len(inside) == 4 * blocks
            assert not act_checkpoint or not any(ref() is not None for ref in inside)
            loss.backward()
        assert len(inside) == 4 * blocks * (1 + act_checkpoint)
        assert not any(ref() is not None for ref in inside)


@pytest.mark.parametrize(("head_dim", "grid"), itertools.product([72, 96], [(14, 14), (8, 7, 7)]))
def test_folded_heads_suit_fused_kernels(head_dim: int, grid: tuple[int, ...]) -> None:
    """Flash, cuDNN and memory-efficient kernels want head sizes in steps of 8, up to 256."""
    like = torch.empty(0, head_dim)
    cells = key_cells(grid, range(len(grid)), True, like)
    width = head_dim + cells.shape[1]
    assert width % HEAD_DIM_STEP == 0 and width <= MAX_HEAD_DIM
    assert cells[0].abs().sum() == 0  # the class token has no position


@pytest.mark.parametrize(("q", "k"), itertools.product([1, 2, 7, 14, 56], [1, 3, 7, 14, 28]))
def test_index_is_the_official_one(q: int, k: int) -> None:
    """The formula as published, evaluated step by step in float32 as the official code does."""
    q_coords = torch.arange(q)[:, None] * max(k / q, 1.0)
    k_coords = torch.arange(k)[None, :] * max(q / k, 1.0)
    official = ((q_coords - k_coords) + (k - 1) * max(q / k, 1.0)).long().flatten()
    assert torch.equal(rel_pos_index(q, k, torch.device("cpu")), official)


class WithoutFloat64(TorchDispatchMode):
    """Raises for what Apple's MPS cannot hold."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for made in tree_leaves(result):
            if isinstance(made, Tensor) and made.dtype == torch.float64:
                assert made.device.type != "mps", func
        return result


@pytest.mark.parametrize("form", [rows_remembered.pair_rows, rows_exported.pair_rows])
def test_positions_of_a_device_without_float64(form: Callable[..., Tensor]) -> None:
    with FakeTensorMode(), WithoutFloat64():
        rows = form(torch.empty(13, 8, device="mps"), 7, 4)
    assert rows.shape == (7, 4, 8) and rows.device.type == "mps"


def test_terms_do_not_depend_on_memory_layout() -> None:
    leaves, (tables, q_thw, k_thw, _) = tensors("clip", False)
    q = leaves[0]
    strided = q.detach().transpose(1, 2).contiguous().transpose(1, 2)
    rows = [ops.axis_rows(*axis) for axis in zip(tables, q_thw, k_thw, strict=True)]
    for form in (rel_pos_terms, terms_in_place.rel_pos_terms):
        for a, b in zip(form(q, rows, q_thw), form(strided, rows, q_thw), strict=True):
            assert torch.equal(a, b)


def test_cache_is_bounded_and_safe() -> None:
    """Least recently used entries go first; threads may share it; inference leaves no trace."""
    cache = TensorCache(limit=10 * 8)
    for i in range(100):
        cache.get((i,), lambda: torch.zeros(2, dtype=torch.float32))
    assert cache.size <= 80 and len(cache) == 10
    with torch.inference_mode():
        made = cache.get(("x",), lambda: torch.zeros(1))
    assert not made.is_inference()
    threads = [
        threading.Thread(
            target=lambda: [cache.get((j,), lambda: torch.zeros(2)) for j in range(50)]
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cache.size <= 80
    with torch.device("meta"):
        assert cache.get(("meta",), lambda: torch.zeros(3, device="meta")).device.type == "meta"
    assert ("meta",) not in cache._entries


def test_no_queries_by_keys_tensor() -> None:
    """Neither direction allocates as many elements as one sample has query-key pairs."""
    sizes: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.extend(
                t.numel() for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, Tensor)
            )
            return out

    q = torch.randn(1, 96 * 96, 1, 8, requires_grad=True)
    k, v = (torch.randn(1, 48 * 48, 1, 8, requires_grad=True) for _ in range(2))
    tables = [torch.randn(191, 8, requires_grad=True) for _ in range(2)]
    with Watch():
        ops.attention(q, k, v, tables, (96, 96), (48, 48)).sum().backward()
    assert max(sizes) <= attention_chunked.CPU_LOGITS < q.shape[1] * k.shape[1]


@pytest.mark.parametrize("cls_token", [False, True])
def test_compiles_without_graph_breaks(cls_token: bool) -> None:
    """Forward and backward pass, one size. Dynamic sizes trace, but guards on them take minutes."""
    size = (4, 32, 40) if cls_token else (32, 40)
    grid, stride = (2, 8, 10)[-len(size) :], (1, 4, 4)[-len(size) :]
    config = MViTConfig.variant("T", size, num_classes=5, cls_token=cls_token)
    blocks = stage_blocks((1, 1), 16, 1, grid, stride)
    config = MViTConfig(**{**config.__dict__, "blocks": blocks})
    model = randomize(MViTClassifier(config).double())
    clip = torch.randn(2, 3, *size, dtype=torch.float64)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend="aot_eager")
    expected, got = model(clip), compiled(clip)
    assert error(got, expected) < 1e-9
    leaves = list(model.parameters())
    weight = torch.randn(expected.shape, dtype=torch.float64)
    for ours, reference in zip(
        torch.autograd.grad(got, leaves, weight),
        torch.autograd.grad(expected, leaves, weight),
        strict=True,
    ):
        assert error(ours, reference) < 1e-8 or reference.abs().max() < 1e-10
