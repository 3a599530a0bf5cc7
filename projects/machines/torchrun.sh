#!/bin/bash
# A training on several machines under torchrun, which numbers the machines and starts all of them
# again when one fails. From the root of the repository, the same command on each:
#
#   NODES=2 GPUS=8 FIRST=host:29500 RESTARTS=3 bash projects/machines/torchrun.sh yaml \
#       --config-file configs/COCO/mask_rcnn_mvitv2_t_3x.yaml --resume OUTPUT_DIR /shared/run
#
# The arguments are node.sh's. Both trainers start their processes themselves, one for each GPU:
# torchrun starts one process a machine, and their ranks meet in torchrun's store.
set -euo pipefail
: "${NODES:?machines, all together}" "${GPUS:?GPUs of each}" "${FIRST:?HOST:PORT of the first}"
export NODES GPUS
exec torchrun --nnodes "$NODES" --nproc-per-node 1 --max-restarts "${RESTARTS:-0}" \
    --rdzv-backend c10d --rdzv-id mvitv2 --rdzv-endpoint "$FIRST" ${LOCAL:+--local-addr "$LOCAL"} \
    --no-python bash -c 'NODE=$GROUP_RANK MEET=tcp://$MASTER_ADDR:$MASTER_PORT \
    exec bash projects/machines/node.sh "$@"' node "$@"
