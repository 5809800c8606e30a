#!/usr/bin/env bash
# Tunes all weights, with DeepSpeed ZeRO-3 over the GPUs of one machine.
#
#   BASE_MODEL=checkpoints/base DATA_PATH=train.jsonl OUTPUT_DIR=tuned bash finetune/scripts/full.sh
#
# Memory that each GPU needs (an estimate): python tools/checkpoint.py memory checkpoints/base --gpu_memory 32
# If it does not fit, give --micro_batch_size 1, or keep the optimizer in CPU memory:
#   CONFIG=pretrain/configs/zero3-offload-optimizer.json BASE_MODEL=… DATA_PATH=… OUTPUT_DIR=… bash finetune/scripts/full.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

export METHOD=full
source finetune/scripts/settings.sh
launch "$@"
