#!/usr/bin/env bash
# Continued pretraining on one machine: every GPU it has, or two ranks without one. Settings are environment variables:
#
#   MODEL=checkpoints/llama-13b DATA=corpus/all OUT=runs/zh bash pretrain/scripts/train.sh
#   MODEL=… DATA=… OUT=… PRECISION=fp16 MICRO_BATCH=8 ACCUMULATION=4 MAX_STEPS=1000 bash pretrain/scripts/train.sh
#   MODEL=… DATA=… OUT=… RANKS=4 bash pretrain/scripts/train.sh --lr_scheduler_type constant --save_total_limit 5
#
# MODEL   checkpoint folder to continue from; its seal is verified, where it has one
# DATA    prefix of a corpus that pretrain/preprocess.py wrote with that checkpoint's tokenizer
# OUT     folder for checkpoint-* and, at the end, the trained checkpoint
# RANKS   how many GPUs to use, from the first on (all; two ranks without one), or CUDA_VISIBLE_DEVICES=2,3: which
# The others, with their defaults, are in settings.sh; pretrain/plan.py prints a line with those that fit your machine.
# What follows the script's name goes to train.py last, so that it wins over a setting.
#
# A step has RANKS x MICRO_BATCH x ACCUMULATION rows: 8 GPUs x 4 x 8 = 256 rows of 4096 tokens are a million tokens.
#
# Ctrl-C, SIGTERM, or the terminal closed: it ends the step under way, saves, and leaves with status 143; Ctrl-C twice
# kills it. The same command goes on from the last complete checkpoint, after that as after a crash.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

where=(${RANKS:+--num_gpus "$RANKS"}) # none: all that CUDA_VISIBLE_DEVICES names, or all
source pretrain/scripts/settings.sh

[ "$gpus" -gt 0 ] || where=(--num_gpus "$RANKS")
[ "$gpus" = 0 ] || [ ${#where[@]} = 0 ] || [ -z "${CUDA_VISIBLE_DEVICES:-}" ] \
    || fail "RANKS and CUDA_VISIBLE_DEVICES both say which GPUs, and DeepSpeed would ignore the second; give one"
# A port of its own for the ranks to meet at, so that several runs fit on one machine.
MASTER_PORT=${MASTER_PORT:-$(python -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')}
launch deepspeed "${where[@]}" --master_port "$MASTER_PORT" pretrain/train.py "${options[@]}" "$@"
