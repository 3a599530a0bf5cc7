#!/bin/bash
# One machine's part of a training on several, with detectron2 or PySlowFast. From the root of the
# repository, the same command on each of them; slurm.sh and torchrun.sh start it so:
#
#   NODES=2 NODE=0 GPUS=8 MEET=tcp://FIRST_MACHINE:29500 bash projects/machines/node.sh yaml \
#       --config-file configs/COCO/mask_rcnn_mvitv2_t_3x.yaml --resume OUTPUT_DIR /shared/run
#
# NODE is this machine's number from 0, GPUS the number on each, MEET an address of machine 0 that
# all reach, with a port that is free there. The first argument is a trainer:
#   yaml   projects/detection/train_net.py: detectron2's YAML files, and train.sharded=True
#   lazy   detectron2's own lazyconfig_train_net.py
#   video  PySlowFast's run_net.py; its --opts come last, and NUM_GPUS is added to them
# PYTHON is the interpreter, "python" by default.
set -euo pipefail
: "${NODES:?machines, all together}" "${NODE:?number of this machine, from 0}"
: "${GPUS:?GPUs of each machine}" "${MEET:?tcp://FIRST_MACHINE:PORT}"
trainer=${1:?yaml, lazy or video}
python=${PYTHON:-python}
shift
detectron2=(--num-gpus "$GPUS" --num-machines "$NODES" --machine-rank "$NODE" --dist-url "$MEET")
case $trainer in
yaml) exec "$python" projects/detection/train_net.py "${detectron2[@]}" "$@" ;;
lazy)
    tool=$("$python" projects/detection/find_tools.py lazyconfig_train_net.py)
    exec "$python" "$tool" "${detectron2[@]}" "$@"
    ;;
video)
    [[ " $* " == *" --opts "* ]] || set -- "$@" --opts
    exec "$python" -m mvitv2_slowfast.run_net --num_shards "$NODES" --shard_id "$NODE" \
        --init_method "$MEET" "$@" NUM_GPUS "$GPUS"
    ;;
*)
    echo "the trainer must be yaml, lazy or video, got $trainer" >&2
    exit 2
    ;;
esac
