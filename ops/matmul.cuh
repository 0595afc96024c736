// out = a b^T, the one product that fprop, dgrad and wgrad are all made of: both operands are read as (rows, K) and
// contracted along K; which of them is stored transposed is a matter of its strides. Operands are BF16, FP32, or codes
// with scales. The definition is the row function below. It sums in "pair order": for k = 0, 2, 4, .. acc = fma(a[k],
// b[k], fma(a[k+1], b[k+1], acc)), the odd element first, because that is what a BF16 dot-product instruction does. The
// packed CPU kernels (matmul_cpu.cpp) are its fast twins: bit-equal but for AMX, whose bound is derived there.
//
// Scales of blocks are applied to elements, which BF16 then holds exactly (fp8.cuh, section 6); scales of a whole
// tensor to the finished sum: out = ((sum * scale_inv_a) * scale_inv_b) + bias, and for two NVFP4 operands, whose
// tensor scales are amaxes, sum * (amax_a * amax_b / (36 * 448^2)). Scales that BF16 cannot take (FP32 ones that are
// no powers of two) multiply the sum of each block instead, and only the row function and sm_90 do that.
#pragma once
#include "fp8.cuh"
#include "ops/hardware.h"
#include "ops/matmul_cpu.h"
#include <map>
#include <vector>

template <class T> constexpr Elem elem = Elem::f32;
template <> constexpr Elem elem<bf16> = Elem::bf16;
// A matrix contracted along its rows' elements, or down its columns; ld: elements from one row to the next.
template <class T> Operand rows_of(const T* data, size_t ld) { return {data, elem<T>, true, ld}; }
template <class T> Operand columns_of(const T* data, size_t ld) { return {data, elem<T>, false, ld}; }

HD INLINE Format format_of(Elem e) {
    switch (e) {
    case Elem::bf16: return BF16;
    case Elem::e4m3: return E4M3;
    case Elem::e5m2: return E5M2;
    case Elem::e3m2: return E3M2;
    case Elem::e2m3: return E2M3;
    case Elem::e2m1: return E2M1;
    case Elem::e8m0: return E8M0;
    default: return FP32;
    }
}
inline Elem elem_of(Format f) {
    for (int e = 0; e <= (int)Elem::e8m0; e++)
        if (format_of((Elem)e) == f) return (Elem)e;
    fail("%s: no GEMM takes it", f.name);
}
// The values of all codes, for the CPU's kernel, which looks them up.
struct CodeValues {
    alignas(64) uint16_t bf16s[256];
    alignas(64) float floats[256];
};
inline const CodeValues& values_of(Elem e) {
    static const auto tables = [] {
        static CodeValues t[(int)Elem::e8m0 + 1];
        for (int e = (int)Elem::e4m3; e <= (int)Elem::e8m0; e++)
            for (uint32_t c = 0; c < 1u << format_of((Elem)e).bits(); c++)
                t[e].floats[c] = decode(format_of((Elem)e), c), t[e].bf16s[c] = bf16(t[e].floats[c]).bits;
        return t;
    }();
    return tables[(int)e];
}
// Codes of f, ld from one row to the next; along_rows: contracted along its rows' elements.
inline Operand codes_of(const uint8_t* codes, Format f, bool along_rows, size_t ld) {
    Operand o = {codes, elem_of(f), along_rows, ld};
    o.values = values_of(o.elem).bf16s;
    return o;
}

