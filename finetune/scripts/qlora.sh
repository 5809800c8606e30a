#!/usr/bin/env bash
# Tunes a LoRA adapter on a base in 4 bits (NF4). The weights need a quarter of the memory of 16 bits: a 13B model fits
# a GPU of 16 GB, a 65B model one of 48 GB (Dettmers et al. 2023; not measured here). A step takes longer.
#
#   BASE_MODEL=checkpoints/base DATA_PATH=train.jsonl OUTPUT_DIR=adapters/ie bash finetune/scripts/qlora.sh
#
# --load_in 8bit loads the base in 8 bits. The adapter can be merged into the unquantised base, or served with it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

export METHOD=qlora
source finetune/scripts/settings.sh
launch "$@"
