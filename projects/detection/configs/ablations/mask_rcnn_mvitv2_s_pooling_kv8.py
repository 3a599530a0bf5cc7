"""Pooling only, kv stride 8: no windows. Published: box AP 50.0."""

from ..mask_rcnn_mvitv2_s_3x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.update(adaptive_window_size=0, adaptive_kv_stride=8)
