#!/bin/sh
# make fuzz: builds the targets and runs each for some seconds, from the committed corpus and from what earlier runs have
# added to it in build/fuzz/corpus. A finding is left in build/fuzz/found.   run.sh SECONDS TARGET..
set -u
cd "$(dirname "$0")/../.."
seconds=$1 && shift
mkdir -p build/fuzz/found
if ! echo 'extern "C" int LLVMFuzzerTestOneInput(const char*, long) { return 0; }' |
    clang++ -x c++ -fsanitize=fuzzer,address - -o build/fuzz/probe 2>/dev/null; then
    echo "skipped: fuzzing: no clang++ with libFuzzer here"
    echo "0 passed, 0 failed, $# skipped"
    exit 0
fi
shm=/dev/shm && [ -w $shm ] || shm=/tmp
TMPDIR=$(mktemp -d -p $shm) && export TMPDIR
log=$(mktemp) && trap 'rm -rf "$log" "$TMPDIR"' EXIT && trap 'exit 1' INT TERM
passed=0 failed=0
for t; do
    if ! make -s CUDA=0 "build/fuzz/run-$t" >"$log" 2>&1; then
        echo "--- fuzz $t: does not build"; cat "$log"; failed=$((failed + 1)); continue
    fi
    mkdir -p "build/fuzz/corpus/$t"
    "build/fuzz/run-$t" -max_total_time="$seconds" -max_len=4096 -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
        -artifact_prefix="build/fuzz/found/$t-" "build/fuzz/corpus/$t" "tests/fuzz/corpus/$t" >"$log" 2>&1
    status=$?
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    cover=$(sed -n 's/.* cov: \([0-9]*\) ft: \([0-9]*\) .*/\1 edges, \2 features/p' "$log" | tail -n 1)
    if [ $status = 0 ] && [ "${runs:-0}" -gt 0 ]; then
        echo "--- fuzz $t: $runs executions in $seconds s, $cover, nothing found"; passed=$((passed + 1))
    else
        echo "--- fuzz $t: FOUND (exit status $status)"
        grep -aE '^(==|SUMMARY|.*runtime error|.*\.h:[0-9]+: |terminate|  what|artifact|Test unit|    #[0-9] )' "$log" | head -n 30
        failed=$((failed + 1))
    fi
done
echo "$passed passed, $failed failed, 0 skipped"
[ $failed = 0 ]
