"""A trunk whose outputs are feature maps: what ``create_model(..., features_only=True)`` gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from .attention import NormLayer
from .block import ActLayer
from .checks import refuse
from .config import MViTConfig
from .features import FeatureInfo, take_indices
from .model import LAYER_NORM, MViT


class MViTFeatures(MViT):
    """(B, C, *spatial) -> a (B, C, *grid) map for each chosen stage, without head and last norm.

    Takes the arguments of ``MViT``. Blocks after the last chosen stage are not built. Names in the
    state dict are those of the classifier, so that ``load_checkpoint(model, file, backbone=True)``
    loads its weights, where all stages are there.

    Args:
        out_indices: stages, as ``forward_intermediates`` takes ``indices``; None for all.

    ``feature_info`` has channels and strides of the chosen stages.
    """

    def __init__(
        self,
        config: MViTConfig,
        norm_layer: NormLayer = LAYER_NORM,
        act_layer: ActLayer = nn.GELU,
        act_checkpoint: bool = False,
        compile: bool = False,
        out_indices: int | Sequence[int] | None = None,
    ) -> None:
        if not isinstance(config, MViTConfig):
            refuse("config", "an MViTConfig", config, TypeError)
        indices = sorted(set(take_indices(len(config.stage_ends), out_indices)))
        blocks = config.blocks[: config.stage_ends[indices[-1]] + 1]
        config = replace(config, blocks=blocks)
        super().__init__(config, norm_layer, act_layer, act_checkpoint, compile)
        self.out_indices = tuple(indices)
        self.apply(self.init_weights)

    @property
    def feature_info(self) -> FeatureInfo:
        """Channels and strides; ``channels()`` and the like list the chosen stages."""
        return FeatureInfo(self.config, self.out_indices)

    def forward(self, x: Tensor) -> list[Tensor]:  # type: ignore[override]
        """(B, C, *spatial) -> maps (B, C, *grid), the finest first."""
        return self.forward_intermediates(x, self.out_indices, intermediates_only=True)


def features_of(
    model: MViT, out_indices: int | Sequence[int] | None = None, compile: bool = False
) -> MViTFeatures:
    """The trunk of a model as ``MViTFeatures``, on the model's own tensors and in its mode.

    Args:
        model: a trunk or classifier with PyTorch's LayerNorm and GELU, this project's default.
        out_indices: see ``MViTFeatures``.
        compile: compile each block anew.
    """
    with torch.device("meta"):  # without memory of its own
        features = MViTFeatures(
            model.config,
            act_checkpoint=model.act_checkpoint,
            compile=compile,
            out_indices=out_indices,
        )
    held = model.state_dict(keep_vars=True)
    features.load_state_dict({name: held[name] for name in features.state_dict()}, assign=True)
    return features.train(model.training)
