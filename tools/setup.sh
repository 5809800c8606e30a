#!/usr/bin/env bash
# Creates .venv and installs requirements.txt on a machine with an NVIDIA GPU, requirements-cpu.txt on any other.
#
#   bash tools/setup.sh              installs all packages except the tests'; takes 3 to 5 minutes, seconds if nothing changed
#   bash tools/setup.sh --dev        also installs the tests' packages
#   bash tools/setup.sh --cpu|--gpu  installs for this device without looking for a GPU
#
# VENV=folder sets the environment's folder, PYTHON=python3.11 the interpreter. pip uses its own configuration (on a CPU
# machine, set PIP_EXTRA_INDEX_URL to PyTorch's index of CPU builds; otherwise torch installs gigabytes of CUDA libraries).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() { echo "setup: $*" >&2; exit 2; }

dev=0 device=""
for argument in "$@"; do
    case "$argument" in
        --dev) dev=1 ;;
        --cpu) device=cpu ;;
        --gpu) device=gpu ;;
        -h|--help) sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
        *) fail "unknown option $argument; known: --dev --cpu --gpu" ;;
    esac
done
if [ -z "$device" ]; then
    if nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then device=gpu; else device=cpu; fi
fi
if [ "$device" = gpu ]; then requirements=requirements.txt; else requirements=requirements-cpu.txt; fi

# The pinned versions were tested with Python 3.11; a newer one is used if 3.11 is missing.
venv=${VENV:-.venv}
python=""
for candidate in ${PYTHON:-python3.11 python3.12 python3 python}; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null; then
        python=$candidate; break
    fi
done
[ -n "$python" ] || fail "found no Python 3.11 or 3.12 (tried ${PYTHON:-python3.11, python3.12, python3, python});" \
    "install one, or name it: PYTHON=/path/to/python3.11 bash $0"

# An environment is up to date if the same Python version installed the same requirements files.
stamp_of() { { "$python" --version; cat "$@"; } 2>&1 | sha256sum | cut -c1-64; }
is_current() { [ -x "$venv/bin/python" ] && [ "$(cat "$venv/$1" 2>/dev/null)" = "$2" ]; }
main_stamp=$(stamp_of "$requirements")
dev_stamp=""
[ "$dev" = 0 ] || dev_stamp=$(stamp_of tests/requirements.txt tests/requirements-quantised.txt) # container images lack these files

# Prints pip's progress, appends its whole output to setup.log, and names that file if pip fails.
install() {
    "$venv/bin/python" -m pip install --no-compile --disable-pip-version-check --progress-bar off "$@" 2>&1 | tee -a "$venv/setup.log" \
        | awk '/^Collecting /{if (++n % 20 == 1) {print "  " n " packages found"; fflush()}}
               /^(Building wheels|Installing collected)/{print "  " substr($0, 1, 76) "…"; fflush()}' \
        || fail "pip could not install $*; the reason is at the end of $venv/setup.log"
}

main_is_new=0 dev_is_new=0
if is_current .setup-main "$main_stamp"; then
    echo "setup: $venv is up to date ($requirements)"
else
    echo "setup: installing $requirements into $venv ($("$python" --version), three to five minutes)"
    main_is_new=1
    rm -f "$venv/.setup-main"
    [ -x "$venv/bin/python" ] || "$python" -m venv "$venv" \
        || fail "$python cannot create a virtual environment; on Debian and Ubuntu: apt-get install python3-venv"
    install -r "$requirements"
    if [ "$device" = cpu ]; then
        "$venv/bin/python" -m pip uninstall -q -y torchvision torchaudio torchcodec >> "$venv/setup.log" 2>&1
    fi
fi
if [ "$dev" = 1 ] && ! is_current .setup-dev "$dev_stamp"; then
    echo "setup: installing tests/requirements.txt"
    dev_is_new=1
    rm -f "$venv/.setup-dev"
    install -r tests/requirements.txt
    install --no-deps --upgrade --target "$venv/quantised" -r tests/requirements-quantised.txt
fi

# Compile the installed packages on all cores (pip would use one), except their tests. Some packages contain files that this
# Python cannot compile, so errors are ignored. The stamps are written last.
if [ $((main_is_new + dev_is_new)) -gt 0 ]; then
    "$venv/bin/python" -m compileall -q -j 0 -x '/tests/' "$venv" > /dev/null 2>&1 || true
    "$venv/bin/python" -c 'import torch, transformers, peft; print(f"setup: torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}")'
    if [ $main_is_new = 1 ]; then echo "$main_stamp" > "$venv/.setup-main"; fi
    if [ $dev_is_new = 1 ]; then echo "$dev_stamp" > "$venv/.setup-dev"; fi
fi
