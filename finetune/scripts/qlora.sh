#!/usr/bin/env bash
# Tunes a LoRA adapter on a base held in 4 bits (NF4): a quarter of the memory for weights, so that a 13B model fits a
# GPU of 16 GB and a 65B one of 48 GB (after Dettmers et al. 2023; not tried here); a step takes longer, since weights are unpacked as they are used.
#
#   BASE_MODEL=checkpoints/base DATA_PATH=train.jsonl OUTPUT_DIR=adapters/ie bash finetune/scripts/qlora.sh
#
# On 8 V100 (fp16) or A100, H100 (bf16) the same line; --load_in 8bit takes 8 bits instead.
# The adapter is merged into the whole base, or served beside it. The other settings: settings.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

export METHOD=qlora
source finetune/scripts/settings.sh
launch "$@"
