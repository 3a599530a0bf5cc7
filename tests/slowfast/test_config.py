"""The config reader: every MVIT key acts or is refused, and rounding is upstream's."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
from fvcore.common.config import CfgNode

from mvitv2_core import MViTConfig
from mvitv2_slowfast import MViTv2
from mvitv2_slowfast.config import FIXED, HONOURED, read_adapter, read_config, round_width
from tests import golden_data
from tests.compare import error
from tests.slowfast.launch import needs_pyslowfast
from tests.slowfast_cfg import BASE, DEFAULTS, ODD, make_cfg

Q = [[0, 1, 1, 1], [1, 1, 2, 2], [2, 1, 1, 1], [3, 1, 2, 2]]

REFUSED = {
    "MVIT.MODE": ["max", "avg", "conv_unshared"],
    "MVIT.NORM": ["batchnorm"],
    "MVIT.NORM_STEM": [True],
    "MVIT.POOL_FIRST": [True],
    "MVIT.SEPARATE_QKV": [True],
    "MVIT.USE_FIXED_SINCOS_POS": [True],
    "MVIT.LAYER_SCALE_INIT_VALUE": [0.1],
    "MVIT.REV.ENABLE": [True],
    "MVIT.NEW_KEY": [1],
    "MVIT.DEPTH": [0],
    "MVIT.EMBED_DIM": [0, 1.5],
    "MVIT.NUM_HEADS": [0],
    "MVIT.MLP_RATIO": [0.0],
    "MVIT.PATCH_KERNEL": [[7, 7], [3, 7, 0], [3.0, 7, 7]],
    "MVIT.PATCH_STRIDE": [[4, 4], [0, 4, 4]],
    "MVIT.PATCH_PADDING": [[3, 3], [1, 3, -1]],
    "MVIT.DIM_MUL": [[[4, 2.0]], [[-1, 2.0]], [[1, 2.0], [1, 2.0]], [[1, 0.0]], [[1]]],
    "MVIT.HEAD_MUL": [[[4, 2.0]], [[1, -2.0]], [[1, 2.0, 3]]],
    "MVIT.POOL_KVQ_KERNEL": [[3, 3], [3, 0, 3]],
    "MVIT.POOL_KV_STRIDE_ADAPTIVE": [[4, 4], [1, 0, 4]],
    "MVIT.POOL_Q_STRIDE": [[[4, 1, 1, 1]], [[1, 2, 2]], [[1, 1, 2, 2], [1, 1, 2, 2]], [[]]],
    "MVIT.DROPOUT_RATE": [1.0, -0.1],
    "MVIT.DROPPATH_RATE": [1.0, -0.1],
    "MODEL.NUM_CLASSES": [0],
    "MODEL.DROPOUT_RATE": [1.0],
    "MODEL.HEAD_ACT": ["relu"],
    "MODEL.DETACH_FINAL_FC": [True],
    "CONTRASTIVE.NUM_MLP_LAYERS": [3],
    "DATA.NUM_FRAMES": [0, 1],
    "DATA.TRAIN_CROP_SIZE": [2, 64.0],
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in REFUSED.items() for value in values]
)
def test_refused_by_name(key: str, value: object) -> None:
    cfg = make_cfg({**BASE, key: value})
    names = [key.split(".")[-1], key.split(".")[-1].lower()]
    # Core's checks speak of its own fields.
    names.append("drop_path" if "DROPPATH" in key else "dropout" if "DROPOUT" in key else key)
    with pytest.raises(ValueError, match="|".join(map(re.escape, names))):
        read_adapter(cfg, read_config(cfg).blocks[-1].dim_out)


def test_refused_with_patch_2d_and_kv_strides() -> None:
    image = golden_data.load("slowfast_imagenet_patch_2d")["overrides"]
    with pytest.raises(ValueError, match="NUM_FRAMES"):
        read_config(make_cfg({**image, "DATA.NUM_FRAMES": 2}))
    listed = {"MVIT.POOL_KV_STRIDE_ADAPTIVE": None, "MVIT.POOL_KV_STRIDE": [[9, 1, 1, 1]]}
    with pytest.raises(ValueError, match=r"MVIT\.POOL_KV_STRIDE must hold"):
        read_config(make_cfg({**BASE, **listed}))


def test_detection_needs_a_probability() -> None:
    cfg = make_cfg({**BASE, "DETECTION.ENABLE": True, "MODEL.HEAD_ACT": "none"})
    with pytest.raises(ValueError, match=r"MODEL\.HEAD_ACT must be one of softmax, sigmoid"):
        read_adapter(cfg, 64)


def test_mask_pre_training_is_refused() -> None:
    cfg = make_cfg(BASE)
    cfg.MASK = CfgNode({"ENABLE": True})
    with pytest.raises(ValueError, match=r"MASK\.ENABLE"):
        read_config(cfg)


def test_every_default_key_is_known() -> None:
    assert set(DEFAULTS["MVIT"]) == HONOURED | set(FIXED) | {"REV"}


ACTS = {
    "CLS_EMBED_ON": (False, lambda c: c.cls_token),
    "DEPTH": (5, lambda c: len(c.blocks)),
    "DIM_MUL": ([[1, 2.0]], lambda c: c.blocks[-1].dim_out),
    "DIM_MUL_IN_ATT": (False, lambda c: c.blocks[0].dim_out),
    "DROPOUT_RATE": (0.1, lambda c: c.dropout),
    "DROPPATH_RATE": (0.3, lambda c: c.blocks[-1].drop_path),
    "EMBED_DIM": (32, lambda c: c.blocks[0].dim),
    "HEAD_INIT_SCALE": (0.5, lambda c: c.head_init_scale),
    "HEAD_MUL": ([[1, 2.0]], lambda c: c.blocks[-1].num_heads),
    "MLP_RATIO": (3.0, lambda c: c.mlp_ratio),
    "NUM_HEADS": (2, lambda c: c.blocks[0].num_heads),
    "PATCH_KERNEL": ([1, 5, 5], lambda c: c.patch_kernel),
    "PATCH_PADDING": ([1, 2, 2], lambda c: c.patch_padding),
    "PATCH_STRIDE": ([1, 4, 4], lambda c: c.blocks[0].thw),
    "POOL_KVQ_KERNEL": (None, lambda c: [(b.kernel_q, b.kernel_kv) for b in c.blocks]),
    "POOL_KV_STRIDE_ADAPTIVE": ([2, 2, 2], lambda c: [b.stride_kv for b in c.blocks]),
    "POOL_Q_STRIDE": (Q[1:], lambda c: [b.kernel_q for b in c.blocks]),
    "QKV_BIAS": (False, lambda c: c.qkv_bias),
    "REL_POS_SPATIAL": (False, lambda c: c.rel_pos[1:]),
    "REL_POS_TEMPORAL": (False, lambda c: c.rel_pos[0]),
    "REL_POS_ZERO_INIT": (True, lambda c: c.rel_pos_zero_init),
    "RESIDUAL_POOLING": (False, lambda c: c.residual_pooling),
    "USE_ABS_POS": (True, lambda c: c.abs_pos),
    "USE_MEAN_POOLING": (True, lambda c: c.mean_pooling),
}
ELSEWHERE = {  # tests of their own: below, and the goldens
    "PATCH_2D",
    "POOL_KV_STRIDE",
    "SEP_POS_EMBED",
    "ZERO_DECAY_POS_CLS",
}


def test_every_honoured_key_is_tested() -> None:
    assert set(ACTS) | ELSEWHERE == HONOURED


@pytest.mark.parametrize("key", ACTS)
def test_honoured(key: str) -> None:
    value, field = ACTS[key]
    before = field(read_config(make_cfg(BASE)))
    assert field(read_config(make_cfg({**BASE, f"MVIT.{key}": value}))) != before


def test_kv_strides_listed_equal_adaptive() -> None:
    rows = [[0, 1, 4, 4], [1, 1, 2, 2], [2, 1, 2, 2], [3, 1, 1, 1]]
    listed = {"MVIT.POOL_KV_STRIDE_ADAPTIVE": None, "MVIT.POOL_KV_STRIDE": rows}
    adaptive = read_config(make_cfg({**BASE, "MVIT.POOL_KV_STRIDE_ADAPTIVE": [1, 4, 4]}))
    assert read_config(make_cfg({**BASE, **listed})) == adaptive
    # Upstream's rule where both stand: its own reader leaves both behind in the config.
    both = {"MVIT.POOL_KV_STRIDE_ADAPTIVE": [1, 4, 4], "MVIT.POOL_KV_STRIDE": [[0, 1, 2, 2]]}
    assert read_config(make_cfg({**BASE, **both})) == adaptive


def test_kernel_follows_the_stride() -> None:
    config = read_config(make_cfg({**BASE, "MVIT.POOL_KVQ_KERNEL": None}))
    assert [b.kernel_q for b in config.blocks] == [(1, 1, 1), (1, 3, 3)] * 2
    adaptive = BASE["MVIT.POOL_KV_STRIDE_ADAPTIVE"]
    assert config.blocks[0].kernel_kv == tuple(s + 1 if s > 1 else 1 for s in adaptive)


def test_a_multiplier_that_could_not_act_is_refused() -> None:
    in_mlp = {"MVIT.DIM_MUL_IN_ATT": False, "MVIT.DIM_MUL": [[0, 2.0]]}
    with pytest.raises(ValueError, match=r"MVIT\.DIM_MUL"):
        read_config(make_cfg({**BASE, **in_mlp}))
    last = {"MVIT.DIM_MUL_IN_ATT": False, "MVIT.DIM_MUL": [[4, 2.0]]}
    assert read_config(make_cfg({**BASE, **last})).blocks[-1].dim_out == 2 * BASE["MVIT.EMBED_DIM"]


def test_divisor_multiplies_the_heads_once_more() -> None:
    config = read_config(make_cfg({**BASE, **ODD}))
    assert [b.num_heads for b in config.blocks] == [1, 2, 2, 2]
    assert config.blocks[1].dim_out == 42  # 43 to a multiple of 3; of 2 it would be 44
    assert config.blocks[3].dim_out == 54  # 54.6 to a multiple of 2 heads


@needs_pyslowfast
def test_rounding_is_upstreams() -> None:
    from slowfast.models.utils import round_width as upstream

    for width in (*range(1, 40), 96, 144, 768):
        for multiplier in (0.1, 0.5, 0.9, 1.0, 1.05, 1.1, 1.25, 1.3, 1.5, 2.0, 2.7, 3.0):
            for divisor in (1, 2, 3, 4, 7, 16):
                expected = upstream(width, torch.tensor([multiplier])[0], divisor=divisor)
                assert round_width(width, multiplier, divisor) == expected


def test_config_is_not_written_to() -> None:
    cfg = make_cfg(BASE)
    cfg.freeze()
    before = copy.deepcopy(cfg)
    MViTv2(cfg)
    assert cfg == before


def test_no_yaml_is_needed_for_the_core_config() -> None:
    config = read_config(make_cfg(BASE))
    assert isinstance(config, MViTConfig)
    assert {type(n) for block in config.blocks for n in block.thw} == {int}


def test_more_than_one_pathway_is_refused() -> None:
    model = MViTv2(make_cfg(BASE))
    clip = torch.zeros(golden_data.load("slowfast_k400_s_like")["input_shape"])
    with pytest.raises(ValueError, match="2 clips"):
        model([clip, clip])


def test_any_clip_length_and_size() -> None:
    model = MViTv2(make_cfg(BASE)).eval()
    for frames, height, width in ((2, 64, 64), (8, 48, 80), (6, 72, 40)):
        assert model([torch.zeros(1, 3, frames, height, width)]).shape == (1, 7)


def test_activation_checkpointing_changes_nothing() -> None:
    clip = torch.randn(2, 3, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    gradients = []
    for on in (False, True):
        torch.manual_seed(0)
        off = {"MVIT.DROPPATH_RATE": 0.0, "MODEL.DROPOUT_RATE": 0.0}
        model = MViTv2(make_cfg({**BASE, **off, "MODEL.ACT_CHECKPOINT": on})).train()
        model([clip]).square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_forward_and_backward(dtype: torch.dtype) -> None:
    off = {"MVIT.DROPPATH_RATE": 0.0, "MODEL.DROPOUT_RATE": 0.0}
    model = MViTv2(make_cfg({**BASE, **off})).train()
    clip = torch.randn(2, 3, 4, 64, 64, generator=torch.Generator().manual_seed(1))
    exact = model([clip])
    with torch.autocast("cpu", dtype):
        out = model([clip])
    assert out.dtype == dtype
    assert error(out.float(), exact) < 0.1
    out.float().square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_files_say_who_reads_the_config() -> None:
    """No other file of the adapter reads the MVIT node, but the one that says how it was tested."""
    package = Path(__file__).parents[2] / "mvitv2_slowfast"
    readers = {p.name for p in package.glob("*.py") if re.search(r"cfg\.MVIT\b", p.read_text())}
    assert readers == {"config.py", "model_info.py"}
