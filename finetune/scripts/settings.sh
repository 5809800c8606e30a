#!/usr/bin/env bash
# Sourced by lora.sh, qlora.sh, full.sh and lora_multinode.sh in the root folder of the repository: detects the GPUs and
# the precision, checks the settings, and defines `launch`, which starts finetune.py. BASE_MODEL, DATA_PATH and
# OUTPUT_DIR are required; the arguments of these scripts are passed to finetune.py.
set -euo pipefail

fail() { echo "error: $*" >&2; exit 2; }

[ -n "${BASE_MODEL:-}" ] && [ -n "${DATA_PATH:-}" ] && [ -n "${OUTPUT_DIR:-}" ] \
    || fail "BASE_MODEL (checkpoint folder), DATA_PATH (instruction data) and OUTPUT_DIR (new folder) must be set; the first lines of $0 show an example"
gpus=$(nvidia-smi -L 2> /dev/null | grep -c '^GPU' || true)
# GPUs have bf16 from compute capability 8.0 on; V100 has 7.0.
detected=$([ "$gpus" = 0 ] && echo fp32 || nvidia-smi --query-gpu=compute_cap --format=csv,noheader \
    | awk 'NR == 1 {print ($1 >= 8 ? "bf16" : "fp16")}')

GPUS=${GPUS:-$((gpus > 0 ? gpus : 1))}          # ranks on this machine
PRECISION=${PRECISION:-$detected}               # bf16 (Ampere and later), fp16 (V100), fp32
METHOD=${METHOD:-lora}                          # lora, qlora, full
# Full tuning partitions weights, gradients and optimizer states among the ranks (ZeRO-3); adapters need no partition.
CONFIG=${CONFIG:-$([ "$METHOD" != full ] || echo "pretrain/configs/zero3$([ "$PRECISION" != fp16 ] || echo -fp16).json")}

case "$PRECISION" in bf16 | fp16 | fp32) ;; *) fail "PRECISION=$PRECISION is not bf16, fp16 or fp32" ;; esac
[[ $GPUS =~ ^[1-9][0-9]*$ ]] || fail "GPUS=$GPUS is not a positive number of ranks"
[ -f "$BASE_MODEL/config.json" ] || fail "BASE_MODEL=$BASE_MODEL is not a checkpoint folder: it has no config.json"
[ -z "$CONFIG" ] || [ -f "$CONFIG" ] || fail "CONFIG=$CONFIG does not exist; name a file of pretrain/configs"

bin=${VENV:-.venv}/bin
[ ! -d "$bin" ] || PATH=$(cd "$bin" && pwd):$PATH
export PATH
if [ "$gpus" = 0 ]; then
    export DS_ACCELERATOR=cpu # else DeepSpeed warns at every start that it found no GPU
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((($(nproc) + GPUS - 1) / GPUS))}
fi
export PYTHONWARNINGS=${PYTHONWARNINGS:-ignore::FutureWarning} # DeepSpeed calls deprecated functions of torch
# Folder in which DeepSpeed compiles operations: one for each run, since a stale lock in a shared folder may delay the
# start by 30 minutes.
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

# launch OPTION…: starts one rank of finetune.py for each GPU of this machine; lora_multinode.sh sets the four values
# below. On SIGTERM, SIGHUP or Ctrl-C the ranks finish the step, save a checkpoint and exit with status 143. A single
# rank without DeepSpeed replaces this shell and receives the signal; otherwise this shell sends SIGTERM to its ranks
# (torchrun would kill them after 30 s). A second Ctrl-C ends the run without a checkpoint. If a rank fails, the others
# are killed.
first_rank=0 world_size=$GPUS address=127.0.0.1 port=
launch() {
    [ "$world_size" -gt 1 ] || [ -n "$CONFIG" ] || exec python finetune/finetune.py "${options[@]}" "$@"
    [ -n "$port" ] || port=$(python -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
    export WORLD_SIZE=$world_size MASTER_ADDR=$address MASTER_PORT=$port LOCAL_WORLD_SIZE=$GPUS LOCAL_SIZE=$GPUS
    local rank ranks=() ended status=0
    set -m # each rank gets a process group of its own, which does not get Ctrl-C
    for ((rank = 0; rank < GPUS; rank++)); do
        RANK=$((first_rank + rank)) LOCAL_RANK=$rank python finetune/finetune.py "${options[@]}" "$@" < /dev/null &
        ranks[rank]=$!
    done
    set +m
    exec 3>&2 2> /dev/null # hides bash's reports of killed ranks
    stop_ranks() { kill -TERM "${ranks[@]}" || true; } # not their groups, which contain data loader workers
    kill_ranks() { kill -KILL -- "${ranks[@]/#/-}" || true; }
    trap stop_ranks TERM HUP
    trap 'stop_ranks; trap kill_ranks INT' INT
    while [ ${#ranks[@]} -gt 0 ]; do
        sleep 0.5 || true # Ctrl-C ends sleep with an error, at which `set -e` would end this shell
        for rank in "${!ranks[@]}"; do
            if kill -0 "${ranks[rank]}"; then continue; fi
            ended=0
            wait "${ranks[rank]}" || ended=$?
            unset "ranks[rank]"
            case "$ended" in 0 | 143) ;; *) kill_ranks ;; esac
            [ "$status" = 0 ] || continue # keeps the first status other than 0; ranks that were killed end later
            status=$ended
            if [ "$ended" -gt 128 ] && [ "$ended" != 143 ]; then
                echo "error: rank $((first_rank + rank)) was ended by signal $((ended - 128))" >&3
            fi
        done
    done
    exit "$status"
}
