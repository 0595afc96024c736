#!/bin/sh
# make test: builds ./train, ./train-f32 and the four test programs for the CPU, runs them, adds up their counts. Last, a
# recipe is added to a copy of the program.
# SAN="-fsanitize=.." does it all with a sanitizer; BRIEF=1 as well: the first and the last program, around a ./train
# without it.
set -u
cd "$(dirname "$0")/.."
logs=$(mktemp -d) && trap 'rm -rf "$logs"' EXIT
build() { # a name, make arguments; says so if it fails
    name=$1; shift
    make -s CUDA=0 "SAN=$san" "$@" >"$logs/build-$name" 2>&1 && return
    echo "--- make $* failed:"; cat "$logs/build-$name"; : >"$logs/failed-$name"; return 1
}
suffix=${SAN:+-san}
make -s build/doctest/doctest/doctest.h || exit 1
kinds="bf16 float double standin" brief=${SAN:+${BRIEF:-}} san=${SAN:-}
if [ -n "$brief" ]; then kinds="bf16 standin" san=; fi
build train && build train-f32 ACT=float
if [ -n "$san" ]; then ULP_TRAIN=build/cpu-bf16-san/train ULP_TRAIN_F32=build/cpu-float-san/train
else ULP_TRAIN=./train ULP_TRAIN_F32=./train-f32; fi
export ULP_TRAIN ULP_TRAIN_F32
san=${SAN:-}
program() { echo "build/cpu-$1$suffix/tests/all"; }
row() { tests/one_more_row.sh >"$logs/row" 2>&1; echo $? >"$logs/row-status"; }
first=${kinds%% *} passed=0 failed=0 skipped=0
build "$first" ACT="$first" "$(program "$first")"
{ # the rest is built while the first program runs, which mostly keeps one core busy
    for act in ${kinds#* }; do build $act ACT=$act "$(program $act)"; done
    [ -n "$suffix" ] || row
} >"$logs/rest" & rest=$!
for act in $kinds; do
    [ $act = "$first" ] || wait $rest
    [ ! -e "$logs/failed-$act" ] || continue
    few=; if [ -n "$brief" ] && [ $act = standin ]; then few="-tce=training steps*,flash attention equals*,a run as graphs returns*,*all its fusions*,weights cast by*,fused casts of attention*"; fi # slow there
    "$(program $act)" ${few:+"$few"} >"$logs/run" 2>&1 || echo "--- $act: failures follow"
    grep -avE '^count:|^\[doctest\]|^=+$' "$logs/run"
    count=$(sed -n 's/^count: \([0-9]*\) passed, \([0-9]*\) failed, \([0-9]*\) skipped$/\1 \2 \3/p' "$logs/run")
    [ -n "$count" ] || { echo "--- $act: the test program died"; failed=$((failed + 1)); continue; }
    set -- $count
    echo "--- $act: $1 passed, $2 failed, $3 skipped"
    passed=$((passed + $1)) failed=$((failed + $2)) skipped=$((skipped + $3))
done
wait $rest
cat "$logs/rest"
if [ -n "$suffix" ]; then echo "skipped: one more row in the table of recipes: no sanitizer is needed for it"; skipped=$((skipped + 1))
elif [ "$(cat "$logs/row-status")" = 0 ]; then echo "--- one more row in the table of recipes: passed"; passed=$((passed + 1))
else cat "$logs/row"; failed=$((failed + 1)); fi
failed=$((failed + $(find "$logs" -name 'failed-*' | wc -l)))
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
