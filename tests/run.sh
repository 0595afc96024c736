#!/bin/sh
# make test: builds ./train, ./train-f32 and the four test programs for the CPU, runs them, adds up their counts. Last, a
# recipe is added to a copy of the program.
# SAN="-fsanitize=.." does it all with a sanitizer; BRIEF=1 as well: the first and the last program, around a ./train
# without it.
set -u
cd "$(dirname "$0")/.."
log=$(mktemp) && trap 'rm -f "$log"' EXIT
failed_builds=0
build() { # make arguments
    make -s CUDA=0 "SAN=$san" "$@" >"$log" 2>&1 && return
    echo "--- make $* failed:"; cat "$log"; failed_builds=$((failed_builds + 1)); return 1
}
suffix=${SAN:+-san}
make -s build/doctest/doctest/doctest.h || exit 1
kinds="bf16 float double standin" brief=${SAN:+${BRIEF:-}} san=${SAN:-}
if [ -n "$brief" ]; then kinds="bf16 standin" san=; fi
build && build ACT=float
if [ -n "$san" ]; then ULP_TRAIN=build/cpu-bf16-san/train ULP_TRAIN_F32=build/cpu-float-san/train
else ULP_TRAIN=./train ULP_TRAIN_F32=./train-f32; fi
export ULP_TRAIN ULP_TRAIN_F32
san=${SAN:-}
passed=0 failed=0 skipped=0
for act in $kinds; do
    program=build/cpu-$act$suffix/tests/all
    build ACT=$act "$program" || continue
    "$program" >"$log" 2>&1 || echo "--- $act: failures follow"
    grep -avE '^count:|^\[doctest\]|^=+$' "$log"
    count=$(sed -n 's/^count: \([0-9]*\) passed, \([0-9]*\) failed, \([0-9]*\) skipped$/\1 \2 \3/p' "$log")
    [ -n "$count" ] || { echo "--- $act: the test program died"; failed=$((failed + 1)); continue; }
    set -- $count
    echo "--- $act: $1 passed, $2 failed, $3 skipped"
    passed=$((passed + $1)) failed=$((failed + $2)) skipped=$((skipped + $3))
done
if [ -n "$suffix" ]; then echo "skipped: one more row in the table of recipes: no sanitizer is needed for it"; skipped=$((skipped + 1))
elif tests/one_more_row.sh; then echo "--- one more row in the table of recipes: passed"; passed=$((passed + 1))
else failed=$((failed + 1)); fi
failed=$((failed + failed_builds))
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
