"""Hwin windows with kv stride 8. No figure published."""

from ..mask_rcnn_mvitv2_s_3x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.update(adaptive_kv_stride=8)
