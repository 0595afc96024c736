#!/bin/bash
# tests/gpu.sh: everything there is to find out on a card, in one call of less than 9 minutes: builds, runs the tests of the
# GPU's code on it, compares training with the CPU's, looks for races, benchmarks. Needs this repository, the CUDA toolkit
# and a C++ compiler. Text and JSON go to $OUT (default: a folder gpu-results); the last lines are a short table.
# SECONDS_LEFT=540: what takes longer is left out and said. PEER='CMD': a peer's program, run beside the benchmarks.
set -u
cd "$(dirname "$0")/.."
out=${OUT:-gpu-results}; mkdir -p "$out"; out=$(cd "$out" && pwd)
left() { [ $SECONDS -lt $((${SECONDS_LEFT:-540} - $1)) ]; } # is there time for something of $1 seconds?
passed=0 failed=0 skipped=0
say() { echo "$*" | tee -a "$out/summary.txt"; }
verdict() { # a name, a status
    if [ "$2" = 0 ]; then passed=$((passed + 1)); say "ok      $1"; else failed=$((failed + 1)); say "FAILED  $1"; fi
}
skip() { skipped=$((skipped + 1)); say "skipped $1"; }
: > "$out/summary.txt"
state() { nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,temperature.gpu,power.draw,clocks_throttle_reasons.active --format=csv; }
{ state; nvcc --version | tail -n 2; git describe --always --dirty 2>/dev/null; nproc; } > "$out/machine.txt" 2>&1

# --- build ------------------------------------------------------------------------------------------------------------
make -s -j"$(nproc)" all gpu-tests > "$out/build.txt" 2>&1; verdict "build" $?
[ -x ./train ] || { tail -n 20 "$out/build.txt"; exit 1; }
kind=$(cat build/last-train)
./train recipes --cc "$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)" > "$out/recipes.txt" 2>&1

# --- tests on the card ------------------------------------------------------------------------------------------------
"build/$kind/tests/gpu-all" > "$out/tests.txt" 2>&1; verdict "kernels against their row functions, row functions against the CPU: $(grep -a '^count:' "$out/tests.txt")" $?

# --- training against the CPU -----------------------------------------------------------------------------------------
all=bf16,hybrid,e4m3,current,blockwise,mxfp8,mxfp6,mxfp4,nvfp4
run() { rm -rf "$out/$1"; DEBUG=0 ./train --out "$out/$1" --quiet --stats-every 0 "${@:2}" > "$out/$1.txt" 2>&1; }
run cpu --device cpu --recipe $all --steps 5 --eval-every 5; run cuda --device cuda --recipe $all --steps 5 --eval-every 5
awk -F, 'NR == FNR { cpu[$1, $3] = $5; next } FNR > 1 { d = $5 - cpu[$1, $3]; if (d < 0) d = -d; n++; if (d > most) most = d; if (!(d <= 1e-3)) bad++ }
    END { printf "%d losses, at most %.2g apart\n", n, most; exit bad > 0 || n != 45 }' "$out/cpu/steps.csv" "$out/cuda/steps.csv" > "$out/first.txt"
verdict "the first 5 losses of 9 recipes are the CPU's to 1e-3: $(cat "$out/first.txt")" $?
# The 100th step: within what an ulp of one weight does, of several, in the same recipe.
noise() {
    local arms=$1 i; for i in 1 -1 2 -2; do arms=$arms,$1:nudge=$i; done
    run "noise-$1" --device cpu --recipe "$arms" --steps 100 --eval-every 100 && run "gpu-$1" --device cuda --recipe "$1" --steps 100 --eval-every 100
    awk -F, -v arm="$1" 'FNR == 1 { file++; next } $3 < 91 { next }
        file == 1 { sum[$1] += $5 / 10 } file == 2 { gpu += $5 / 10 }
        END { for (a in sum) { d = sum[a] - sum[arm]; if (d < 0) d = -d; if (d > floor) floor = d }
              d = gpu - sum[arm]; if (d < 0) d = -d; printf "%s: %.2g, noise %.2g", arm, d, floor; exit !(d <= 2 * floor) }' \
        "$out/noise-$1/steps.csv" "$out/gpu-$1/steps.csv" > "$out/noise-$1.verdict"
}
for r in bf16 hybrid mxfp8 nvfp4; do
    if left 240; then noise $r; verdict "mean loss of steps 91 to 100 is within twice the noise floor of the CPU's: $(cat "$out/noise-$r.verdict")" $?
    else skip "the 100th loss of $r: no time"; fi
done

# --- compute-sanitizer ------------------------------------------------------------------------------------------------
for tool in memcheck racecheck; do
    if ! command -v compute-sanitizer > /dev/null; then skip "compute-sanitizer $tool: it is not installed"; continue; fi
    if ! left 200; then skip "compute-sanitizer $tool: no time"; continue; fi
    timeout 60 compute-sanitizer --tool $tool --error-exitcode 9 ./train --device cuda --recipe hybrid --layers 1 --channels 64 --heads 2 --seq-len 64 \
        --batch-size 2 --steps 2 --eval-batches 1 --stats-every 0 --out "$out/$tool" > "$out/$tool.txt" 2>&1
    verdict "compute-sanitizer $tool: two steps of hybrid" $?
done

# --- benchmarks -------------------------------------------------------------------------------------------------------
bench() { # a name, options: interleaved arms
    if ! left 40; then skip "bench $1: no time"; return; fi
    state > "$out/bench-$1.state"
    timeout 120 ./train bench --device cuda --json "${@:2}" > "$out/bench-$1.json" 2> "$out/bench-$1.txt"; local rc=$?
    state >> "$out/bench-$1.state"
    verdict "bench $1" $rc
    sed -n 's/.*"recipe":"\([^"]*\)".*"ms_per_step":\([0-9.]*\)[^,]*,"tokens_per_second":\([0-9.]*\)[^,]*,"tflops":\([0-9.]*\)[^,]*,"mfu":\([0-9.a-z]*\)[^,]*,"of_first":[^,]*,"uplift":\([0-9.]*\).*/\1 \2 \3 \4 \5 \6/p' "$out/bench-$1.json" |
        awk -v m="$1" '{ printf "%-12s %-10s %9.2f ms/step %10.0f tok/s %7.1f TFLOP/s  MFU %5.1f %%  x%.3f\n", m, $1, $2, $3, $4, 100 * $5, $6 }' >> "$out/table.txt"
}
: > "$out/table.txt"
for hs in 64 128; do
    ./train bench --op attention --device cuda --batch-size 16 --seq-len 1024 --heads $((1536 / hs)) --channels 1536 --steps 20 >> "$out/table.txt" 2> "$out/attention-$hs.txt"
    verdict "attention, head size $hs" $?
done
bench 124M --recipe bf16,hybrid,current,mxfp8 --model gpt2 --seq-len 1024 --batch-size 16 --vocab 50304 --steps 8
bench 124M-profile --recipe hybrid --model gpt2 --seq-len 1024 --batch-size 16 --vocab 50304 --steps 4 --profile
bench 1558M --recipe bf16,hybrid --model gpt2-xl --seq-len 1024 --batch-size 4 --vocab 50304 --steps 5
if [ -n "${PEER:-}" ] && left 60; then timeout 60 sh -c "$PEER" > "$out/peer.txt" 2>&1; verdict "peer: $PEER" $?; tail -n 3 "$out/peer.txt" >> "$out/table.txt"; fi
sed -n 2p "$out/machine.txt"
cat "$out/summary.txt" "$out/table.txt"
echo "$passed passed, $failed failed, $skipped skipped in $SECONDS s"
[ $failed = 0 ]
