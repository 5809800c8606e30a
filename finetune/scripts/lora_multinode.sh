#!/usr/bin/env bash
# Tunes a LoRA adapter on several machines: the same line on each of them, within some minutes, only NODE_RANK differs.
#
#   NODES=3 NODE_RANK=0 MASTER_ADDR=10.0.0.1 BASE_MODEL=/shared/base DATA_PATH=/shared/train.jsonl \
#       OUTPUT_DIR=/shared/adapters/ie bash finetune/scripts/lora_multinode.sh       and NODE_RANK=1, 2 on the others
#
# BASE_MODEL, DATA_PATH and OUTPUT_DIR lie where all machines see them. 3 nodes of 8 V100 with MICRO_BATCH_SIZE=4 take
# BATCH_SIZE=96, 192, …: a multiple of 24 ranks x 4. Under Slurm:
#
#   srun --nodes 3 --ntasks-per-node 1 --gpus-per-node 8 bash -c 'NODES=$SLURM_NNODES NODE_RANK=$SLURM_NODEID \
#       MASTER_ADDR=$(scontrol show hostnames | head -n 1) bash finetune/scripts/lora_multinode.sh'
#
# MASTER_PORT  (29500) a port of MASTER_ADDR that the others reach
# METHOD       (lora) qlora and full go, too. The other settings: settings.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

BATCH_SIZE=${BATCH_SIZE:-192}
source finetune/scripts/settings.sh
NODES=${NODES:-1} NODE_RANK=${NODE_RANK:-} MASTER_PORT=${MASTER_PORT:-29500}
[[ $NODES =~ ^[1-9][0-9]*$ && $NODE_RANK =~ ^[0-9]+$ && -n ${MASTER_ADDR:-} ]] \
    || fail "NODES=$NODES, NODE_RANK=$NODE_RANK and MASTER_ADDR=${MASTER_ADDR:-} must say how many nodes, which, and where the first is"
((NODE_RANK < NODES)) || fail "NODE_RANK=$NODE_RANK of $NODES nodes; they are counted from 0"
nodes=(--nnodes "$NODES" --node_rank "$NODE_RANK" --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT")
launch "$@"
