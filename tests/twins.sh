#!/usr/bin/env bash
# Copies the newest copy of a twin package or file over the others; tests/twins.txt lists the twins and their stages.
#
#   bash tests/twins.sh                 list the twins whose copies differ
#   bash tests/twins.sh chat_prompts    make the copies of one twin equal
#
# The newest copy is the one with the most recently changed file.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() { echo "error: $*" >&2; exit 2; }
differs() { diff -rq -x __pycache__ "$1" "$2" > /dev/null && return 1 || return 0; }

wanted=${1:-}
found=""
while IFS=: read -r package stages; do
    case "$package" in '#'*|'') continue ;; esac
    [ -z "$wanted" ] || [ "$wanted" = "$package" ] || continue
    found=1 newest="" newest_time=0
    for stage in $stages; do
        [ -e "$stage/$package" ] || continue
        changed=$(find "$stage/$package" \( -name '*.py' -o -path "$stage/$package" -type f \) -printf '%T@\n' | sort -n | tail -n 1)
        if [ -n "$changed" ] && awk "BEGIN { exit !($changed > $newest_time) }"; then newest=$stage newest_time=$changed; fi
    done
    [ -n "$newest" ] || fail "no stage has $package, which tests/twins.txt lists for:$stages"
    for stage in $stages; do
        [ "$stage" = "$newest" ] || ! differs "$newest/$package" "$stage/$package" 2> /dev/null && continue
        if [ -z "$wanted" ]; then
            echo "$stage/$package differs from $newest/$package; run: bash tests/twins.sh $package"
        else
            rm -rf "${stage:?}/$package"
            if [ -f "$newest/$package" ]; then
                cp -p "$newest/$package" "$stage/$package"
            else
                mkdir -p "$stage/$package"
                cp -p "$newest/$package"/*.py "$stage/$package/"
            fi
            echo "$newest/$package -> $stage/$package"
        fi
    done
done < tests/twins.txt
[ -z "$wanted" ] || [ -n "$found" ] || fail "tests/twins.txt does not list $wanted"
