"""MViTv2 as a PySlowFast model: ``MODEL.MODEL_NAME: MViTv2``."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from mvitv2_core import MViTClassifier
from mvitv2_core.training import bfloat16

from .config import read_adapter, read_config
from .image_init import load_image_weights


class MViTv2(MViTClassifier):
    """Video or image classifier, or AVA detector, built from a PySlowFast config.

    State-dict names and shapes equal those of PySlowFast's own ``MViT`` with the same config, so
    its checkpoints load strictly and its trainer's checkpoints go back.

    Args:
        cfg: PySlowFast's ``CfgNode``, read once and never written to. With ``DETECTION.ENABLE``
            PySlowFast must be importable, for its RoI head.

    Raises:
        ValueError: the config asks for something that this model does not have.
        ImportError: ``DETECTION.ENABLE`` without PySlowFast.
    """

    def __init__(self, cfg: Any) -> None:
        config = read_config(cfg)
        self.adapter = read_adapter(cfg, config.blocks[-1].dim_out)
        act_checkpoint, compile = self.adapter.act_checkpoint, self.adapter.compile
        super().__init__(config, act_checkpoint=act_checkpoint, compile=compile)
        load_image_weights(self, cfg)

    def build_head(self) -> nn.Module:
        """PySlowFast's RoI head with ``DETECTION.ENABLE``, else core's."""
        if self.adapter.roi is None:
            return super().build_head()
        try:
            from slowfast.models.head_helper import ResNetRoIHead
        except ImportError as error:
            raise ImportError(
                "DETECTION.ENABLE needs PySlowFast's RoI head: set PYSLOWFAST_ROOT to a checkout "
                f"({error})"
            ) from error
        head = ResNetRoIHead(**self.adapter.roi)
        # Its pool over time, of the one frame that forward gives it: AvgPool3d has no deterministic
        # gradient on a GPU.
        head.s0_tpool = nn.Identity()
        return head

    def forward(  # type: ignore[override]
        self, x: Tensor | Sequence[Tensor], bboxes: Tensor | None = None
    ) -> Tensor:
        """A clip, or a list of one clip as PySlowFast's loaders give it.

        Args:
            x: (B, C, T, H, W), or (B, C, H, W) with ``MVIT.PATCH_2D``, of any size.
            bboxes: (R, 5) rows (index in the batch, x1, y1, x2, y2) in pixels, for detection.

        Returns:
            (B, num_classes) logits in training and probabilities in evaluation
            (``MODEL.HEAD_ACT``); for detection, (R, num_classes) probabilities in both, as
            PySlowFast's RoI head gives them and its AVA loss expects them.
        """
        if not isinstance(x, Tensor):
            if len(x) != 1:
                raise ValueError(f"x must be one clip or a list of one clip, got {len(x)} clips")
            x = x[0]
        mixed = self.training and self.adapter.bfloat16
        with bfloat16(x.device) if mixed else nullcontext():
            tokens, thw = self.tokens(x)
        if mixed:  # the trainer's loss is outside of the model: the head gives it float32
            tokens = tokens.to(next(self.norm.parameters()).dtype)
        if self.adapter.roi is not None:
            tokens = self.norm(tokens)[:, int(self.config.cls_token) :]
            # (B, N, C) -> (B, C, T, H, W) -> (B, C, 1, H, W)
            grid = tokens.transpose(1, 2).unflatten(2, thw).mean(dim=2, keepdim=True)
            return self.head([grid], bboxes)
        logits = self.head(self.pool_tokens(tokens))
        return logits if self.training else self._act(logits)

    def _act(self, x: Tensor) -> Tensor:
        """(B, num_classes) logits -> what PySlowFast's meters average over views."""
        if self.adapter.act == "softmax":
            return x.softmax(dim=1)
        return x.sigmoid() if self.adapter.act == "sigmoid" else x

    @torch.jit.ignore
    def no_weight_decay(self) -> list[str]:
        """Parts of names without weight decay, where ``MVIT.ZERO_DECAY_POS_CLS`` asks for it.

        PySlowFast's optimizer matches them as substrings of parameter names; the list is
        upstream's, with ``rel_pos_hw`` (a table that no model has) left as it stands there. With
        ``SOLVER.LAYER_DECAY`` below 1 upstream matches whole names instead, and relative positions
        decay: here as there.
        """
        if not self.adapter.zero_decay:
            return []
        names = {
            "none": [],
            "joint": ["pos_embed"],
            "separate": ["pos_embed_spatial", "pos_embed_temporal", "pos_embed_class"],
        }[self.config.abs_pos]
        temporal, spatial, _ = self.config.rel_pos
        names += ["rel_pos_h", "rel_pos_w", "rel_pos_hw"] if spatial else []
        names += ["rel_pos_t"] if temporal else []
        return names + (["cls_token"] if self.config.cls_token else [])
