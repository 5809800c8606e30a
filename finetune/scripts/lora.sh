#!/usr/bin/env bash
# Tunes a LoRA adapter on the GPUs of one machine; the same command goes on where it was broken off.
#
#   BASE_MODEL=checkpoints/base DATA_PATH=train.jsonl OUTPUT_DIR=adapters/ie bash finetune/scripts/lora.sh
#
# On 8 V100 (fp16, found by itself), LLaMA-13B: 26 GB of weights do not leave room for much beside them in 32 GB
# (these sizes are reckoned, not tried).
#   MICRO_BATCH_SIZE=2 CUTOFF_LEN=512 BASE_MODEL=… DATA_PATH=… OUTPUT_DIR=… bash finetune/scripts/lora.sh
# On 8 A100 or H100 (bf16) of 80 GB:
#   MICRO_BATCH_SIZE=16 CUTOFF_LEN=1024 BASE_MODEL=… DATA_PATH=… OUTPUT_DIR=… bash finetune/scripts/lora.sh
#
# Further arguments go to finetune/finetune.py as they are: bash finetune/scripts/lora.sh --use_rslora --eval_generate
# The other settings, and what they are without: settings.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

source finetune/scripts/settings.sh
launch "$@"
