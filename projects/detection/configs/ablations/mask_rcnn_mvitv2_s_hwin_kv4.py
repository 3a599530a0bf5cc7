"""Hwin windows, kv stride 4, as in the main table. Published: box AP 49.9."""

from ..mask_rcnn_mvitv2_s_3x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.update(adaptive_window_size=56, adaptive_kv_stride=4)
