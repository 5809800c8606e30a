#!/usr/bin/env bash
# Tunes a LoRA adapter. Every setting is an environment variable; what is not set has the value below.
#
#   BASE_MODEL=checkpoints/base DATA_PATH=train.jsonl OUTPUT_DIR=adapters/ie bash finetune/scripts/lora.sh
#   GPUS=8 PRECISION=bf16 MICRO_BATCH_SIZE=8 BASE_MODEL=… DATA_PATH=… OUTPUT_DIR=… bash finetune/scripts/lora.sh
#
# Further arguments go to finetune/finetune.py as they are: bash finetune/scripts/lora.sh --logging_steps 1
# V100 has no bf16: PRECISION=fp16 there, bf16 on A100 and H100, fp32 on a CPU.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

[ -n "${BASE_MODEL:-}" ] && [ -n "${DATA_PATH:-}" ] && [ -n "${OUTPUT_DIR:-}" ] \
    || { echo "error: BASE_MODEL (checkpoint folder), DATA_PATH (rows) and OUTPUT_DIR (new folder) must be set; see the head of $0" >&2; exit 2; }
GPUS=${GPUS:-1}                                 # ranks on this machine
PRECISION=${PRECISION:-fp32}                    # fp32, fp16 or bf16
PROMPT_TEMPLATE_NAME=${PROMPT_TEMPLATE_NAME:-alpaca}
EXTRACTION_PATH=${EXTRACTION_PATH:-}            # extraction.json, when the data are extraction instructions
CUTOFF_LEN=${CUTOFF_LEN:-512}                   # tokens of the longest row
VAL_SET_SIZE=${VAL_SET_SIZE:-0}                 # rows held out for eval_loss, a count or a share
BATCH_SIZE=${BATCH_SIZE:-128}                   # rows a step: micro batch x accumulation x ranks
MICRO_BATCH_SIZE=${MICRO_BATCH_SIZE:-4}         # rows a rank takes at once
NUM_EPOCHS=${NUM_EPOCHS:-3}
LEARNING_RATE=${LEARNING_RATE:-3e-4}
LR_SCHEDULER_TYPE=${LR_SCHEDULER_TYPE:-cosine}
LORA_R=${LORA_R:-16}
LORA_ALPHA=${LORA_ALPHA:-32}
LORA_DROPOUT=${LORA_DROPOUT:-0.05}
LORA_TARGET_MODULES=${LORA_TARGET_MODULES:-all-linear}
SEED=${SEED:-42}

python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python)}
[ ! -f "$BASE_MODEL/checkpoint.json" ] || "$python" tools/checkpoint.py verify "$BASE_MODEL" # it is sealed
launch=("$python")
[ "$GPUS" = 1 ] || launch=("$python" -m torch.distributed.run --standalone --nproc_per_node "$GPUS")
extra=()
[ -z "$EXTRACTION_PATH" ] || extra+=(--extraction_path "$EXTRACTION_PATH")
[ "$PRECISION" = fp32 ] || extra+=("--$PRECISION")

exec "${launch[@]}" finetune/finetune.py \
    --base_model "$BASE_MODEL" --data_path "$DATA_PATH" --output_dir "$OUTPUT_DIR" --method lora \
    --prompt_template_name "$PROMPT_TEMPLATE_NAME" --cutoff_len "$CUTOFF_LEN" --val_set_size "$VAL_SET_SIZE" \
    --batch_size "$BATCH_SIZE" --micro_batch_size "$MICRO_BATCH_SIZE" --num_epochs "$NUM_EPOCHS" \
    --learning_rate "$LEARNING_RATE" --lr_scheduler_type "$LR_SCHEDULER_TYPE" \
    --lora_r "$LORA_R" --lora_alpha "$LORA_ALPHA" --lora_dropout "$LORA_DROPOUT" \
    --lora_target_modules "$LORA_TARGET_MODULES" --seed "$SEED" "${extra[@]}" "$@"
