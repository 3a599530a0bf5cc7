"""Reads a command line of ``mvitv2_slowfast.run_net`` as PySlowFast does, and trains nothing.

Prints every key that the line sets and the number of blocks of the model that it asks for.
"""

from mvitv2_slowfast.config import read_config
from mvitv2_slowfast.plugin import connect, register

register()
connect()
from slowfast.utils.parser import load_config, parse_args  # noqa: E402

args = parse_args()
cfg = load_config(args, args.cfg_files[0])
assert cfg.MODEL.MODEL_NAME == "MViTv2"
print(args.opts, len(read_config(cfg).blocks), "blocks")
