#!/usr/bin/env bash
# Tunes all weights, with DeepSpeed ZeRO-3 over the GPUs of one machine.
#
#   BASE_MODEL=checkpoints/base DATA_PATH=train.jsonl OUTPUT_DIR=tuned bash finetune/scripts/full.sh
#
# Reckoned, not tried: 16 bytes a weight in mixed precision, over all GPUs. LLaMA-7B's 108 GB are 13.5 GB on each of 8.
# LLaMA-13B on 8 V100 of 32 GB (fp16) needs 26 GB of each, so take MICRO_BATCH_SIZE=1, or the processor's memory for the
# optimizer:
#   CONFIG=pretrain/configs/zero3-offload-optimizer.json BASE_MODEL=… DATA_PATH=… OUTPUT_DIR=… bash finetune/scripts/full.sh
# On 8 A100 or H100 of 80 GB (bf16): MICRO_BATCH_SIZE=8.
# The other settings: settings.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

export METHOD=full
source finetune/scripts/settings.sh
launch "$@"
