#!/usr/bin/env bash
# Sets up and runs the tests: style, types, then pytest with the real components. Times are for two cores.
#
#   bash tests/run.sh --types             only types; without a cache of mypy this takes 1.5 minutes
#   bash tests/run.sh --fast              style, tests without servers, ranks, browser or runs of seconds: 3 minutes
#   bash tests/run.sh                     the suite: at most 15 minutes
#   bash tests/run.sh --slow              also the long trials (many kills, large inputs, ten minutes of random inputs)
#   bash tests/run.sh tests/tools -k diff any arguments of pytest: then only pytest runs
#
# An hour of random options, damaged files, rows and requests, with faults and their command lines at the end:
#   KNOWLM_FUZZ_SECONDS=3600 bash tests/run.sh --slow tests/fuzz tests/inference/test_serving_load.py
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash tools/setup.sh --dev
bin=${VENV:-.venv}/bin

# Each stage by itself, first on its own path: twin packages have the same module names in several stages.
types() {
    for stage in pretrain finetune tools examples inference; do
        MYPYPATH=$stage "$bin/mypy" --no-error-summary "$stage"
    done
    "$bin/mypy" --no-error-summary tests
}

if [ "$*" = "--types" ]; then
    types
    exit
fi
if [ $# = 0 ] || [ "$*" = "--slow" ] || [ "$*" = "--fast" ]; then
    git ls-files -z '*.py' | xargs -0 "$bin/ruff" check -q # not the files that runs wrote into the repository
    git ls-files -z '*.py' | xargs -0 "$bin/ruff" format --check
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
    # Four processes on two cores, since servers and ranks wait; tests that share an expensive fixture run in one of
    # them. Types are checked at the same time; their errors are printed at the end.
    processes=4 errors=$(mktemp) types_job=""
    if [ "$*" = "--fast" ]; then processes=2; else types > "$errors" 2>&1 & types_job=$!; fi
    status=0
    "$bin/python" -m pytest -n $processes --dist loadgroup --no-loadscope-reorder --durations=15 "$@" || status=$?
    [ -z "$types_job" ] || wait "$types_job" || { status=1; echo "types:"; cat "$errors"; }
    rm "$errors"
    exit "$status"
fi
exec "$bin/python" -m pytest "$@"
