#!/bin/sh
# Adds a recipe as a reader would: in a copy of the program, one row more in the table of scaling.cuh (mxfp8's, with another
# name and two columns changed) and no other edit. Then it builds, trains, evaluates and reads what is reported. Objects
# that do not depend on the table are taken over, which leaves a minute of compilation. Status 0 if all is well.
set -eu
cd "$(dirname "$0")/.."
dir=$(mktemp -d) && trap 'rm -rf "$dir"' EXIT
wrong() { echo "one_more_row: $*"; exit 1; }
git ls-files -co --exclude-standard '*.cu' '*.cuh' '*.cpp' '*.h' report/report.html Makefile | grep -v '^tests/' | tar -cf - -T - | tar -xf - -C "$dir"
for built in build/cpu-bf16 build/plain build/last-train; do
    [ ! -e $built ] || tar -cf - --exclude=tests $built | tar -xf - -C "$dir"
done
cd "$dir"
mv scaling.cuh table.before
awk '{ print }
     /^    \{"mxfp8",/ { take = 1 }
     take { row = row $0 "\n" }
     take && /"\},$/ {
         sub("mxfp8", "onemore", row); sub(/E4M3, mx, row32/, "E2M3, mx, row32", row)
         sub(/E4M3, mx, row32\},\n/, "E5M2, mx, row32},\n", row)
         printf "%s", row; take = 0; row = ""
     }' table.before >scaling.cuh
[ "$(grep -c '{"onemore",.*E2M3.*E4M3.*E5M2' scaling.cuh)" = 1 ] || wrong "did not find mxfp8's row in scaling.cuh"
rm -f train
make -s CUDA=0 OPT=-O1 train >make.log 2>&1 || { cat make.log; wrong "it does not compile"; }

small="--layers 1 --channels 32 --heads 2 --seq-len 16 --vocab 257 --batch-size 4 --eval-batches 2 --steps 5 --stats-every 1"
./train $small --recipe onemore,mxfp8 --out run >out 2>err || { cat err; wrong "it does not train"; }
done_line() { grep "^done recipe=$1 seed=1 step=5 loss=[0-9.]* checkpoint=[^ ]* fingerprint=[0-9a-f]*$" out || wrong "no done line of $1"; }
mine=$(done_line onemore) theirs=$(done_line mxfp8)
[ "${mine##*=}" != "${theirs##*=}" ] || wrong "the new row trained as mxfp8 does"
rows() { awk -F, -v operand="$1" -v format="$2" '$1 == "onemore" && $4 != "lm_head" && $5 == operand && $6 == format && $11 > 5' run/tensors.csv | wc -l; }
[ "$(rows x e2m3) $(rows w e4m3) $(rows dy e5m2)" = "20 20 20" ] || { cat run/tensors.csv; wrong "tensors.csv shows other formats"; }
grep -q '"recipe": *"onemore"' run/run.json || wrong "run.json does not have the row"
./train recipes | grep -q '^onemore .*e2m3.*e4m3.*e5m2' || wrong "./train recipes does not list it"
./train recipes --json onemore:scale_rule=floor | grep -q '"x.scale_rule":"floor"' || wrong "it has no keys"
if ./train recipes onemore:margin=1 2>err; then wrong "it takes keys that it has no use for"; fi
grep -q 'onemore has no use for margin' err || wrong "it does not say why it refuses a key"
checkpoint=${mine#*checkpoint=} && checkpoint=${checkpoint%% *}
./train eval "$checkpoint" --recipe onemore --data Makefile --quiet | grep -q '^eval recipe=onemore loss=' || wrong "it does not evaluate"
