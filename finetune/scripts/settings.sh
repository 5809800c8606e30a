#!/usr/bin/env bash
# What lora.sh, qlora.sh, full.sh and lora_multinode.sh share: settings from the environment, checked and turned into
# finetune.py's options. They source it from the repository's top; by itself it tunes nothing.
#
# Every setting is an environment variable; what is not set has the value below. BASE_MODEL, DATA_PATH and OUTPUT_DIR
# have none.
set -euo pipefail

fail() { echo "error: $*" >&2; exit 2; }

[ -n "${BASE_MODEL:-}" ] && [ -n "${DATA_PATH:-}" ] && [ -n "${OUTPUT_DIR:-}" ] \
    || fail "BASE_MODEL (checkpoint folder), DATA_PATH (rows) and OUTPUT_DIR (new folder) must be set; the head of $0 shows how"
gpus=$(nvidia-smi -L 2> /dev/null | grep -c '^GPU' || true)
# V100 (compute capability 7.0) has no bf16; from 8.0 on there is.
precise=$([ "$gpus" = 0 ] && echo fp32 || nvidia-smi --query-gpu=compute_cap --format=csv,noheader \
    | awk 'NR == 1 {print ($1 >= 8 ? "bf16" : "fp16")}')

GPUS=${GPUS:-$((gpus > 0 ? gpus : 1))}          # ranks on this machine
PRECISION=${PRECISION:-$precise}                # bf16 (Ampere and later), fp16 (V100), fp32
METHOD=${METHOD:-lora}                          # lora, qlora, full
PROMPT_TEMPLATE_NAME=${PROMPT_TEMPLATE_NAME:-}  # empty: the base's own, or alpaca where it has none
MIX=${MIX:-}                                    # proportions of several sources: zh=2,en=1
EXTRACTION_PATH=${EXTRACTION_PATH:-}            # extraction.json; empty: the one beside the rows, if any
CUTOFF_LEN=${CUTOFF_LEN:-512}                   # tokens of the longest row
VAL_SET_SIZE=${VAL_SET_SIZE:-0}                 # rows held out for eval_loss, a count or a share
BATCH_SIZE=${BATCH_SIZE:-128}                   # rows a step, on all ranks together
MICRO_BATCH_SIZE=${MICRO_BATCH_SIZE:-4}         # times CUTOFF_LEN: tokens that a rank takes at once
NUM_EPOCHS=${NUM_EPOCHS:-3}
LEARNING_RATE=${LEARNING_RATE:-$([ "$METHOD" = full ] && echo 2e-5 || echo 3e-4)}
LR_SCHEDULER_TYPE=${LR_SCHEDULER_TYPE:-cosine}
LORA_R=${LORA_R:-16}
LORA_ALPHA=${LORA_ALPHA:-32}
LORA_DROPOUT=${LORA_DROPOUT:-0}
LORA_TARGET_MODULES=${LORA_TARGET_MODULES:-all-linear}
SAVE_STEPS=${SAVE_STEPS:-200}                   # steps from a checkpoint to the next
REPORT_TO=${REPORT_TO:-tensorboard}             # tensorboard, wandb, none
SEED=${SEED:-42}
# Full tuning spreads weights, gradients and optimizer over the ranks. An adapter does without.
CONFIG=${CONFIG:-$([ "$METHOD" != full ] || echo "pretrain/configs/zero3$([ "$PRECISION" != fp16 ] || echo -fp16).json")}

case "$PRECISION" in bf16 | fp16 | fp32) ;; *) fail "PRECISION=$PRECISION is not bf16, fp16 or fp32" ;; esac
case "$METHOD" in lora | qlora | full) ;; *) fail "METHOD=$METHOD is not lora, qlora or full" ;; esac
[[ $GPUS =~ ^[1-9][0-9]*$ ]] || fail "GPUS=$GPUS is not a number of ranks"
[ -f "$BASE_MODEL/config.json" ] || fail "BASE_MODEL=$BASE_MODEL is no checkpoint folder: there is no $BASE_MODEL/config.json"
[ -z "$CONFIG" ] || [ -f "$CONFIG" ] || fail "CONFIG=$CONFIG does not exist; pretrain/configs has some"

bin=${VENV:-.venv}/bin
[ ! -d "$bin" ] || PATH=$(cd "$bin" && pwd):$PATH
export PATH
if [ "$gpus" = 0 ]; then
    export DS_ACCELERATOR=cpu # or DeepSpeed says at every start that it found no GPU
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((($(nproc) + GPUS - 1) / GPUS))}
fi
# Where DeepSpeed compiles small operations: for this run alone, since a stale lock in the shared folder hangs its start.
[ -z "$CONFIG" ] || export TORCH_EXTENSIONS_DIR=${TORCH_EXTENSIONS_DIR:-${TMPDIR:-/tmp}/torch_extensions.$$}

options=(--base_model "$BASE_MODEL" --data_path "$DATA_PATH" --output_dir "$OUTPUT_DIR" --method "$METHOD"
    --prompt_template_name "$PROMPT_TEMPLATE_NAME" --cutoff_len "$CUTOFF_LEN" --val_set_size "$VAL_SET_SIZE"
    --batch_size "$BATCH_SIZE" --micro_batch_size "$MICRO_BATCH_SIZE" --num_epochs "$NUM_EPOCHS"
    --learning_rate "$LEARNING_RATE" --lr_scheduler_type "$LR_SCHEDULER_TYPE" --save_steps "$SAVE_STEPS"
    --report_to "$REPORT_TO" --seed "$SEED")
[ "$METHOD" = full ] || options+=(--lora_r "$LORA_R" --lora_alpha "$LORA_ALPHA" --lora_dropout "$LORA_DROPOUT"
    --lora_target_modules "$LORA_TARGET_MODULES")
[ -z "$MIX" ] || options+=(--mix "$MIX")
[ -z "$EXTRACTION_PATH" ] || options+=(--extraction_path "$EXTRACTION_PATH")
[ -z "$CONFIG" ] || options+=(--deepspeed "$CONFIG")
[ "$PRECISION" = fp32 ] || options+=("--$PRECISION" True)
[ "$gpus" = 0 ] || options+=(--gradient_checkpointing True) # a third more work for a fraction of the memory
if compgen -G "$OUTPUT_DIR/checkpoint-*/complete.json" > /dev/null; then
    options+=(--resume_from_checkpoint True)
elif [ -f "$BASE_MODEL/checkpoint.json" ]; then # it is sealed
    python tools/checkpoint.py verify "$BASE_MODEL"
fi

# launch MORE…: the ranks of this machine; `nodes` says how machines meet.
nodes=(--standalone)
launch() {
    local command=(python)
    [ "$GPUS" = 1 ] && [ "${nodes[0]}" = --standalone ] && [ -z "$CONFIG" ] \
        || command=(python -m torch.distributed.run "${nodes[@]}" --nproc_per_node "$GPUS")
    exec "${command[@]}" finetune/finetune.py "${options[@]}" "$@"
}
