# Functions of the recipes quickstart.sh and real_model.sh, which source this file from the repository's top folder after
# setting OUT, the folder of the results. A recipe is a list of steps; a step is a command and its result, the file or
# folder that the command creates. Commands are printed as they can be typed; steps whose result exists are skipped, so
# the same recipe continues an interrupted run.
set -euo pipefail

recipe=$(basename "$0" .sh)

fail() { echo "$recipe: $*" >&2; exit 2; }
exec 3>&2
interrupted() { echo "$recipe: interrupted; run the same command again to continue from here" >&3; exit "$1"; }
trap 'interrupted 130' INT # runs once the current step, which gets the signal too, has ended
trap 'interrupted 143' TERM
case "$*" in
    "") ;;
    -h | --help) sed -n '2,/^set/s/^# \{0,1\}//p' "examples/$recipe.sh"; exit ;;
    *) fail "the recipe has no option $*; settings are environment variables, see --help" ;;
esac

# set_up: installs the environment, exports the variables of all commands, and locks OUT.
set_up() {
    bash tools/setup.sh
    PATH=$(cd "${VENV:-.venv}/bin" && pwd):$PATH
    export PATH
    export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1 PYTHONWARNINGS=ignore::FutureWarning
    nvidia-smi -L > /dev/null 2>&1 || export DS_ACCELERATOR=cpu # else DeepSpeed warns at every start
    mkdir -p "$OUT"
    exec 9> "$OUT/lock"
    flock --nonblock 9 || fail "another run is writing $OUT; wait for it, or give another folder with OUT=…"
    # DeepSpeed compiles in a folder of this run, since a stale lock in the default folder may delay it by 30 minutes.
    export TORCH_EXTENSIONS_DIR=${TORCH_EXTENSIONS_DIR:-$(cd "$OUT" && pwd)/torch_extensions}
    started=$SECONDS
}

# check_settings TEXT: stores the settings in OUT; fails if OUT was made with other settings.
check_settings() {
    [ "$(cat "$OUT/settings" 2> /dev/null || echo "$1")" = "$1" ] \
        || fail "$OUT was made with other settings ($(cat "$OUT/settings")); give another folder with OUT=…, or remove it"
    echo "$1" > "$OUT/settings"
}

headline() { printf '\n\033[1m[%2d:%02d] %s\033[0m\n' $(((SECONDS - started) / 60)) $(((SECONDS - started) % 60)) "$*"; }

# print_command COMMAND…: prints a command as it can be typed.
print_command() {
    local word line="  $"
    [ "$1" != print_and_save ] || set -- "${@:3}"
    [ "$1" != stop_ranks_on_interrupt ] || shift
    for word in "$@"; do
        case $word in "" | *[!A-Za-z0-9_./,:=@%+-]*) line+=" '$word'" ;; *) line+=" $word" ;; esac
    done
    [ "$(type -t "$1")" = function ] || echo "$line" # functions print their own commands
}

# indent: indents all lines of its input; ignores signals, since a command may print after a signal.
indent() { trap '' INT TERM; exec sed -u 's/^/    /'; }

# step RESULT COMMAND…: runs the command unless RESULT exists; scripts write their results atomically. 2> /dev/null
# hides bash's own line about a command that a signal ended. Before ||, bash ignores set -e also inside a function that
# is the command, so that the function would continue after an error; the status is therefore checked afterwards.
step() {
    local result=$1 begun=$SECONDS status
    shift
    if [ -e "$result" ]; then echo "  $result exists already"; return; fi
    print_command "$@"
    set +e
    { (set -e; "$@") 2>&1 | indent; } 2> /dev/null
    status=$?
    set -e
    [ $status = 0 ] || fail "$result was not made, for the reason above; run the same command again to continue from here"
    printf '%s\t%s\n' "$result" $((SECONDS - begun)) >> "$OUT/steps.tsv"
}

# seal FOLDER PARENTS: writes checkpoint.json, with hashes and parents.
seal() { step "$1/checkpoint.json" python tools/checkpoint.py seal "$1" --parents "$2"; }

# print_and_save FILE COMMAND…: prints the command's output; writes it to FILE once the command has succeeded.
print_and_save() {
    local file=$1
    shift
    "$@" | tee "$file.partial"
    mv "$file.partial" "$file"
}

# stop_ranks_on_interrupt COMMAND…: runs deepspeed so that its ranks ignore Ctrl-C; the launcher handles it, and sends
# the ranks SIGTERM.
stop_ranks_on_interrupt() { trap '' INT; "$@"; }

# start_server MODEL LOG: starts the server on PORT, and returns when it answers. The server ends with the calling shell.
start_server() {
    python inference/launch_vllm.py --model "$1" --port "$PORT" > "$2" 2>&1 3>&- 9>&- &
    server=$!
    trap 'kill $server 2> /dev/null && wait $server || true' EXIT
    echo "python inference/launch_vllm.py --model $1 --port $PORT   (log: $2)"
    until curl --silent --fail --output /dev/null "http://127.0.0.1:$PORT/health"; do
        kill -0 $server 2> /dev/null || { grep '^error:' "$2" || tail -n 20 "$2"; exit 2; }
        sleep 1
    done
}

stop_server() { kill $server && { wait $server || true; }; }

# ask BODY ANSWER: sends a JSON file to /generate with curl, and writes the response to ANSWER.
ask() {
    echo "curl http://127.0.0.1:$PORT/generate -H 'Content-Type: application/json' -d '$(cat "$1")'"
    curl --silent --show-error "http://127.0.0.1:$PORT/generate" -H 'Content-Type: application/json' \
        --data @"$1" --output "$2.partial"
    cat "$2.partial" && echo
    mv "$2.partial" "$2"
}

# fastest_precision: prints bf16 for a GPU of compute capability 8.0 or higher or a CPU with bf16 instructions, fp16 for
# an older GPU, else fp32.
fastest_precision() {
    local capability
    if capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2> /dev/null) && [ -n "$capability" ]; then
        awk 'NR == 1 {print ($1 >= 8 ? "bf16" : "fp16")}' <<< "$capability"
    elif grep -qE 'avx512_bf16|amx_bf16' /proc/cpuinfo 2> /dev/null; then
        echo bf16
    else
        echo fp32
    fi
}
