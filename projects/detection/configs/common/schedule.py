"""AdamW and the step schedule that all recipes share, at the paper's 3x: 36 epochs of COCO.

Weight decay 0.1, none on norms and positions; lr falls tenfold at each milestone; 250 steps of
linear warm-up.
"""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler


def steps(max_iter, milestones):
    """lr over ``max_iter`` steps of 64 images, as a factor: 1, 0.1 and 0.01 between milestones."""
    return L(WarmupParamScheduler)(
        scheduler=L(MultiStepParamScheduler)(
            values=[1.0, 0.1, 0.01], milestones=milestones, num_updates=max_iter
        ),
        warmup_length=250 / max_iter,
        warmup_factor=0.001,
    )


train = model_zoo.get_config("common/train.py").train
train.amp.enabled = True
# As upstream with float16's scaled losses; without them small gradients would become zeros.
train.ddp.fp16_compression = "${..amp.enabled}"
train.max_iter = 67500
lr_multiplier = steps(train.max_iter, [52500, 62500])

optimizer = model_zoo.get_config("common/optim.py").AdamW
optimizer.lr = 1.6e-4
optimizer.params.overrides = {
    name: {"weight_decay": 0.0} for name in ("pos_embed", "rel_pos_h", "rel_pos_w")
}
