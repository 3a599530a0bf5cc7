#!/bin/bash
#SBATCH --job-name=mvitv2
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=48:00:00
#SBATCH --requeue
# A training on several machines under SLURM: one task a machine, whose trainer starts a process for
# each GPU. From the root of the repository, which all machines see:
#
#   sbatch projects/machines/slurm.sh yaml --config-file configs/COCO/mask_rcnn_mvitv2_t_3x.yaml \
#       --resume OUTPUT_DIR /shared/run
#
# The arguments are node.sh's. With --resume (PySlowFast resumes by itself) a job that SLURM queues
# again after a machine was lost goes on from its last checkpoint. What SLURM asks for is changed
# above, or on the command line before the script: sbatch --nodes=4 ...
set -euo pipefail
# sed reads all of it: a reader that left early would end scontrol, and with pipefail the job.
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
export NODES=$SLURM_JOB_NUM_NODES GPUS=${GPUS:-${SLURM_GPUS_ON_NODE:-8}}
export MEET=tcp://$first:${PORT:-$((20000 + SLURM_JOB_ID % 10000))}
# From SLURM 22.05 on srun does not read the job's --cpus-per-task: each task would get one CPU.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
# --kill-on-bad-exit: where one machine fails, the others are not left waiting for it.
exec srun --kill-on-bad-exit=1 bash -c 'NODE=$SLURM_NODEID exec bash projects/machines/node.sh "$@"' \
    node "$@"
