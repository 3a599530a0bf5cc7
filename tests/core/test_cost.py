"""The account of parameters and multiply-adds: against built models, fvcore and publications."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from mvitv2_core import MViTClassifier, MViTConfig, cli, ops
from mvitv2_core.cost import Cost, classifier_cost, trunk_cost
from tests.structures import small


def sparse(config: MViTConfig) -> MViTConfig:
    """Pools only where they stride, as PySlowFast's SSv2 L, and temporal strides of kv."""
    blocks = tuple(
        replace(
            spec,
            kernel_q=spec.kernel_q if max(spec.stride_q) > 1 else None,
            kernel_kv=None if index % 2 else (1,) * len(spec.thw),
            stride_kv=(1,) * len(spec.thw),
        )
        if index > 5
        else replace(spec, stride_kv=(2,) * len(spec.thw))
        for index, spec in enumerate(config.blocks)
    )
    return replace(config, blocks=blocks)


def stills(config: MViTConfig) -> MViTConfig:
    """A two-axis patch embedding under a three-axis grid."""
    return replace(config, patch_kernel=(7, 7), patch_stride=(4, 4), patch_padding=(3, 3))


CASES = {
    "image": (small("T"), (64, 64)),
    "other size": (small("T"), (97, 131)),
    "class token": (small("T", cls_token=True), (64, 96)),
    "MLP widens": (small("T", in_att=False), (70, 64)),
    "no biases, narrow MLP": (small("T", qkv_bias=False, mlp_ratio=2.5), (64, 64)),
    "no positions": (replace(small("T"), rel_pos=(False, False)), (64, 64)),
    "one axis": (replace(small("T"), rel_pos=(True, False)), (64, 64)),
    "clip": (small("T", 4, cls_token=True), (4, 64, 64)),
    "long clip": (small("T", 4, cls_token=True), (7, 50, 81)),
    "mean": (small("T", 4, mean_pooling=True), (4, 64, 64)),
    "joint": (small("T", 4, abs_pos="joint", cls_token=True), (4, 64, 64)),
    "separate": (small("T", 4, abs_pos="separate", cls_token=True), (4, 64, 64)),
    "no row": (small("T", abs_pos="joint"), (64, 64)),
    "kept row": (small("T", abs_pos="joint", abs_pos_cls_row=True, abs_pos_thw=(7, 7)), (64, 64)),
    "sparse": (sparse(small("T", 8, cls_token=True)), (8, 64, 64)),
    "stills": (stills(small("T", 2, cls_token=True)), (64, 64)),
}


def rows_of(model: nn.Module, prefix: str) -> int:
    return sum(p.numel() for n, p in model.named_parameters() if n.startswith(prefix))


@pytest.mark.parametrize("name", CASES)
def test_parameters_are_those_of_the_model(name: str) -> None:
    """Row by row: what is not in a block or the head belongs to the patch embedding's row."""
    config, size = CASES[name]
    with torch.device("meta"):
        model = MViTClassifier(config)
    first, *blocks, head = classifier_cost(config, size)
    for row in blocks:
        assert row.parameters == rows_of(model, f"{row.name}."), row.name
    assert head.parameters == rows_of(model, "norm.") + rows_of(model, "head.")
    total = first.parameters + head.parameters + sum(row.parameters for row in blocks)
    assert total == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", CASES)
def test_multiply_adds_are_fvcores(name: str) -> None:
    """Of every block alone, and in all, on traces of the plain arithmetic."""
    fvcore = pytest.importorskip("fvcore.nn", reason="install fvcore to run: make setup")
    config, size = CASES[name]
    model = MViTClassifier(config).eval()
    with torch.no_grad():
        count = fvcore.FlopCountAnalysis(model, torch.zeros(1, 3, *size))
        count.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        by_module = count.by_module()
    rows = classifier_cost(config, size)
    for row in rows[:-1]:
        assert row.flops == by_module[row.name], row.name
    assert sum(row.flops for row in rows) == count.total()