HD INLINE float block_scale(const Operand& o, size_t row, size_t k) {
    size_t i = row / o.scale_rows * o.ld_scales + k / o.block * o.scale_step;
    if (o.swizzled) i = tiled_scale(row, k / o.block, o.ld_scales);
    if (o.scale_elem == Elem::f32) return ((const float*)o.scales)[i];
    return decode(format_of(o.scale_elem), ((const uint8_t*)o.scales)[i]);
}
HD INLINE real fetch(const Operand& o, size_t row, size_t k, bool scaled = true) {
    size_t i = o.k_contiguous ? row * o.ld + k : k * o.ld + row;
    if (o.elem == Elem::bf16) return (real)((const bf16*)o.data)[i];
    if (o.elem == Elem::f32) return ((const real*)o.data)[i];
    const uint8_t* codes = (const uint8_t*)o.data;
    float v = decode(format_of(o.elem), o.elem == Elem::e2m1 ? codes[i / 2] >> i % 2 * 4 & 15 : codes[i]);
    return o.scales && scaled ? v * block_scale(o, row, k) : v;
}
// sum over k < K of a(k) b(k) in pair order
template <class A, class B> HD INLINE real dot_in_pairs(int K, A a, B b) {
    real acc = 0;
    int k = 0;
    for (; k + 2 <= K; k += 2) acc = fma_(a(k), b(k), fma_(a(k + 1), b(k + 1), acc));
    return k < K ? fma_(a(k), b(k), acc) : acc;
}
// The same with a narrow accumulator, as in tensor cores that keep fewer bits (DeepSeek-V3, section 3.3.2, measured 14
// on Hopper): products are exact, each sum is cut to mbits bits below its leading one, towards zero; after every
// `interval` products it moves to an FP32 sum.
template <class A, class B> HD INLINE real dot_narrow(int K, A a, B b, int mbits, int interval) {
    real sum = 0;
    float acc = 0;
    for (int k = 0; k < K; k++) {
        acc = bits_as<float>(bits_as<uint32_t>(fmaf((float)a(k), (float)b(k), acc)) & ~0u << (23 - mbits));
        if ((k + 1) % interval == 0 || k + 1 == K) sum += acc, acc = 0;
    }
    return sum;
}
// What all of an operand is multiplied by: scale_inv, or for NVFP4 amax / 2688.
HD INLINE float factor_of(const Operand& o) {
    if (!o.factor) return 1;
    return o.scale_elem == Elem::e4m3 ? *o.factor * (1 / (E4M3.max * E2M1.max)) : *o.factor;
}
struct Factors { float a, b; };
HD INLINE Factors factors_of(const Gemm& s) {
    float nvfp4 = E4M3.max * E2M1.max;
    if (s.a.factor && s.b.factor && s.a.scale_elem == Elem::e4m3 && s.b.scale_elem == Elem::e4m3)
        return {*s.a.factor * *s.b.factor / (nvfp4 * nvfp4) * s.scale_a, s.scale_b};
    return {s.scale_a * factor_of(s.a), s.scale_b * factor_of(s.b)};
}
// sum over blocks of (sum over the block of codes) * scale_a * scale_b, both operands in blocks along k of `block`
HD INLINE real dot_in_blocks(const Operand& a, const Operand& b, size_t m, size_t n, int K, int block) {
    real sum = 0;
    for (int k0 = 0; k0 < K; k0 += block) {
        real part = dot_in_pairs(K - k0 < block ? K - k0 : block, [&](int k) { return fetch(a, m, k0 + k, a.exact); },
                                 [&](int k) { return fetch(b, n, k0 + k, b.exact); });
        sum += part * (a.exact ? 1 : block_scale(a, m, k0)) * (b.exact ? 1 : block_scale(b, n, k0));
    }
    return sum;
}
// Sums kept to mbits bits, moved to FP32 every `interval` products; 0: FP32 all along.
struct Accum { int mbits = 0, interval = 0; };
inline Accum accumulator; // of matmul()

HD inline void matmul_row(Lanes g, Gemm s, Accum narrow, size_t m) {
    Factors f = factors_of(s);
    g.each(s.N, [=](int n) {
        auto a = [&](int k) { return fetch(s.a, m, k); };
        auto b = [&](int k) { return fetch(s.b, n, k); };
        real acc = narrow.mbits                 ? dot_narrow(s.K, a, b, narrow.mbits, narrow.interval)
                   : s.a.exact && s.b.exact ? dot_in_pairs(s.K, a, b)
                                            : dot_in_blocks(s.a, s.b, m, n, s.K, s.a.exact ? s.b.block : s.a.block);
        size_t at = m * s.ld_out + n;
        acc = acc * f.a * f.b;
        if (s.out_elem == Elem::bf16) {
            if (s.bias) acc += (real)((const bf16*)s.bias)[n];
            bf16* out = (bf16*)s.out;
            out[at] = bf16(s.accumulate ? (real)out[at] + acc : acc);
        } else {
            if (s.bias) acc += ((const real*)s.bias)[n];
            real* out = (real*)s.out;
            out[at] = s.accumulate ? out[at] + acc : acc;
        }
    });
}
// name: fprop, dgrad or wgrad, for --profile. Shapes and strides are the Gemm's; no dimension needs to divide anything.
void matmul(const char* name, const Gemm& s);
void matmul_here(Gemm s); // by the CPU's kernel, on the calling thread alone when a parallel loop is already running

// Memory for a GPU's operands that are decoded first, given by whoever plans memory, or grown where there is none.
struct MatmulScratch { char* memory = nullptr; size_t bytes = 0; };
inline MatmulScratch matmul_scratch;
// For operands of at most so many elements, ld * rows.
inline size_t matmul_scratch_bytes(size_t a, size_t b) {
    return (a * sizeof(act) + 255) / 256 * 256 + (b * sizeof(act) + 255) / 256 * 256;
}
// What a card's tensor cores do, beyond what hardware.h knows.
struct Native {
    std::map<GemmKind, std::string> failed; // kinds that this card gets wrong, and how (lab/native.cuh): emulated
    bool insist = false;                    // --native: emulation is an error
    bool used = false;                      // by the last GEMM
    long gemms = 0;                         // so far
    std::string failed_check(const GemmKind& kind) const { // how; "" if it did not
        auto at = failed.find(kind);
        return at == failed.end() ? "" : at->second;
    }
};
inline Native native;
void start_matmul_gpu(); // what the first GEMM would do: the library, its workspace
