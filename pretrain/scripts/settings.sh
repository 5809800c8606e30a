#!/usr/bin/env bash
# What train.sh, train_multinode.sh and train.slurm share: settings from the environment, checked, turned into train.py's
# options, and the launch. They source it from the repository's top; by itself it trains nothing.
#
# Every setting is an environment variable; what is not set has the value below. MODEL, DATA and OUT have none.
set -euo pipefail

fail() { echo "error: $*" >&2; exit 2; }

# --- settings ---------------------------------------------------------------------------------------------------------

[ -n "${MODEL:-}" ] && [ -n "${DATA:-}" ] && [ -n "${OUT:-}" ] \
    || fail "MODEL (checkpoint folder), DATA (corpus prefix) and OUT (new folder) must be set; the head of $0 shows how"
gpus=$(nvidia-smi -L 2> /dev/null | grep -c '^GPU' || true)

RANKS=${RANKS:-$((gpus > 0 ? gpus : 2))} # on this machine
PRECISION=${PRECISION:-$([ "$gpus" -gt 0 ] && echo bf16 || echo fp32)} # bf16 (Ampere and later), fp16 (V100), fp32
MICRO_BATCH=${MICRO_BATCH:-4}          # rows that a GPU takes at once
ACCUMULATION=${ACCUMULATION:-8}        # of these a step; a step has ranks x MICRO_BATCH x ACCUMULATION rows
BLOCK_SIZE=${BLOCK_SIZE:-}             # tokens of a row; empty: the model's context, at most 4096
SOURCE_WEIGHTS=${SOURCE_WEIGHTS:-size} # shares of the corpus's sources: zh=0.6,en=0.4, size, temperature=0.7
EPOCHS=${EPOCHS:-1}                    # passes over the rows
MAX_STEPS=${MAX_STEPS:-}               # steps of the whole run; given, EPOCHS says nothing
LEARNING_RATE=${LEARNING_RATE:-2e-5}
WARMUP=${WARMUP:-0.03}                 # steps; below 1: a share of all steps
EVAL_FRACTION=${EVAL_FRACTION:-0}      # share of each source's documents held out, for perplexity
SEED=${SEED:-42}
CONFIG=${CONFIG:-pretrain/configs/zero3$([ "$PRECISION" != fp16 ] || echo -fp16).json} # DeepSpeed's
SAVE_STEPS=${SAVE_STEPS:-500}          # steps from a checkpoint to the next
LOG_STEPS=${LOG_STEPS:-10}
REPORT_TO=${REPORT_TO:-tensorboard}    # tensorboard, wandb, none

for name in RANKS MICRO_BATCH ACCUMULATION SEED; do
    [[ ${!name} =~ ^[0-9]+$ ]] || fail "$name=${!name} is not a whole number"
done
case "$PRECISION" in bf16 | fp16 | fp32) ;; *) fail "PRECISION=$PRECISION is not bf16, fp16 or fp32" ;; esac
[ -f "$MODEL/config.json" ] || fail "MODEL=$MODEL is no checkpoint folder: there is no $MODEL/config.json"
[ -f "$DATA.json" ] || fail "DATA=$DATA is no prefix of a corpus: there is no $DATA.json"
[ -f "$CONFIG" ] || fail "CONFIG=$CONFIG does not exist; pretrain/configs has some"
[ ! -f "$OUT/config.json" ] || fail "OUT=$OUT holds a finished model; name a new folder"

# --- the environment of the ranks -------------------------------------------------------------------------------------

bin=${VENV:-.venv}/bin
[ ! -d "$bin" ] || PATH=$(cd "$bin" && pwd):$PATH
export PATH
command -v deepspeed > /dev/null || fail "there is no environment with deepspeed yet; make it: bash tools/setup.sh"
# Where DeepSpeed compiles small operations: for this run alone, since a stale lock in the shared folder hangs its start.
export TORCH_EXTENSIONS_DIR=${TORCH_EXTENSIONS_DIR:-${TMPDIR:-/tmp}/torch_extensions.$$}
if [ "$gpus" = 0 ]; then
    export DS_ACCELERATOR=cpu # or it says at every start that it found no GPU
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((($(nproc) + RANKS - 1) / RANKS))}
fi
export PYTHONWARNINGS=${PYTHONWARNINGS:-ignore::FutureWarning} # DeepSpeed's calls of torch, at every rank

# --- train.py's options -----------------------------------------------------------------------------------------------

options=(--model_name_or_path "$MODEL" --data_path "$DATA" --output_dir "$OUT" --deepspeed "$CONFIG"
    --per_device_train_batch_size "$MICRO_BATCH" --gradient_accumulation_steps "$ACCUMULATION"
    --source_weights "$SOURCE_WEIGHTS" --eval_fraction "$EVAL_FRACTION" --seed "$SEED"
    --num_train_epochs "$EPOCHS" --learning_rate "$LEARNING_RATE" --warmup_steps "$WARMUP"
    --save_steps "$SAVE_STEPS" --logging_steps "$LOG_STEPS" --report_to "$REPORT_TO")
[ -z "$BLOCK_SIZE" ] || options+=(--block_size "$BLOCK_SIZE")
[ -z "$MAX_STEPS" ] || options+=(--max_steps "$MAX_STEPS")
[ "$PRECISION" = fp32 ] || options+=("--$PRECISION" True)
# A third more work for a fraction of the memory; pretrain/plan.py tells whether it is needed.
[ "$gpus" = 0 ] || options+=(--gradient_checkpointing True)
if compgen -G "$OUT/checkpoint-*/complete.json" > /dev/null; then
    options+=(--resume_from_checkpoint True)
elif [ -f "$MODEL/checkpoint.json" ]; then # it is sealed
    python tools/checkpoint.py verify "$MODEL"
fi

# --- the launch -------------------------------------------------------------------------------------------------------

children() { cat /proc/"$1"/task/*/children 2> /dev/null || true; }

# SIGTERM to the ranks of this machine: the children of the process that DeepSpeed's launcher starts on a node.
tell_ranks() {
    local node ranks=
    for node in $(children "$launcher"); do ranks+=" $(children "$node")"; done
    # shellcheck disable=SC2086 # a word for each of them; none: it is still starting, and all of it may end
    if [[ $ranks == *[0-9]* ]]; then kill -TERM $ranks; else kill -TERM -- "-$launcher"; fi || true
}

# launch COMMAND…: runs DeepSpeed's launcher to its end. SIGTERM, SIGHUP and Ctrl-C go to the ranks alone, which end the
# step, save and leave with status 143, however long that takes. By itself, `deepspeed` would die of SIGTERM and leave the
# ranks running, and what it starts on a node would kill them one after another, 30 s after telling each. A second Ctrl-C
# kills all at once.
launch() {
    set -m # a process group of its own, which Ctrl-C does not reach
    "$@" < /dev/null &
    launcher=$!
    set +m
    trap tell_ranks TERM HUP
    trap 'tell_ranks; trap "kill -KILL -- -$launcher" INT' INT
    while kill -0 "$launcher" 2> /dev/null; do wait "$launcher" || true; done # a signal ends the wait, not the launcher
    wait "$launcher"
}
