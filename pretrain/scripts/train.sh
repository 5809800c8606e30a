#!/usr/bin/env bash
# Continued pretraining on one machine: every GPU it has, or two ranks without one. Settings are environment variables:
#
#   MODEL=checkpoints/llama-13b DATA=corpus/all OUT=runs/zh bash pretrain/scripts/train.sh
#   MODEL=… DATA=… OUT=… RANKS=8 MICRO_BATCH=4 ACCUMULATION=8 PRECISION=fp16 bash pretrain/scripts/train.sh --max_steps 1000
#
# What follows the script's name goes to train.py as it is. A run that was stopped goes on from its last checkpoint.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

fail() { echo "error: $*" >&2; exit 2; }
[ -n "${MODEL:-}" ] && [ -n "${DATA:-}" ] && [ -n "${OUT:-}" ] \
    || fail "MODEL (checkpoint folder), DATA (corpus prefix) and OUT (new folder) must be set; the head of $0 shows how"

PATH=$(cd "${VENV:-.venv}/bin" && pwd):$PATH || fail "there is no environment yet; make it: bash tools/setup.sh"
export PATH
[ ! -f "$MODEL/checkpoint.json" ] || python tools/checkpoint.py verify "$MODEL" # it is sealed
gpus=$(nvidia-smi -L 2> /dev/null | grep -c '^GPU' || true)
RANKS=${RANKS:-$((gpus > 0 ? gpus : 2))}
# bf16 from Ampere on; fp16 on V100; float32 where there is no GPU.
PRECISION=${PRECISION:-$([ "$gpus" -gt 0 ] && echo bf16 || echo fp32)}
MICRO_BATCH=${MICRO_BATCH:-4} ACCUMULATION=${ACCUMULATION:-8} LEARNING_RATE=${LEARNING_RATE:-2e-5} EPOCHS=${EPOCHS:-1}
CONFIG=${CONFIG:-pretrain/configs/zero3.json} SAVE_STEPS=${SAVE_STEPS:-500} LOG_STEPS=${LOG_STEPS:-10}
export TORCH_EXTENSIONS_DIR=${TORCH_EXTENSIONS_DIR:-${TMPDIR:-/tmp}/torch_extensions.$$}
if [ "$gpus" = 0 ]; then
    export DS_ACCELERATOR=cpu OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((($(nproc) + RANKS - 1) / RANKS))}
fi

options=(--model_name_or_path "$MODEL" --data_path "$DATA" --output_dir "$OUT" --deepspeed "$CONFIG"
    --per_device_train_batch_size "$MICRO_BATCH" --gradient_accumulation_steps "$ACCUMULATION"
    --learning_rate "$LEARNING_RATE" --num_train_epochs "$EPOCHS" --save_steps "$SAVE_STEPS" --logging_steps "$LOG_STEPS")
case "$PRECISION" in
    bf16 | fp16) options+=("--$PRECISION" True) ;;
    fp32) ;;
    *) fail "PRECISION=$PRECISION is not bf16, fp16 or fp32" ;;
esac
[ "$gpus" = 0 ] || options+=(--gradient_checkpointing True)
if compgen -G "$OUT/checkpoint-*/trainer_state.json" > /dev/null; then options+=(--resume_from_checkpoint True); fi

# A port of its own for the ranks to meet at, so that several runs fit on one machine.
MASTER_PORT=${MASTER_PORT:-$(python -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')}
exec deepspeed --num_gpus "$RANKS" --master_port "$MASTER_PORT" pretrain/train.py "${options[@]}" "$@"
