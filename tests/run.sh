#!/usr/bin/env bash
# Sets up and runs the tests: style, types, then pytest. Under 20 minutes on two cores.
#
#   bash tests/run.sh                     everything that fits those minutes
#   bash tests/run.sh --slow              the long trials too (many kills, big inputs)
#   bash tests/run.sh tests/tools -k diff any of pytest's own arguments: then only pytest runs
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash tools/setup.sh --dev
bin=${VENV:-.venv}/bin
if [ $# = 0 ] || [ "$*" = "--slow" ]; then
    "$bin/ruff" check .
    "$bin/ruff" format --check .
    "$bin/mypy" --num-workers auto
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # two processes; what is expensive to make is made in one of them
    set -- -n 2 --dist loadgroup --no-loadscope-reorder "$@"
fi
exec "$bin/python" -m pytest "$@"
