#!/usr/bin/env bash
# Settings of lora.sh, qlora.sh, full.sh and lora_multinode.sh, which source this file in the top folder of the repository:
# finds GPUs and precision, checks the settings, and starts finetune.py. BASE_MODEL, DATA_PATH and OUTPUT_DIR are
# required; arguments of a recipe are further options of finetune.py.
set -euo pipefail

fail() { echo "error: $*" >&2; exit 2; }

[ -n "${BASE_MODEL:-}" ] && [ -n "${DATA_PATH:-}" ] && [ -n "${OUTPUT_DIR:-}" ] \
    || fail "BASE_MODEL (checkpoint folder), DATA_PATH (instruction data) and OUTPUT_DIR (new folder) must be set; the first lines of $0 show an example"
gpus=$(nvidia-smi -L 2> /dev/null | grep -c '^GPU' || true)
# GPUs have bf16 from compute capability 8.0 on; V100 has 7.0.
precise=$([ "$gpus" = 0 ] && echo fp32 || nvidia-smi --query-gpu=compute_cap --format=csv,noheader \
    | awk 'NR == 1 {print ($1 >= 8 ? "bf16" : "fp16")}')

GPUS=${GPUS:-$((gpus > 0 ? gpus : 1))}          # ranks on this machine
PRECISION=${PRECISION:-$precise}                # bf16 (Ampere and later), fp16 (V100), fp32
METHOD=${METHOD:-lora}                          # lora, qlora, full
# Full tuning partitions weights, gradients and optimizer states among the ranks (ZeRO-3); an adapter does not need it.
CONFIG=${CONFIG:-$([ "$METHOD" != full ] || echo "pretrain/configs/zero3$([ "$PRECISION" != fp16 ] || echo -fp16).json")}

case "$PRECISION" in bf16 | fp16 | fp32) ;; *) fail "PRECISION=$PRECISION is not bf16, fp16 or fp32" ;; esac
[[ $GPUS =~ ^[1-9][0-9]*$ ]] || fail "GPUS=$GPUS is not a positive number of ranks"
[ -f "$BASE_MODEL/config.json" ] || fail "BASE_MODEL=$BASE_MODEL is not a checkpoint folder: it has no config.json"
[ -z "$CONFIG" ] || [ -f "$CONFIG" ] || fail "CONFIG=$CONFIG does not exist; pretrain/configs has some"

bin=${VENV:-.venv}/bin
[ ! -d "$bin" ] || PATH=$(cd "$bin" && pwd):$PATH
export PATH
if [ "$gpus" = 0 ]; then
    export DS_ACCELERATOR=cpu # else DeepSpeed warns at every start that it found no GPU
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((($(nproc) + GPUS - 1) / GPUS))}
fi
# Folder in which DeepSpeed compiles operations: one for each run, since a stale lock in a shared folder blocks the start.
[ -z "$CONFIG" ] || export TORCH_EXTENSIONS_DIR=${TORCH_EXTENSIONS_DIR:-${TMPDIR:-/tmp}/torch_extensions.$$}

options=(--base_model "$BASE_MODEL" --data_path "$DATA_PATH" --output_dir "$OUTPUT_DIR" --method "$METHOD"
    --lr_scheduler_type cosine)
[ "$METHOD" != full ] || options+=(--learning_rate 2e-5)
[ -z "$CONFIG" ] || options+=(--deepspeed "$CONFIG")
[ "$PRECISION" = fp32 ] || options+=("--$PRECISION" True)
[ "$gpus" = 0 ] || options+=(--gradient_checkpointing True) # a third more computation for a fraction of the memory
if compgen -G "$OUTPUT_DIR/checkpoint-*/complete.json" > /dev/null; then
    options+=(--resume_from_checkpoint True)
elif [ -f "$BASE_MODEL/checkpoint.json" ]; then # sealed by tools/checkpoint.py
    python tools/checkpoint.py verify "$BASE_MODEL"
fi

# launch MORE…: starts the ranks of this machine; `nodes` has torchrun's options for the meeting point.
nodes=(--standalone)
launch() {
    local command=(python)
    [ "$GPUS" = 1 ] && [ "${nodes[0]}" = --standalone ] && [ -z "$CONFIG" ] \
        || command=(python -m torch.distributed.run "${nodes[@]}" --nproc_per_node "$GPUS")
    exec "${command[@]}" finetune/finetune.py "${options[@]}" "$@"
}
