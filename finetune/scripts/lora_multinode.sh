#!/usr/bin/env bash
# Tunes a LoRA adapter on several machines: start the command on every machine within a few minutes, each time with that
# machine's NODE_RANK.
#
#   NODES=3 NODE_RANK=0 MASTER_ADDR=10.0.0.1 BASE_MODEL=/shared/base DATA_PATH=/shared/train.jsonl \
#       OUTPUT_DIR=/shared/adapters/ie bash finetune/scripts/lora_multinode.sh
#
# The other two machines of this example have NODE_RANK=1 and NODE_RANK=2.
# BASE_MODEL, DATA_PATH and OUTPUT_DIR are on a file system that all machines share. --batch_size must be a multiple of
# (number of ranks) x --micro_batch_size: 24 ranks x 4 allow 96, 192 (the default here), 288 … Under Slurm, export
# BASE_MODEL, DATA_PATH and OUTPUT_DIR, then:
#
#   srun --nodes 3 --ntasks-per-node 1 --gpus-per-node 8 bash -c 'NODES=$SLURM_NNODES NODE_RANK=$SLURM_NODEID \
#       MASTER_ADDR=$(scontrol show hostnames | head -n 1) bash finetune/scripts/lora_multinode.sh'
#
# NODES        number of machines;  NODE_RANK  0 to NODES - 1;  MASTER_ADDR  address of machine 0; all required
# MASTER_PORT  (29500) a port of MASTER_ADDR that the other machines can reach
# METHOD       (lora) or qlora, full
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

source finetune/scripts/settings.sh
NODES=${NODES:-} NODE_RANK=${NODE_RANK:-} MASTER_PORT=${MASTER_PORT:-29500}
[[ $NODES =~ ^[1-9][0-9]*$ && $NODE_RANK =~ ^(0|[1-9][0-9]*)$ && -n ${MASTER_ADDR:-} ]] \
    || fail "NODES='$NODES', NODE_RANK='$NODE_RANK', MASTER_ADDR='${MASTER_ADDR:-}' are not valid settings; set NODES to the number of machines, NODE_RANK to the number of this machine (from 0) and MASTER_ADDR to the address of machine 0"
((NODE_RANK < NODES)) || fail "NODE_RANK=$NODE_RANK is out of range; $NODES machines have the numbers 0 to $((NODES - 1))"
first_rank=$((NODE_RANK * GPUS)) world_size=$((NODES * GPUS)) address=$MASTER_ADDR port=$MASTER_PORT
launch --batch_size 192 "$@"
