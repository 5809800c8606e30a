#!/usr/bin/env bash
# Tunes a LoRA adapter on the GPUs of one machine; the same command resumes an interrupted run.
#
#   BASE_MODEL=checkpoints/base DATA_PATH=train.jsonl OUTPUT_DIR=adapters/ie bash finetune/scripts/lora.sh
#
# Arguments are options of finetune/finetune.py. LLaMA-13B on 8 V100 of 32 GB (fp16 is detected): the weights take 26 GB
# on each GPU. The following settings are estimates that were not measured:
#   BASE_MODEL=… DATA_PATH=… OUTPUT_DIR=… bash finetune/scripts/lora.sh --micro_batch_size 2 --cutoff_len 512
# On 8 A100 or H100 of 80 GB (bf16): --micro_batch_size 16 --cutoff_len 1024. Other settings: settings.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

source finetune/scripts/settings.sh
launch "$@"
