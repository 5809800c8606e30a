#!/usr/bin/env bash
# Tunes a LoRA adapter on the GPUs of one machine; the same command resumes an interrupted run.
#
#   BASE_MODEL=checkpoints/base DATA_PATH=train.jsonl OUTPUT_DIR=adapters/ie bash finetune/scripts/lora.sh
#
# LLaMA-13B on 8 V100 of 32 GB (fp16 is detected): the weights take 26 GB of each. Estimates, not measured:
#   MICRO_BATCH_SIZE=2 CUTOFF_LEN=512 BASE_MODEL=… DATA_PATH=… OUTPUT_DIR=… bash finetune/scripts/lora.sh
# On 8 A100 or H100 of 80 GB (bf16):
#   MICRO_BATCH_SIZE=16 CUTOFF_LEN=1024 BASE_MODEL=… DATA_PATH=… OUTPUT_DIR=… bash finetune/scripts/lora.sh
#
# Further arguments are passed to finetune/finetune.py: bash finetune/scripts/lora.sh --use_rslora --eval_generate
# settings.sh lists the other settings and their defaults.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

source finetune/scripts/settings.sh
launch "$@"
