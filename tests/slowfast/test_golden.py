"""Golden files of PySlowFast's own MViT, through the config reader and the adapter's head."""

from __future__ import annotations

import copy

import pytest
import torch

from mvitv2_slowfast import MViTv2
from tests import golden_data
from tests.slowfast_cfg import make_cfg

AVA = "slowfast_ava_detection_head"
CASES = [name for name in golden_data.names("slowfast_") if name != AVA]


def build(case: dict, **overrides: object) -> MViTv2:
    """The case's model with its drawn weights, in evaluation, its state dict checked by name."""
    cfg = make_cfg({**case["overrides"], **overrides})
    before = copy.deepcopy(cfg)
    model = MViTv2(cfg).eval()
    assert cfg == before
    assert {k: list(v.shape) for k, v in model.state_dict().items()} == case["state"]
    model.load_state_dict(golden_data.weights(case["state"]), strict=True)
    return model


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("forms")
def test_golden(name: str) -> None:
    case = golden_data.load(name)
    model, clip = build(case), golden_data.clip(name, case["input_shape"])
    output = model([clip])
    assert (output - torch.tensor(case["output"])).abs().max() < 1e-5
    assert torch.equal(model(clip), output)  # a bare tensor works too


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("forms")
def test_golden_training(name: str) -> None:
    case = golden_data.load(name)
    dropout_off = {"MODEL.DROPOUT_RATE": 0.0, "MVIT.DROPPATH_RATE": 0.0}
    model = build(case, **dropout_off).train()
    logits = model([golden_data.clip(name, case["input_shape"])])
    assert (logits - torch.tensor(case["train_logits"])).abs().max() < 1e-5
    # In float64: a key's bias shifts all logits of a row alike, so its true gradient is zero where
    # nothing else uses it, and in float32 rounding would be compared with rounding.
    model.double()([golden_data.clip(name, case["input_shape"]).double()]).square().sum().backward()
    norms = case["grad_norm_of_sum_of_squared_train_logits"]
    assert set(norms) == {key for key, _ in model.named_parameters()}
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.norm().item() == pytest.approx(norms[key], rel=1e-4, abs=1e-6), key


@pytest.mark.usefixtures("forms")
def test_golden_ava() -> None:
    pytest.importorskip(
        "slowfast.models.head_helper",
        reason="the RoI head is PySlowFast's: set PYSLOWFAST_ROOT to a checkout",
        exc_type=ImportError,
    )
    case = golden_data.load(AVA)
    output = build(case)([golden_data.clip(AVA, case["input_shape"])], torch.tensor(case["boxes"]))
    assert (output - torch.tensor(case["output"])).abs().max() < 1e-5


@pytest.mark.usefixtures("forms")
def test_sigmoid_and_none_in_evaluation() -> None:
    case = golden_data.load("slowfast_k400_s_like")
    clip = golden_data.clip("slowfast_k400_s_like", case["input_shape"])
    logits = build(case, **{"MODEL.HEAD_ACT": "none"})([clip])
    assert (logits - torch.tensor(case["train_logits"])).abs().max() < 1e-5
    sigmoid = build(case, **{"MODEL.HEAD_ACT": "sigmoid"})([clip])
    assert torch.equal(sigmoid, logits.sigmoid())