@pytest.mark.parametrize("name", ["other size", "long clip", "sparse"])
def test_grids_and_logits_are_the_live_ones(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config, size = CASES[name]
    seen: list[tuple] = []
    real = ops.attention

    def spy(q, k, v, tables, q_thw, k_thw, **options):  # type: ignore[no-untyped-def]
        seen.append((tuple(q_thw), q.shape[1] * k.shape[1] * q.shape[2]))
        return real(q, k, v, tables, q_thw, k_thw, **options)

    monkeypatch.setattr(ops, "attention", spy)
    MViTClassifier(config).eval()(torch.zeros(1, 3, *size))
    blocks = trunk_cost(config, size)[1:]
    assert [(row.thw_out, row.logits) for row in blocks] == seen


def millions(rows: list[Cost]) -> float:
    return sum(row.parameters for row in rows) / 1e6


def gflops(rows: list[Cost]) -> float:
    return sum(row.flops for row in rows) / 1e9


# Published by the paper (Tables 1, 4, 5, 6) and the official repositories: GFLOPs, M parameters.
PUBLISHED = {
    "T": (("T", (224, 224)), {}, 4.7, 24),
    "S": (("S", (224, 224)), {}, 7.0, 35),
    "B": (("B", (224, 224)), {}, 10.2, 52),
    "B at 384": (("B", (384, 384)), {}, 36.7, 52),
    "H, IN-21K": (("H", (224, 224)), {"cls_token": True}, 120.6, 667),
    "K400 S": (("S", (16, 224, 224)), {"num_classes": 400}, 64, 34.5),
    "K400 B": (("B", (32, 224, 224)), {"num_classes": 400}, 225, 51.2),
    "K400 L": (("L", (40, 312, 312)), {"num_classes": 400}, 2828, 217.6),
    "SSv2 S": (("S", (16, 224, 224)), {"num_classes": 174}, 64, 34.4),
    "SSv2 B": (("B", (32, 224, 224)), {"num_classes": 174}, 225, 51.1),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_figures(name: str) -> None:
    """Within 2 %. K400 L is the widest, 1.9 % of its parameters: see the next test."""
    args, options, published_gflops, published_millions = PUBLISHED[name]
    rows = classifier_cost(MViTConfig.variant(*args, **options))
    assert abs(millions(rows) / published_millions - 1) < 0.02
    assert abs(gflops(rows) / published_gflops - 1) < 0.02
    if name != "K400 L":
        assert abs(millions(rows) - published_millions) < 0.54  # 52 is 51.47 of B, rounded up


def test_published_l_is_two_models() -> None:
    """Its parameters are those of widening in the MLP, its GFLOPs those of widening in attention.

    The IN-1K weights widen in the MLP: 217,992,952 parameters. The published 42.1 and, at 384,
    140.2 GFLOPs are met by widening in attention; in the MLP it would be 4 % more. The same holds
    on K400: 2828 GFLOPs are met to the unit by upstream's config, which has 213.4 M parameters,
    while the published 217.6 M need the other (217.7 M, 2905 G).
    """
    attention, mlp = (MViTConfig.variant("L", dim_mul_in_att=in_att) for in_att in (True, False))
    assert sum(row.parameters for row in classifier_cost(mlp)) == 217_992_952
    assert abs(gflops(classifier_cost(attention)) / 42.1 - 1) < 0.005
    assert 1.04 < gflops(classifier_cost(mlp)) / 42.1 < 1.045
    assert f"{gflops(classifier_cost(attention, (384, 384))):.1f}" == "140.2"
    size, classes = (40, 312, 312), {"num_classes": 400}
    attention, mlp = (
        classifier_cost(MViTConfig.variant("L", size, dim_mul_in_att=in_att, **classes))
        for in_att in (True, False)
    )
    assert f"{gflops(attention):.0f} {millions(attention):.1f}" == "2828 213.4"
    assert f"{gflops(mlp):.0f} {millions(mlp):.1f}" == "2905 217.7"


def test_sizes_must_fit() -> None:
    with pytest.raises(ValueError, match="input_size must hold 2 sizes, got \\(4, 64, 64\\)"):
        trunk_cost(small("T"), (4, 64, 64))


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["cost", "S", "--frames", "16", "--classes", "400"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[:7] == ["grid", "in", "grid", "out", "params", "(M)", "GFLOPs"]
    assert [line.split()[0] for line in lines] == [
        "patch_embed",
        *(f"blocks.{index}" for index in range(16)),
        "head",
        "all",
    ]
    assert lines[0].split()[1:3] == ["16x224x224", "8x56x56"]
    assert lines[-1].split()[1:3] == ["34.538", "64.455"]
    assert cli.main(["cost", "S", "--frames", "0"]) == 2
