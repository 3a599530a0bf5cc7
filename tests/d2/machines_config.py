"""The toy recipe for several gloo ranks, for detectron2's own lazyconfig_train_net.py.

Each rank records into a folder of its own, and gets its share of a batch, which depends on the
iteration and the rank alone.
"""

import os
from pathlib import Path

from detectron2.engine import defaults
from detectron2.utils import comm
from torch.nn.parallel import DistributedDataParallel

from tests.d2 import kill_config as _base

os.environ["KILL_FOLDER"] += f"/rank{comm.get_rank()}"
Path(os.environ["KILL_FOLDER"]).mkdir(exist_ok=True)


def on_cpus(module, device_ids=None, **options):
    """DDP as detectron2 calls it, which names a GPU of each rank."""
    return DistributedDataParallel(module, **options)


defaults.DistributedDataParallel = on_cpus
model, dataloader, train = _base.model, _base.dataloader, _base.train
optimizer, lr_multiplier = _base.optimizer, _base.lr_multiplier
dataloader.train.total_batch_size = 4
