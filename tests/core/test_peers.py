"""Our classifier against timm's and torchvision's MViTv2: mapped weights, both in float64."""

import pytest
import torch
from torch import nn

from mvitv2_core import MViTClassifier, MViTConfig
from mvitv2_core.checkpoint.formats import from_project
from tests.compare import error, gradient_error, loss_of, randomize


def compare(
    ours: nn.Module, reference: nn.Module, names: dict[str, str], clip: torch.Tensor
) -> None:
    weights = reference.state_dict()
    assert set(names.values()) == set(dict(reference.named_parameters()))
    shapes = {name: parameter.shape for name, parameter in ours.named_parameters()}
    state = {name: weights[theirs].view(shapes[name]) for name, theirs in names.items()}
    ours.load_state_dict(state, strict=True)
    same = clip.clone().requires_grad_()
    clip.requires_grad_()
    expected, got = reference(clip), ours(same)
    assert error(got, expected) < 1e-9
    loss_of(expected).backward()
    loss_of(got).backward()
    assert gradient_error(ours, reference, names) < 1e-8
    assert error(same.grad, clip.grad) < 1e-8


# Its size is fixed. Converting it (test_checkpoint_convert.py) is among the default tests.
@pytest.mark.slow
@pytest.mark.usefixtures("forms")
def test_torchvision_mvit_v2_s() -> None:
    video = pytest.importorskip("torchvision.models.video", reason="install torchvision to run")
    reference = randomize(video.mvit_v2_s(num_classes=13).double()).eval()
    config = MViTConfig.variant("S", (16, 224, 224), num_classes=13)
    ours = MViTClassifier(config).double().eval()
    _, names = from_project(ours.state_dict(), "torchvision")
    compare(ours, reference, names, torch.randn(1, 3, 16, 224, 224, dtype=torch.float64))


# timm adds pooled q to the class token's row as well, which the official code does not, so only
# its models without class token are references; its L grows its width in the MLP.
@pytest.mark.parametrize(
    ("name", "variant", "size"),
    [
        pytest.param("mvitv2_tiny", "T", 224, marks=pytest.mark.slow),
        pytest.param("mvitv2_tiny", "T", 160, marks=pytest.mark.slow),
        ("mvitv2_tiny", "T", 96),
        ("mvitv2_small", "S", 96),
        ("mvitv2_base", "B", 64),
        # Width that grows in the MLP has a golden file among the default tests.
        pytest.param("mvitv2_large", "L", 64, marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("forms")
def test_timm(name: str, variant: str, size: int) -> None:
    timm = pytest.importorskip("timm", reason="install timm to run")
    reference = timm.create_model(name, num_classes=13, img_size=size)
    reference = randomize(reference.double()).eval()
    in_att = variant != "L"
    config = MViTConfig.variant(variant, (size, size), num_classes=13, dim_mul_in_att=in_att)
    ours = MViTClassifier(config).double().eval()
    _, names = from_project(ours.state_dict(), "timm")
    theirs = dict(reference.named_parameters())
    assert set(names.values()) == set(theirs), set(names.values()) ^ set(theirs)
    compare(ours, reference, names, torch.randn(1, 3, size, size, dtype=torch.float64))
