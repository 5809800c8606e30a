#!/usr/bin/env bash
# Tunes all weights, with DeepSpeed ZeRO-3 over the GPUs of one machine.
#
#   BASE_MODEL=checkpoints/base DATA_PATH=train.jsonl OUTPUT_DIR=tuned bash finetune/scripts/full.sh
#
# Estimates, not measured: mixed precision needs 16 bytes per weight over all GPUs. LLaMA-7B: 108 GB, 13.5 GB on each of 8.
# LLaMA-13B on 8 V100 of 32 GB (fp16): 26 GB on each, so give --micro_batch_size 1, or keep the optimizer in CPU memory:
#   CONFIG=pretrain/configs/zero3-offload-optimizer.json BASE_MODEL=… DATA_PATH=… OUTPUT_DIR=… bash finetune/scripts/full.sh
# On 8 A100 or H100 of 80 GB (bf16): --micro_batch_size 8.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

export METHOD=full
source finetune/scripts/settings.sh
launch "$@"
