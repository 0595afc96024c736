#!/bin/sh
# make ptxas: what ptxas makes of the hot kernels, for each architecture: registers / bytes spilled. Fails on a spill.
# Where the compiler is short of registers it spills in the middle of a loop, which no test of results would show.
# tests/ptxas.sh NVCC ARCH..
nvcc=$1; shift
cd "$(dirname "$0")/.."
dir=$(mktemp -d) && trap 'rm -rf "$dir"' EXIT
cat > "$dir/hot.cu" <<'END'
#include "ops/flash.cuh"
void use(bf16* x, float* f, Heads d) { flash_forward(x, f, x, d), flash_backward(x, f, x, x, x, f, d); }
END
for arch in "$@"; do
    "$nvcc" -x cu -std=c++20 -O3 -fmad=false --extended-lambda --expt-relaxed-constexpr -I. -Xptxas -v -cubin \
        -arch="sm_$arch" -o "$dir/cubin" "$dir/hot.cu" > "$dir/log" 2>&1 || { cat "$dir/log"; exit 1; }
    # "Compiling entry function 'NAME'", ".. N bytes spill stores ..", "Used N registers, .."
    awk -v arch="$arch" '
        /Compiling entry function/ { name = ""; if (match($0, /flash_[a-z_]*kernelILi[0-9]+E/)) name = substr($0, RSTART, RLENGTH - 1) }
        name && /spill stores/     { for (i = 1; i < NF; i++) if ($i == "bytes" && $(i + 1) == "spill") { spilt = $(i - 1); break } }
        name && /Used [0-9]+ reg/  { for (i = 1; i < NF; i++) if ($i == "Used") print name, arch, $(i + 1), spilt; name = "" }
    ' "$dir/log" >> "$dir/all"
done
sed 's/_kernelILi/ /' "$dir/all" | awk -v archs="$*" '
    { kernel = sprintf("%-26s HS %3d", $1, $2); seen[kernel] = 1; cell[kernel, $3] = $4 "/" $5; bad += $5 > 0; n++ }
    END {
        k = split(archs, arch, " ");
        printf "%-33s", "registers/spilled bytes"; for (i = 1; i <= k; i++) printf "%10s", "sm_" arch[i]; print ""
        sort = "sort"
        for (kernel in seen) {
            line = sprintf("%-33s", kernel); for (i = 1; i <= k; i++) line = line sprintf("%10s", cell[kernel, arch[i]])
            print line | sort
        }
        close(sort)
        if (!n) print "no kernel found in what ptxas says"
        if (bad) printf "%d spill\n", bad
        exit bad > 0 || n == 0
    }'
