#!/usr/bin/env bash
# Settings of train.sh, train_multinode.sh and train.slurm, and the launch of the first two. They source this file from
# the repository's top.
#
# Every setting is an environment variable with the default below; MODEL, DATA and OUT are required.
set -euo pipefail

fail() { echo "error: $*" >&2; exit 2; }

# --- settings ---------------------------------------------------------------------------------------------------------

[ -n "${MODEL:-}" ] && [ -n "${DATA:-}" ] && [ -n "${OUT:-}" ] \
    || fail "MODEL (checkpoint folder), DATA (corpus prefix) and OUT (new folder) must be set; see the examples in $0"
gpus=$(nvidia-smi -L 2> /dev/null | grep -c '^GPU' || true)
# GPUs have bf16 from compute capability 8.0 on; V100 has 7.0.
detected=$([ "$gpus" = 0 ] && echo fp32 || nvidia-smi --query-gpu=compute_cap --format=csv,noheader \
    | awk 'NR == 1 {print ($1 >= 8 ? "bf16" : "fp16")}')

RANKS=${RANKS:-$((gpus > 0 ? gpus : 2))} # ranks on this machine: one for each GPU, or two on the CPU
PRECISION=${PRECISION:-$detected}      # bf16 (Ampere and later), fp16 (V100), fp32
MICRO_BATCH=${MICRO_BATCH:-4}          # packed sequences of a forward pass on a rank
ACCUMULATION=${ACCUMULATION:-8}        # micro batches of a step; global batch = ranks x MICRO_BATCH x ACCUMULATION
BLOCK_SIZE=${BLOCK_SIZE:-}             # tokens of a packed sequence; empty: the model's context, at most 4096
SOURCE_WEIGHTS=${SOURCE_WEIGHTS:-size} # proportions of the sources: zh=0.6,en=0.4, size, temperature=0.7
EPOCHS=${EPOCHS:-1}                    # passes over the corpus
MAX_STEPS=${MAX_STEPS:-}               # steps of the whole run; overrides EPOCHS
LEARNING_RATE=${LEARNING_RATE:-2e-5}
WARMUP=${WARMUP:-0.03}                 # warm-up steps; below 1: a share of all steps
EVAL_FRACTION=${EVAL_FRACTION:-0}      # share of each source's documents held out for perplexity
SEED=${SEED:-42}
CONFIG=${CONFIG:-pretrain/configs/zero3$([ "$PRECISION" != fp16 ] || echo -fp16).json} # DeepSpeed configuration
SAVE_STEPS=${SAVE_STEPS:-500}          # steps between checkpoints
LOG_STEPS=${LOG_STEPS:-10}
REPORT_TO=${REPORT_TO:-tensorboard}    # tensorboard, wandb, none

for name in RANKS MICRO_BATCH ACCUMULATION SEED; do
    [[ ${!name} =~ ^[0-9]+$ ]] || fail "$name=${!name} is not a whole number"
done
case "$PRECISION" in bf16 | fp16 | fp32) ;; *) fail "PRECISION=$PRECISION is not bf16, fp16 or fp32" ;; esac
[ -f "$MODEL/config.json" ] || fail "MODEL=$MODEL is not a checkpoint folder: there is no $MODEL/config.json"
[ -f "$DATA.json" ] || fail "DATA=$DATA is not the prefix of a corpus: there is no $DATA.json"
[ -f "$CONFIG" ] || fail "CONFIG=$CONFIG does not exist; name a file of pretrain/configs"
[ ! -f "$OUT/config.json" ] || fail "OUT=$OUT holds a finished run, so nothing was done; to train it further, set a" \
    "new OUT and a larger MAX_STEPS, and add --resume_from_checkpoint $OUT/checkpoint-N; or set MODEL=$OUT and a new OUT"

# --- the environment of the ranks -------------------------------------------------------------------------------------

bin=${VENV:-.venv}/bin
[ ! -d "$bin" ] || PATH=$(cd "$bin" && pwd):$PATH
export PATH
command -v deepspeed > /dev/null || fail "deepspeed is not installed; run: bash tools/setup.sh"
# DeepSpeed compiles operations in a folder of this run, since a stale lock in the default folder may delay the run by
# 30 minutes.
export TORCH_EXTENSIONS_DIR=${TORCH_EXTENSIONS_DIR:-${TMPDIR:-/tmp}/torch_extensions.$$}
if [ "$gpus" = 0 ]; then
    export DS_ACCELERATOR=cpu # avoids a warning about the missing GPU
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((($(nproc) + RANKS - 1) / RANKS))}
fi
export PYTHONWARNINGS=${PYTHONWARNINGS:-ignore::FutureWarning} # DeepSpeed calls deprecated functions of torch

# --- train.py's options -----------------------------------------------------------------------------------------------

options=(--model_name_or_path "$MODEL" --data_path "$DATA" --output_dir "$OUT" --deepspeed "$CONFIG"
    --per_device_train_batch_size "$MICRO_BATCH" --gradient_accumulation_steps "$ACCUMULATION"
    --source_weights "$SOURCE_WEIGHTS" --eval_fraction "$EVAL_FRACTION" --seed "$SEED"
    --num_train_epochs "$EPOCHS" --learning_rate "$LEARNING_RATE" --warmup_steps "$WARMUP"
    --save_steps "$SAVE_STEPS" --logging_steps "$LOG_STEPS" --report_to "$REPORT_TO")
[ -z "$BLOCK_SIZE" ] || options+=(--block_size "$BLOCK_SIZE")
[ -z "$MAX_STEPS" ] || options+=(--max_steps "$MAX_STEPS")
[ "$PRECISION" = fp32 ] || options+=("--$PRECISION" True)
# Recomputing activations saves memory for a third more work; pretrain/plan.py shows whether it is needed.
[ "$gpus" = 0 ] || options+=(--gradient_checkpointing True)
if compgen -G "$OUT/checkpoint-*/complete.json" > /dev/null; then
    options+=(--resume_from_checkpoint True)
elif [ -f "$MODEL/checkpoint.json" ]; then # written by `tools/checkpoint.py seal`: size and hash of every file
    python tools/checkpoint.py verify "$MODEL"
fi

# --- the launch -------------------------------------------------------------------------------------------------------

children() { cat /proc/"$1"/task/*/children 2> /dev/null || true; }

# Send SIGTERM to the ranks of this machine, the grandchildren of DeepSpeed's launcher.
stop_ranks() {
    local node ranks=
    for node in $(children "$launcher"); do ranks+=" $(children "$node")"; done
    # shellcheck disable=SC2086 # one word for each rank; without ranks the launcher is still starting and may be killed
    if [[ $ranks == *[0-9]* ]]; then kill -TERM $ranks; else kill -TERM -- "-$launcher"; fi || true
}

# launch COMMAND…: run DeepSpeed's launcher. On SIGTERM, SIGHUP or Ctrl-C, only the ranks get SIGTERM; they finish the
# step, save a checkpoint and exit with status 143. If `deepspeed` itself got the signal, it would end at once and leave
# the ranks running, or its process on each node would kill the ranks after 30 s. A second Ctrl-C kills all processes.
launch() {
    set -m # a process group of its own, which does not get Ctrl-C
    "$@" < /dev/null &
    launcher=$!
    set +m
    trap stop_ranks TERM HUP
    trap 'stop_ranks; trap "kill -KILL -- -$launcher" INT' INT
    while kill -0 "$launcher" 2> /dev/null; do wait "$launcher" || true; done # a signal interrupts `wait`
    wait "$launcher"
}
