// Is what this card multiplies natively what is meant? Every native kind of GEMM that a run will use is run once, on a
// small problem, against its exact emulation; a kind that fails is emulated from then on.
#pragma once
#include "model.cuh"
#include "run/screen.h"

// A small GEMM of this kind, natively and then emulated, as fprop (BF16 out, a bias, fast accumulation) and as wgrad
// (FP32, added to). Returns "", or what went wrong.
// Bound: tensor cores align the products of a step with the largest and cut 13 bits below it (Hopper's, the shortest
// known); K products and at most K / 16 sums are each cut once by 2^-13 of at most S = sum |a b|.
// Most values are positive, so that sums are near S and a scale that is found in a wrong place shows.
inline std::string native_check(GemmKind kind) {
    constexpr int M = 40, N = 192, K = 160; // more than one tile of scales in rows, and blocks that fill none, or half
    struct Side {
        std::vector<uint8_t> codes, scales;
        std::vector<float> values = {}; // (rows, K)
        float factor[4] = {1.25f};
        Operand o = {};
    } side[2];
    auto hash = [i = 0]() mutable { return (uint32_t)mix(7, i++); };
    char *memory = allocate_zeroed(1 << 20), *next = memory;
    auto upload = [&](const void* from, size_t bytes) {
        char* to = next;
        memcpy(to, from, bytes);
        return next += (bytes + 255) / 256 * 256, to;
    };
    for (int i = 0; i < 2; i++) {
        Side& s = side[i];
        auto [elem, scale, block, exact, tall] = i ? kind.b : kind.a;
        Format f = format_of(elem);
        int rows = i ? N : M, KB = block ? (int)blocks(K, block) : 0;
        Grid at = block == 128 ? scale_grid({tall, block}, rows, KB) : Grid{(size_t)KB, 1};
        s.codes.resize(code_bytes(f, (size_t)rows * K));
        s.scales.resize(block == 128 ? 4 * at.lines * at.length : tiled_scale_bytes(rows, KB));
        s.o = codes_of(s.codes.data(), f, true, K);
        if (block) {
            s.o.scales = s.scales.data(), s.o.scale_elem = scale, s.o.block = block, s.o.scale_rows = tall;
            s.o.ld_scales = at.row, s.o.scale_step = at.k, s.o.exact = exact;
            s.o.swizzled = machine.layout.tiled && block < 128;
        }
        for (size_t at = 0; at < (size_t)rows * K; at++) {
            uint32_t code = encode(f, f.max * 0x1p-16f * (float)(int)(hash() % 0x10000) * (hash() % 8 ? 1 : -1));
            s.codes[f.bits() == 4 ? at / 2 : at] |= code << (f.bits() == 4 ? at % 2 * 4 : 0);
        }
        for (int r = 0; r < rows; r++)
            for (int kb = 0; kb < KB; kb++) {
                bool mantissa = scale == Elem::e4m3 || !exact;
                float v = exp2i((int)(hash() % 5) - 2) * (mantissa ? 1 + 0.125f * (float)(hash() % 8) : 1);
                size_t to = s.o.swizzled ? tiled_scale(r, kb, KB) : r / tall * at.row + kb * at.k;
                if (block == 128) ((float*)s.scales.data())[to] = v;
                else s.scales[to] = (uint8_t)encode(format_of(scale), v);
            }
        for (int r = 0; r < rows; r++)
            for (int k = 0; k < K; k++) s.values.push_back((float)fetch(s.o, r, k));
        s.o.data = upload(s.codes.data(), s.codes.size());
        if (block) s.o.scales = upload(s.scales.data(), s.scales.size());
        if (scale != Elem::e8m0 && block != 128) s.o.factor = (const float*)upload(s.factor, 16);
    }
    double factor = is_fp4(kind) ? 1.25 * 1.25 / (2688.0 * 2688) : side[0].o.factor ? 1.25 * 1.25 : 1;
    float unit = (float)factor * format_of(kind.a.elem).max * format_of(kind.b.elem).max; // about a product
    std::vector<bf16> bias(N);
    for (bf16& b : bias) b = bf16(unit * (float)(hash() % 64));
    std::string wrong;
    bool insist = std::exchange(native.insist, false);
    for (bool fprop : {true, false}) {
        std::vector<float> start(M * N, 20 * unit);
        Gemm g = {.out = nullptr, .out_elem = fprop ? Elem::bf16 : Elem::f32, .ld_out = N, .M = M, .N = N, .K = K,
                  .a = side[0].o, .b = side[1].o, .accumulate = !fprop, .fast_accum = fprop};
        if (fprop) g.bias = upload(bias.data(), 2 * N);
        std::vector<float> got[2];
        for (bool as_codes : {true, false}) {
            g.out = upload(start.data(), 4 * M * N);
            if (!as_codes) native.failed[kind] = "it is being checked";
            matmul("native_check", g);
            if (!as_codes) native.failed.erase(kind);
            if (native.used != as_codes) wrong = "cuBLASLt does not take it";
            synchronize("native_check");
            for (int i = 0; i < M * N; i++)
                got[as_codes].push_back(fprop ? (float)((bf16*)g.out)[i] : ((float*)g.out)[i]);
        }
        for (int i = 0; i < M * N && wrong.empty(); i++) {
            double S = fprop ? fabs((float)bias[i % N]) : fabs(start[i]);
            for (int k = 0; k < K; k++)
                S += factor * fabs((double)side[0].values[i / N * K + k] * side[1].values[i % N * K + k]);
            double bound = (K + K / 16) * 0x1p-13 * S + (fprop ? 0x1p-7 * fabs(got[false][i]) : 0);
            if (!(fabs((double)got[true][i] - got[false][i]) <= bound))
                wrong = format("row %d, column %d of a small product is %g, and should be %g +- %.2g", i / N, i % N,
                               got[true][i], got[false][i], bound);
        }
    }
    native.insist = insist;
    release_memory(memory, 1 << 20);
    return wrong;
}
// For every kind that a run will use: what a card gets wrong is emulated from then on, or an error if native.insist.
inline void prove_native(const std::vector<GemmKind>& kinds) {
    start_matmul_gpu();
    for (const GemmKind& k : kinds) {
        if (!k.any_codes() || native.failed.count(k) || !why_emulated(k, machine.cc).empty()) continue;
        std::string wrong = native_check(k), what = how_multiplied(k, machine.cc);
        if (wrong.empty()) continue;
        if (native.insist) fail("--native: %s fails its check on this card: %s", what.c_str(), wrong.c_str());
        note("%s fails its check on this card and is emulated: %s", what.c_str(), wrong.c_str());
        native.failed[k] = "it failed its check on this card: " + wrong;
    }
}
// The same wherever a recipe is resolved, once for each kind; on a CPU there is nothing to prove.
inline void prove_gemms(const std::vector<GemmKind>& kinds, bool insist) {
    static std::map<GemmKind, bool> proved;
    if (!machine.gpu || machine.kernels != Kernels::fast) return;
    native.insist = insist;
    for (const GemmKind& k : kinds)
        if (!std::exchange(proved[k], true)) prove_native({k});
}
