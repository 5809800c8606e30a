#!/usr/bin/env bash
# Installs the packages, checks style and types, and runs pytest with the real components. Times are for two cores.
#
#   bash tests/run.sh --types             only types: 1.5 minutes without mypy's cache
#   bash tests/run.sh --fast              style, and the tests without the marks slow and integration: 3 minutes
#   bash tests/run.sh                     style, types, and all tests but the slow ones: at most 15 minutes
#   bash tests/run.sh --slow              also the long trials (many kills, large inputs, ten minutes of random inputs)
#   bash tests/run.sh tests/tools -k diff any arguments of pytest: then only pytest runs
#
# Random options, damaged files, rows and requests for an hour; at the end, faults are printed with their command lines:
#   KNOWLM_FUZZ_SECONDS=3600 bash tests/run.sh --slow tests/fuzz tests/inference/test_serving_load.py
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash tools/setup.sh --dev
bin=${VENV:-.venv}/bin

# Checks each stage by itself, with its folder first on the path: twin packages have the same module names in several
# stages.
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
    git ls-files -z '*.py' | xargs -0 "$bin/ruff" check -q # tracked files only
    git ls-files -z '*.py' | xargs -0 "$bin/ruff" format --check
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
    # Four processes on two cores, since servers and ranks often wait. Tests that share an expensive fixture run in the
    # same process. mypy runs at the same time; its errors are printed at the end.
    processes=4 errors=$(mktemp) types_job=""
    if [ "$*" = "--fast" ]; then processes=2; else types > "$errors" 2>&1 & types_job=$!; fi
    status=0
    "$bin/python" -m pytest -n $processes --dist loadgroup --no-loadscope-reorder --durations=15 "$@" || status=$?
    [ -z "$types_job" ] || wait "$types_job" || { status=1; echo "types:"; cat "$errors"; }
    rm "$errors"
    exit "$status"
fi
exec "$bin/python" -m pytest "$@"
