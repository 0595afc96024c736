#!/bin/sh
# Kills training runs at random moments and resumes them, until they are done: what they leave must be what undisturbed
# runs leave, byte for byte, the column `ms` aside. One kill in five is a SIGTERM, after which ./train has to have said how
# to go on. KILLS=200 per recipe; SEED=1 of the moments.
#   tests/kills.sh [TRAIN]
set -eu
train=$(realpath "${1:-./train}")
: "${KILLS:=200}" "${SEED:=1}"
dir=$(mktemp -d) && trap 'rm -rf "$dir"' EXIT
cd "$dir"
options="--layers 2 --channels 64 --seq-len 32 --batch-size 4 --steps 60 --checkpoint-every 3 --eval-every 10
         --eval-batches 2 --stats-every 4 --grad-accum 2 --threads 1"
tables() { # what two runs must agree in
    for table in steps evals tensors arms; do
        awk -F, -v OFS=, 'NR == 1 { for (i = 1; i <= NF; i++) if ($i == "ms") ms = i } ms { $ms = "" } { print }' "$1/$table.csv"
    done
}
fingerprint() { sed -n "s/^done .*fingerprint=//p" "$1"; }
passed=0 failed=0
for recipe in bf16 hybrid:amax_history_len=16 nvfp4; do
    rm -rf whole && "$train" --recipe "$recipe" $options --out whole --quiet >whole.out 2>whole.err
    tables whole >whole.txt
    kills=0 terms=0 runs=0 bad=0
    awk -v seed="$SEED" -v n=$((KILLS * 20)) 'BEGIN { srand(seed)
        while (n-- > 0) printf "0.%03d %s\n", 500 * rand(), rand() < 0.2 ? "TERM" : "KILL" }' >moments
    exec 3<moments
    while [ $kills -lt "$KILLS" ]; do
        rm -rf run && status=1 && runs=$((runs + 1))
        while [ $status != 0 ]; do
            if [ -e run/run.json ]; then set -- --resume run; else rm -rf run; set -- --recipe "$recipe" $options --out run; fi
            read -r moment signal <&3
            "$train" "$@" >run.out 2>run.err & pid=$!
            sleep "$moment"
            [ $kills -ge "$KILLS" ] || ! kill -$signal $pid 2>/dev/null || kills=$((kills + 1))
            status=0; wait $pid 2>/dev/null || status=$?
            case $status in
            0 | 137) ;;
            143) # with nothing said it came before ./train was there to hear it
                terms=$((terms + 1))
                [ ! -s run.err ] || grep -q 'resume run$' run.err || { echo "SIGTERM, and it said:"; cat run.err; bad=$((bad + 1)); } ;;
            *) echo "status $status:"; cat run.err; exit 1 ;;
            esac
        done
        tables run >run.txt
        cmp whole.txt run.txt && [ "$(fingerprint whole.out)" = "$(fingerprint run.out)" ] || bad=$((bad + 1))
    done
    exec 3<&-
    echo "$recipe: $kills kills, $terms of them SIGTERM, in $runs runs: $bad differ from an undisturbed one"
    if [ $bad = 0 ]; then passed=$((passed + 1)); else failed=$((failed + 1)); fi
done
echo "$passed passed, $failed failed, 0 skipped"
[ $failed = 0 ]
