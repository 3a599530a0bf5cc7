"""Pooling only, kv stride 4: no windows. Published: box AP 50.8."""

from ..mask_rcnn_mvitv2_s_3x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.update(adaptive_window_size=0)
