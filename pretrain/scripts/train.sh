#!/usr/bin/env bash
# Continued pretraining on one machine, on all of its GPUs or on two CPU ranks. Settings are environment variables:
#
#   MODEL=checkpoints/llama-13b DATA=corpus/all OUT=runs/zh bash pretrain/scripts/train.sh
#   MODEL=… DATA=… OUT=… PRECISION=fp16 MICRO_BATCH=8 ACCUMULATION=4 MAX_STEPS=1000 bash pretrain/scripts/train.sh
#   MODEL=… DATA=… OUT=… RANKS=4 bash pretrain/scripts/train.sh --lr_scheduler_type constant --save_total_limit 5
#
# MODEL   checkpoint folder to continue from; if it has a checkpoint.json (tools/checkpoint.py), its files are verified
# DATA    prefix of a corpus that pretrain/preprocess.py wrote with that checkpoint's tokenizer
# OUT     folder for checkpoint-* and, at the end, the trained checkpoint
# RANKS   number of ranks, one for each GPU (default: all GPUs; without a GPU, two CPU ranks). To choose the GPUs, set
#         CUDA_VISIBLE_DEVICES=2,3 instead
# settings.sh has the other settings with their defaults; pretrain/plan.py prints a command with values for your GPUs.
# Arguments after the script's name are passed to train.py last and override settings.
#
# Global batch = RANKS x MICRO_BATCH x ACCUMULATION: 8 GPUs x 4 x 8 = 256 sequences. By default, BLOCK_SIZE is the
# model's context, at most 4096 tokens; LLaMA-13B has 2048, so a step has half a million tokens.
#
# Ctrl-C, SIGTERM or a closed terminal: the run finishes the step, saves a checkpoint and exits with status 143; a
# second Ctrl-C kills it. The same command resumes from the newest complete checkpoint, also after a crash.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

where=(${RANKS:+--num_gpus "$RANKS"}) # without --num_gpus, DeepSpeed uses the GPUs of CUDA_VISIBLE_DEVICES, or all GPUs
source pretrain/scripts/settings.sh

[ "$gpus" -gt 0 ] || where=(--num_gpus "$RANKS")
[ "$gpus" = 0 ] || [ ${#where[@]} = 0 ] || [ -z "${CUDA_VISIBLE_DEVICES:-}" ] \
    || fail "RANKS and CUDA_VISIBLE_DEVICES both choose GPUs, and DeepSpeed would ignore the latter; unset one of them"
# A free port, so that several runs can share a machine.
MASTER_PORT=${MASTER_PORT:-$(python -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')}
launch deepspeed "${where[@]}" --master_port "$MASTER_PORT" pretrain/train.py "${options[@]}" "$@"
