"""Without residual pooling. No COCO figure known to us."""

from ..mask_rcnn_mvitv2_s_3x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.update(residual_pooling=False)
