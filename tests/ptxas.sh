#!/bin/sh
# make ptxas: what ptxas makes of every kernel in ops/, for each architecture. Attention's one by one, of the others the
# one that needs most registers: registers / bytes spilled by all. Fails on a spill.
# Where the compiler is short of registers it spills in the middle of a loop, which no test of results would show.
# tests/ptxas.sh NVCC ARCH..
nvcc=$1; shift
cd "$(dirname "$0")/.."
dir=$(mktemp -d) && trap 'rm -rf "$dir"' EXIT
for arch in "$@"; do
    for file in attention cast matmul ops; do
        "$nvcc" -x cu -std=c++20 -O3 -fmad=false --extended-lambda --expt-relaxed-constexpr -I. -Xptxas -v -cubin \
            -arch="sm_$arch" -o "$dir/cubin" "ops/$file.cu" > "$dir/log" 2>&1 || { cat "$dir/log"; exit 1; }
        # "Compiling entry function 'NAME'", ".. N bytes spill stores, M bytes spill loads", "Used N registers, .."
        awk -v arch="$arch" -v file="$file.cu" '
            /Compiling entry function/ {
                name = file
                if (match($0, /flash_[a-z_]*kernelILi[0-9]+E/)) {
                    split(substr($0, RSTART, RLENGTH - 1), part, "_kernelILi")
                    name = part[1] "_HS_" part[2]
                }
            }
            /spill stores/    { for (i = 1; i < NF; i++) if ($i == "bytes" && $(i + 1) == "spill") spilt += $(i - 1) }
            /Used [0-9]+ reg/ { for (i = 1; i < NF; i++) if ($i == "Used") print name, arch, $(i + 1), spilt + 0; spilt = 0 }
        ' "$dir/log" >> "$dir/all"
    done
done
awk -v archs="$*" '
    { cells[$1] = 1; count[$1, $2]++; spilt[$1, $2] += $4; bad += $4 > 0; if ($3 > most[$1, $2]) most[$1, $2] = $3 }
    END {
        k = split(archs, arch, " ")
        printf "%-33s", "registers/spilled bytes"; for (i = 1; i <= k; i++) printf "%10s", "sm_" arch[i]; print ""
        for (name in cells) {
            label = name
            if (sub(/_HS_/, " HS ", label) == 0) label = sprintf("%s, %d others", name, count[name, arch[1]])
            line = sprintf("%-33s", label)
            for (i = 1; i <= k; i++) line = line sprintf("%10s", most[name, arch[i]] "/" spilt[name, arch[i]])
            print line | "sort"
        }
        close("sort")
        if (!NR) print "no kernel found in what ptxas says"
        if (bad) printf "%d spill\n", bad
        exit bad > 0 || NR == 0
    }' "$dir/all"
