"""Absolute positions instead of relative ones. No figure known to us."""

from ..mask_rcnn_mvitv2_s_3x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.update(use_abs_pos=True, use_rel_pos=False)
