"""One scale instead of four: the last stage's, at stride 32, with all anchors on it.

The paper compares one scale with an FPN; its figures and settings are not known to us.
"""

from ..mask_rcnn_mvitv2_s_3x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.out_features = ("scale5",)
model.backbone.top_block = None  # the FPN is then a projection of that scale to 256 channels
model.proposal_generator.in_features = ["p5"]
model.proposal_generator.anchor_generator.update(sizes=[[32, 64, 128, 256, 512]], strides=[32])
model.proposal_generator.head.num_anchors = 15  # five sizes in three shapes
model.roi_heads.update(box_in_features=["p5"], mask_in_features=["p5"])
model.roi_heads.box_pooler.scales = model.roi_heads.mask_pooler.scales = (1 / 32,)
