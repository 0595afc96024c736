// A packed GEMM. The idea: cut both operands into *chunks* of 16 rows x 16 dwords, 1 KB each, where a dword holds two
// neighbours along k in BF16, or one element in FP32. A chunk of a is stored row by row, a chunk of b dword by dword:
//     a: [16 rows of a][16 along k]        b: [16 along k][16 rows of b, which are columns of out]
// which is what AMX tiles want, and also what a kernel wants that broadcasts from a and reads vectors of b. So all kernels
// share the packing, the loops and the epilogue, and differ in one function of 20 lines that multiplies 32 rows of a by
// 32 of b. Packing costs O((M + N) K), hides layouts, element types and ragged edges, and decodes low-precision codes.
//
// What a reader would get wrong:
// - Missing k are padded with +0 in a and -0 in b: -0 is the one product that changes no accumulator, not even one of -0.
//   Missing rows are padded too; their outputs are never stored.
// - A tile of out belongs to one thread and K is walked in order, in pieces that fit the caches; between pieces the
//   accumulators rest in the workspace. How things are cut therefore changes no bit, and the epilogue runs once.
// - Everything marked FLAT is inlined into one function per instruction set (`tile_...`, near the end) and compiled for it.
// - Little-endian machines only: the even element is the low half of a dword.
#include "ops/matmul_cpu.h"
#include "run/error.h"
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <type_traits>
#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef __x86_64__
#include <cpuid.h>
#include <immintrin.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

#ifdef __aarch64__
#include <arm_neon.h>
#endif

static int ceil_div(int64_t a, int64_t b) { return (int)((a + b - 1) / b); }

#define FLAT inline __attribute__((always_inline))
#define TARGET(isa) __attribute__((target(isa)))

// --- vectors of 16, in the compilers' common extension -------------------------------------------------------------
// By reference: passing a 64-byte vector by value means different things with and without AVX-512.
typedef uint8_t B16 __attribute__((vector_size(16)));
typedef uint8_t B32 __attribute__((vector_size(32)));
typedef uint16_t H16 __attribute__((vector_size(32)));
typedef uint16_t H32 __attribute__((vector_size(64)));
typedef int16_t I32 __attribute__((vector_size(64)));
typedef uint32_t V16 __attribute__((vector_size(64)));
typedef float F4 __attribute__((vector_size(16)));
typedef float F16 __attribute__((vector_size(64)));

FLAT void fma4(F4& acc, float x, const F4& y) {
#ifdef __aarch64__
    acc = vfmaq_n_f32(acc, y, x);
#else
    for (int i = 0; i < 4; i++) acc[i] = fmaf(x, y[i], acc[i]);
#endif
}
// The first n of 16 elements at p, which need not be aligned; the rest of v, or of p, stays as it is.
template <class V> FLAT void load(V& v, const void* p, int n) {
    memcpy(&v, p, n == 16 ? sizeof(V) : n * sizeof(V) / 16);
}
template <class V> FLAT void store(void* p, const V& v, int n) {
    memcpy(p, &v, n == 16 ? sizeof(V) : n * sizeof(V) / 16);
}
FLAT void interleave(V16& v, const H16& even, const H16& odd) {
    v = (V16)__builtin_shufflevector(even, odd, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23, 8, 24, 9, 25,
                                     10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}
FLAT void widen(V16& v, const H16& h) { interleave(v, H16{}, h); } // BF16 -> FP32
FLAT void round_to_bf16(H32& h, const F16& lo, const F16& hi) {    // nearest even; NaN becomes 0x7fff
    V16 x[2] = {(V16)lo, (V16)hi};
    for (V16& v : x) v = (F16)v != (F16)v ? V16{} + 0x7fff0000 : v + 0x7fff + ((v >> 16) & 1);
    h = __builtin_shufflevector((H32)x[0], (H32)x[1], 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31, 33, 35,
                                37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63); // the upper halves
}
FLAT void transpose(V16 (&x)[16]) { // four perfect shuffles of the 16 x 16 dwords
    for (int round = 0; round < 4; round++) {
        V16 y[16];
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            y[2 * i] = __builtin_shufflevector(x[i], x[i + 8], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            y[2 * i + 1] =
                __builtin_shufflevector(x[i], x[i + 8], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
        }
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) x[i] = y[i];
    }
}

// --- packing -------------------------------------------------------------------------------------------------------
constexpr int CHUNK = 256; // dwords in a chunk

// Where elements are decoded: n neighbours from element `at` on, of the 16 or 32 that v holds; the rest becomes +0 or -0.
template <class V> FLAT void run_bf16(V& v, const Operand& o, size_t at, int n, bool minus) {
    if (n < (int)sizeof(V) / 2) v = V{} + (uint16_t)(minus << 15);
    memcpy(&v, (const uint16_t*)o.data + at, n == sizeof(V) / 2 ? sizeof(V) : 2 * n);
}
template <Elem E> FLAT void run_f32(V16& v, const Operand& o, size_t at, int n, bool minus) {
    if constexpr (E == Elem::bf16) {
        H16 h;
        run_bf16(h, o, at, n, minus);
        widen(v, h);
    } else {
        if (n < 16) v = V16{} + ((uint32_t)minus << 31);
        load(v, (const float*)o.data + at, n);
    }
}

// Codes, 32 at once, with AVX-512. What the tables in registers are asked with is not left to the compilers, which take
// 7 instructions to widen bytes and 100 for a variable shuffle.
template <int BITS> struct Table { H32 t[BITS == 8 ? 4 : BITS == 6 ? 2 : 1]; };
template <int BITS> FLAT void load_table(Table<BITS>& t, const uint16_t* values) {
    memcpy(&t, values, BITS == 4 ? 32 : sizeof(t));
    if (BITS == 4) memcpy((char*)&t + 32, values, 32); // twice, so that bit 4 of an index does not matter
}
template <int BITS> using Bytes = std::conditional_t<BITS == 4, B16, B32>; // 32 codes
template <int BITS> FLAT void decode([[maybe_unused]] H32& v, const Bytes<BITS>& codes, const Table<BITS>& table) {
#ifdef __x86_64__
    auto look_up =
        [](H32 & index, const H32& lo, const H32& hi) __attribute__((always_inline)) { // by its lowest 6 bits
        asm("vpermi2w %2, %1, %0" : "+v"(index) : "v"(lo), "v"(hi));
    };
    const auto& t = table.t;
    if constexpr (BITS == 4) {
        V16 pairs;
        asm("vpmovzxbd %1, %0" : "=v"(pairs) : "vm"(codes));
        v = (H32)(pairs | pairs << 12);
        asm("vpermw %1, %0, %0" : "+v"(v) : "v"(t[0]));
    } else {
        asm("vpmovzxbw %1, %0" : "=v"(v) : "vm"(codes));
        const H32 c = v;
        look_up(v, t[0], t[1]);
        if constexpr (BITS == 8) {
            H32 upper = c;
            look_up(upper, t[2], t[3]);
            v = (H32)((I32)(c << 9) < 0 ? (I32)upper : (I32)v);
            asm("vpternlogd $0xf8, %2, %1, %0" : "+v"(v) : "v"(c << 8), "v"(H32{} + 0x8000)); // v | (c << 8 & 0x8000)
        }
    }
#endif
}
// v times a scale for each pair, cut off (lost collects what is, most often nothing) or rounded.
template <bool ROUND> FLAT void scale_pairs(H32& v, const F16& scale, V16& lost) {
    V16 x[2] = {(V16)((F16)((V16)v << 16) * scale), (V16)((F16)((V16)v & 0xffff0000) * scale)};
    if constexpr (ROUND)
        for (V16& u : x) u = (F16)u != (F16)u ? V16{} + 0x7fff0000 : u + 0x7fff + ((u >> 16) & 1);
    else lost |= x[0] | x[1];
    v = (H32)(x[0] >> 16 | (x[1] & 0xffff0000));
}

// One chunk: n rows from r on (of 16), nk elements from k on (of 32 in pairs, of 16 in FP32), as lines along the
// contiguous dimension of the operand; two lines of BF16 along the rows interleave to a line of pairs.
template <bool PAIRS, Elem E, bool K_CONTIGUOUS>
FLAT void fetch(V16 (&x)[16], const Operand& o, size_t r, size_t k, int n, int nk, bool minus) {
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) {
        if constexpr (K_CONTIGUOUS && PAIRS) {
            H32 h;
            run_bf16(h, o, (r + i) * o.ld + k, i < n ? nk : 0, minus);
            x[i] = (V16)h;
        } else if constexpr (K_CONTIGUOUS) {
            run_f32<E>(x[i], o, (r + i) * o.ld + k, i < n ? nk : 0, minus);
        } else if constexpr (PAIRS) {
            H16 even, odd;
            run_bf16(even, o, (k + 2 * i) * o.ld + r, 2 * i < nk ? n : 0, minus);
            run_bf16(odd, o, (k + 2 * i + 1) * o.ld + r, 2 * i + 1 < nk ? n : 0, minus);
            interleave(x[i], even, odd);
        } else {
            run_f32<E>(x[i], o, (k + i) * o.ld + r, i < nk ? n : 0, minus);
        }
    }
}

// The same of codes. Of a ragged chunk codes and scales are copied first, so that 16 whole lines may be read.
template <bool PAIRS, int BITS, class Scale, bool ROUND, bool K_CONTIGUOUS>
FLAT void fetch_codes(V16 (&x)[16], V16& lost, const Operand& o, const Table<BITS>& table, size_t r, size_t k, int n,
                      int nk, bool minus) {
    constexpr bool SCALED = !std::is_void_v<Scale>;
    constexpr int CK = PAIRS ? 32 : 16, LINES = K_CONTIGUOUS ? 16 : CK, PER_BYTE = BITS == 4 ? 2 : 1;
    constexpr int BYTES = (K_CONTIGUOUS ? CK : 16) / PER_BYTE;
    const bool ragged = n < 16 || nk < CK;
    const uint8_t* from = (const uint8_t*)o.data + (K_CONTIGUOUS ? r * o.ld + k : k * o.ld + r) / PER_BYTE;
    size_t stride = o.ld / PER_BYTE;
    uint8_t copy[LINES][BYTES];
    if (ragged) {
        memset(copy, 0, sizeof(copy));
        for (int i = 0; i < (K_CONTIGUOUS ? n : nk); i++)
            memcpy(copy[i], from + i * stride, ((K_CONTIGUOUS ? nk : n) + PER_BYTE - 1) / PER_BYTE);
        from = copy[0], stride = BYTES;
    }
    using S = std::conditional_t<SCALED, Scale, char>;
    const S* scales = nullptr;
    S scales_copy[16][2] = {};
    size_t scale_step = 0, half = 0; // from one row's scale to the next, and to that of the second 16 along k
    if constexpr (SCALED) {
        scales = (const S*)o.scales + r / o.scale_rows * o.ld_scales + k / o.block;
        scale_step = o.scale_rows == 1 ? o.ld_scales : 0, half = nk <= 16 ? 0 : (k + 16) / o.block - k / o.block;
        if (ragged) {
            for (int i = 0; i < n; i++)
                for (int j = 0; j < 2; j++) scales_copy[i][j] = scales[i * scale_step + j * half];
            scales = scales_copy[0], scale_step = 2, half = 1;
        }
    }
    auto factor = [&](size_t i) __attribute__((always_inline)) {
        if constexpr (std::is_same_v<Scale, uint8_t>) return o.scale_values[scales[i]];
        else return scales[i];
    };
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) {
        Bytes<BITS> codes{};
        if constexpr (K_CONTIGUOUS || !PAIRS) {
            memcpy(&codes, from + i * stride, BYTES);
        } else {
            B16 even, odd;
            memcpy(&even, from + 2 * i * stride, 16), memcpy(&odd, from + (2 * i + 1) * stride, 16);
            codes = __builtin_shufflevector(even, odd, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23, 8, 24, 9,
                                            25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
        }
        H32 v;
        decode<BITS>(v, codes, table);
        if constexpr (SCALED) {
            constexpr V16 SECOND = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1};
            F16 scale = factor(i * scale_step) - F16{};
            if (half) scale = SECOND != 0 ? factor(i * scale_step + half) - F16{} : scale;
            scale_pairs<ROUND>(v, scale, lost);
        }
        if constexpr (PAIRS) x[i] = (V16)v;
        else widen(x[i], __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    }
    if (nk < CK) {
        H32 lane;
        for (int i = 0; i < 32; i++) lane[i] = i;
        const H32 pad = PAIRS ? H32{} + (uint16_t)(minus << 15) : (lane & 1) << 15 & (uint16_t)-minus;
        for (int i = 0; i < 16; i++) {
            const H32 line = H32{} + (uint16_t)i;
            const H32 at = K_CONTIGUOUS ? lane >> !PAIRS : PAIRS ? (lane & 1) + line + line : line;
            x[i] = (V16)(at < (uint16_t)nk ? (H32)x[i] : pad);
        }
    }
}

// The same in FP32, without AVX-512.
static void fetch_codes_plain(V16 (&to)[16], const Operand& o, size_t r, size_t k, int n, int nk, bool minus) {
    const bool halves = o.elem == Elem::e2m1, bytes = o.scale_elem != Elem::f32;
    const int mask = o.elem == Elem::e3m2 || o.elem == Elem::e2m3 ? 63 : 255;
    const size_t next_row = o.k_contiguous ? o.ld : 1, next_k = o.k_contiguous ? 1 : o.ld;
    uint32_t x[16][16];
    for (int i = 0; i < 16; i++) {
        float line[16], scale = 1;
        for (int j = 0; j < 16; j++) {
            uint32_t u = (uint32_t)minus << 31;
            if (i < n && j < nk) {
                const size_t at = (r + i) * next_row + (k + j) * next_k;
                const uint8_t code = ((const uint8_t*)o.data)[halves ? at / 2 : at];
                u = (uint32_t)o.values[halves ? code >> at % 2 * 4 & 15 : code & mask] << 16;
            }
            memcpy(&line[j], &u, 4);
        }
        if (o.scales && i < n) {
            const size_t at = (r + i) / o.scale_rows * o.ld_scales + k / o.block;
            scale = bytes ? o.scale_values[((const uint8_t*)o.scales)[at]] : ((const float*)o.scales)[at];
            for (int j = 0; j < nk; j++) {
                uint32_t u;
                line[j] *= scale, memcpy(&u, &line[j], 4);
                u = line[j] != line[j] ? 0x7fff0000 : (u + 0x7fff + (u >> 16 & 1)) & 0xffff0000;
                memcpy(&line[j], &u, 4);
            }
        }
        for (int j = 0; j < 16; j++) memcpy(o.k_contiguous ? &x[i][j] : &x[j][i], &line[j], 4);
    }
    memcpy(to, x, sizeof(x));
}

// What is packed: rows of an operand (.., K) from r0 on, chunks from k0 on -> panels of 16 rows, each `chunks` chunks long;
// rows rounded up to 32.
struct Rows {
    uint32_t* to;
    bool is_b;
    size_t r0;
    int rows, K;
    size_t k0;
    int chunks;
};
// Reads along memory: down a panel where k is contiguous, across the panels where rows are. get(x, r, k, n, nk): as fetch.
template <bool PAIRS, bool K_CONTIGUOUS, class Get> FLAT void pack_with(const Rows& p, Get get) {
    constexpr int CK = PAIRS ? 32 : 16;
    const int panels = (p.rows + 31) / 32 * 2;
    for (int i = 0; i < (K_CONTIGUOUS ? panels : p.chunks); i++)
        for (int j = 0; j < (K_CONTIGUOUS ? p.chunks : panels); j++) {
            const int panel = K_CONTIGUOUS ? i : j, chunk = K_CONTIGUOUS ? j : i;
            const size_t r = p.r0 + panel * 16, k = p.k0 + chunk * CK;
            V16 x[16];
            get(x, r, k, std::clamp(p.rows - panel * 16, 0, 16), (int)std::min<size_t>(p.K - k, CK));
            if (K_CONTIGUOUS == p.is_b) transpose(x);
            memcpy(p.to + (panel * p.chunks + chunk) * CHUNK, x, sizeof(x));
        }
}
template <bool PAIRS, Elem E, bool K_CONTIGUOUS> FLAT void pack_as(const Rows& p, const Operand& o) {
    constexpr int CK = PAIRS ? 32 : 16;
    pack_with<PAIRS, K_CONTIGUOUS>(
        p, [&](V16(&x)[16], size_t r, size_t k, int n, int nk) __attribute__((always_inline)) {
            if (n == 16 && nk == CK) fetch<PAIRS, E, K_CONTIGUOUS>(x, o, r, k, 16, CK, p.is_b);
            else fetch<PAIRS, E, K_CONTIGUOUS>(x, o, r, k, n, nk, p.is_b);
        });
}
// False if products were cut off that should have been rounded.
template <bool PAIRS, int BITS, class Scale, bool ROUND, bool K_CONTIGUOUS>
FLAT bool pack_codes(const Rows& p, const Operand& o) {
    Table<BITS> table;
    V16 lost{};
    load_table(table, o.values);
    pack_with<PAIRS, K_CONTIGUOUS>(
        p, [&](V16(&x)[16], size_t r, size_t k, int n, int nk) __attribute__((always_inline)) {
            fetch_codes<PAIRS, BITS, Scale, ROUND, K_CONTIGUOUS>(x, lost, o, table, r, k, n, nk, p.is_b);
        });
    uint32_t any = 0;
    for (int i = 0; i < 16; i++) any |= lost[i];
    return !(any & 0xffff);
}
template <bool PAIRS, int BITS> FLAT void pack_bits(const Rows& p, const Operand& o) {
    if (o.scales && o.scale_elem == Elem::f32) {
        pack_codes<PAIRS, BITS, float, true, true>(p, o);
    } else if (o.scales) {
        if (!pack_codes<PAIRS, BITS, uint8_t, false, true>(p, o)) pack_codes<PAIRS, BITS, uint8_t, true, true>(p, o);
    } else if (o.k_contiguous || BITS == 4) {
        pack_codes<PAIRS, BITS, void, false, true>(p, o);
    } else {
        pack_codes<PAIRS, BITS, void, false, BITS == 4>(p, o);
    }
}
template <bool K_CONTIGUOUS> FLAT void pack_codes_plain(const Rows& p, const Operand& o) {
    pack_with<false, K_CONTIGUOUS>(
        p, [&](V16(&x)[16], size_t r, size_t k, int n, int nk)
               __attribute__((always_inline)) { fetch_codes_plain(x, o, r, k, n, nk, p.is_b); });
}
template <bool PAIRS, bool WIDE> FLAT void pack(const Rows& p, const Operand& o) { // WIDE: there is AVX-512
    if (o.elem == Elem::bf16) {
        o.k_contiguous ? pack_as<PAIRS, Elem::bf16, true>(p, o) : pack_as<PAIRS, Elem::bf16, false>(p, o);
    } else if (o.elem == Elem::f32) {
        if constexpr (!PAIRS)
            o.k_contiguous ? pack_as<false, Elem::f32, true>(p, o) : pack_as<false, Elem::f32, false>(p, o);
    } else if constexpr (WIDE) {
        if (o.elem == Elem::e2m1) pack_bits<PAIRS, 4>(p, o);
        else if (o.elem == Elem::e3m2 || o.elem == Elem::e2m3) pack_bits<PAIRS, 6>(p, o);
        else pack_bits<PAIRS, 8>(p, o);
    } else {
        o.k_contiguous ? pack_codes_plain<true>(p, o) : pack_codes_plain<false>(p, o);
    }
}

// --- kernels: c (32, 32) = (first ? 0 : c) + a panel of 32 rows x a panel of 32 rows, of which m and n matter -----------
// a and b point to the first of two 16-row panels of `chunks` chunks each.
using Pack = void(const Rows& p, const Operand& o);
using Multiply = void(float* c, const uint32_t* a, size_t a_panel, const uint32_t* b, size_t b_panel, int chunks,
                      bool first, int m, int n);

static void multiply_plain(float* c, const uint32_t* a, size_t a_panel, const uint32_t* b, size_t b_panel, int chunks,
                           bool first, int m, int n) {
    for (int j = 0; j < n; j += 8)
        for (int i0 = 0; i0 < m; i0 += 8) { // 8 rows x 2 vectors of 4
            const uint32_t *ap = a + i0 / 16 * a_panel + i0 % 16 * 16, *bp = b + j / 16 * b_panel + j % 16;
            F4 acc[8][2] = {}, y[2];
            for (int i = 0; i < 8 && !first; i++) memcpy(acc[i], c + (i0 + i) * 32 + j, 32);
            for (const uint32_t* end = bp + chunks * CHUNK; bp < end; ap += CHUNK, bp += CHUNK)
                for (int k = 0; k < 16; k++) { // k ^ 1: the odd element of a pair first
                    memcpy(y, bp + (k ^ 1) * 16, 32);
                    for (int i = 0; i < 8; i++) {
                        float x;
                        memcpy(&x, ap + i * 16 + (k ^ 1), 4);
                        fma4(acc[i][0], x, y[0]), fma4(acc[i][1], x, y[1]);
                    }
                }
            for (int i = 0; i < 8; i++) memcpy(c + (i0 + i) * 32 + j, acc[i], 32);
        }
}
#ifdef __x86_64__
TARGET("avx2,fma")
static void multiply_avx2(float* c, const uint32_t* a, size_t a_panel, const uint32_t* b, size_t b_panel, int chunks,
                          bool first, int m, int n) {
    for (int j = 0; j < n; j += 16)
        for (int i0 = 0; i0 < m; i0 += 4) { // 4 rows x 2 vectors
            const uint32_t *ap = a + i0 / 16 * a_panel + i0 % 16 * 16, *bp = b + j / 16 * b_panel;
            float* to = c + i0 * 32 + j;
            __m256 acc[4][2];
            for (int i = 0; i < 4; i++)
                for (int v = 0; v < 2; v++)
                    acc[i][v] = first ? _mm256_setzero_ps() : _mm256_loadu_ps(to + i * 32 + v * 8);
            for (const uint32_t* end = bp + chunks * CHUNK; bp < end; ap += CHUNK, bp += CHUNK)
#pragma GCC unroll 4
                for (int k = 0; k < 16; k++) {
                    const float* y = (const float*)(bp + (k ^ 1) * 16);
                    const __m256 y0 = _mm256_loadu_ps(y), y1 = _mm256_loadu_ps(y + 8);
#pragma GCC unroll 4
                    for (int i = 0; i < 4; i++) {
                        const __m256 x = _mm256_castsi256_ps(_mm256_set1_epi32((int)ap[i * 16 + (k ^ 1)]));
                        acc[i][0] = _mm256_fmadd_ps(x, y0, acc[i][0]);
                        acc[i][1] = _mm256_fmadd_ps(x, y1, acc[i][1]);
                    }
                }
            for (int i = 0; i < 4; i++)
                for (int v = 0; v < 2; v++) _mm256_storeu_ps(to + i * 32 + v * 8, acc[i][v]);
        }
}
TARGET("avx512f")
static void multiply_avx512(float* c, const uint32_t* a, size_t a_panel, const uint32_t* b, size_t b_panel, int chunks,
                            bool first, int m, int) {
    for (int i0 = 0; i0 < m; i0 += 8) { // 8 rows x 2 vectors
        const uint32_t *ap = a + i0 / 16 * a_panel + i0 % 16 * 16, *bp = b, *end = b + chunks * CHUNK;
        float* to = c + i0 * 32;
        __m512 acc[8][2];
        for (int i = 0; i < 8; i++)
            for (int v = 0; v < 2; v++) acc[i][v] = first ? _mm512_setzero_ps() : _mm512_loadu_ps(to + i * 32 + v * 16);
        for (; bp < end; ap += CHUNK, bp += CHUNK)
#pragma GCC unroll 4
            for (int k = 0; k < 16; k++) {
                const uint32_t* y = bp + (k ^ 1) * 16;
                const __m512 y0 = _mm512_loadu_ps(y), y1 = _mm512_loadu_ps(y + b_panel);
#pragma GCC unroll 8
                for (int i = 0; i < 8; i++) {
                    const __m512 x = _mm512_castsi512_ps(_mm512_set1_epi32((int)ap[i * 16 + (k ^ 1)]));
                    acc[i][0] = _mm512_fmadd_ps(x, y0, acc[i][0]);
                    acc[i][1] = _mm512_fmadd_ps(x, y1, acc[i][1]);
                }
            }
        for (int i = 0; i < 8; i++)
            for (int v = 0; v < 2; v++) _mm512_storeu_ps(to + i * 32 + v * 16, acc[i][v]);
    }
}
TARGET("avx512f,avx512bw,avx512vl,avx512bf16")
static void multiply_dot(float* c, const uint32_t* a, size_t a_panel, const uint32_t* b, size_t b_panel, int chunks,
                         bool first, int m, int) {
    for (int i0 = 0; i0 < m; i0 += 8) {
        const uint32_t *ap = a + i0 / 16 * a_panel + i0 % 16 * 16, *bp = b, *end = b + chunks * CHUNK;
        float* to = c + i0 * 32;
        __m512 acc[8][2];
        for (int i = 0; i < 8; i++)
            for (int v = 0; v < 2; v++) acc[i][v] = first ? _mm512_setzero_ps() : _mm512_loadu_ps(to + i * 32 + v * 16);
        for (; bp < end; ap += CHUNK, bp += CHUNK)
#pragma GCC unroll 4
            for (int k = 0; k < 16; k++) { // pairs
                const __m512i y0 = _mm512_loadu_si512(bp + k * 16), y1 = _mm512_loadu_si512(bp + b_panel + k * 16);
#pragma GCC unroll 8
                for (int i = 0; i < 8; i++) {
                    const __m512i x = _mm512_set1_epi32((int)ap[i * 16 + k]);
                    acc[i][0] = _mm512_dpbf16_ps(acc[i][0], (__m512bh)x, (__m512bh)y0);
                    acc[i][1] = _mm512_dpbf16_ps(acc[i][1], (__m512bh)x, (__m512bh)y1);
                }
            }
        for (int i = 0; i < 8; i++)
            for (int v = 0; v < 2; v++) _mm512_storeu_ps(to + i * 32 + v * 16, acc[i][v]);
    }
}
// Eight tile registers of 16 rows x 64 bytes: 0..3 hold the 16 x 16 accumulators, 4 and 5 a, 6 and 7 b. Not the compilers'
// intrinsics, because GCC's do not say that they read memory.
template <int T> FLAT void tile_zero() { asm volatile("tilezero %%tmm%c0" ::"i"(T)); }
template <int T> FLAT void tile_load(const void* p, size_t bytes_per_row) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(bytes_per_row), "i"(T) : "memory");
}
template <int T> FLAT void tile_store(void* p, size_t bytes_per_row) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(bytes_per_row), "i"(T) : "memory");
}
template <int C, int A, int B> FLAT void tile_dot_bf16() { // C += A B
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}
FLAT void tile_begin() {
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t bytes_per_row[16];
        uint8_t rows[16];
    } config = {1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
    asm volatile("ldtilecfg %0" ::"m"(config));
}
FLAT void tile_end() { asm volatile("tilerelease"); }

TARGET("amx-tile,amx-bf16")
static void multiply_amx(float* c, const uint32_t* a, size_t a_panel, const uint32_t* b, size_t b_panel, int chunks,
                         bool first, int, int) {
    if (first) {
        tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>();
    } else {
        tile_load<0>(c, 128), tile_load<1>(c + 16, 128), tile_load<2>(c + 512, 128), tile_load<3>(c + 528, 128);
    }
    for (const uint32_t* end = a + chunks * CHUNK; a < end; a += CHUNK, b += CHUNK) {
        tile_load<4>(a, 64), tile_load<6>(b, 64);
        tile_dot_bf16<0, 4, 6>();
        tile_load<7>(b + b_panel, 64);
        tile_dot_bf16<1, 4, 7>();
        tile_load<5>(a + a_panel, 64);
        tile_dot_bf16<2, 5, 6>();
        tile_dot_bf16<3, 5, 7>();
    }
    tile_store<0>(c, 128), tile_store<1>(c + 16, 128), tile_store<2>(c + 512, 128), tile_store<3>(c + 528, 128);
}
#endif

// --- the epilogue: c (32, 32) -> m rows x n columns of out, at (m0, n0) ----------------------------------------------
FLAT void load_out(F16& f, const void* p, Elem elem, size_t at, int n) {
    if (elem == Elem::bf16) {
        H16 h{};
        V16 w;
        load(h, (const uint16_t*)p + at, n);
        widen(w, h);
        f = (F16)w;
    } else {
        load(f = F16{}, (const float*)p + at, n);
    }
}
template <bool FULL> FLAT void finish_rows(const Gemm& gemm, const float* c, size_t m0, size_t n0, int m, int n) {
    const Gemm g = gemm; // a copy, which the stores below cannot change
    const int n_lo = FULL ? 16 : std::min(n, 16), n_hi = FULL ? 16 : std::max(n - 16, 0);
    const bool scaled = g.scale_a != 1 || g.scale_b != 1;
    F16 lo, hi, bias_lo{}, bias_hi{}, old;
    if (g.bias) load_out(bias_lo, g.bias, g.out_elem, n0, n_lo), load_out(bias_hi, g.bias, g.out_elem, n0 + 16, n_hi);
    size_t at = m0 * g.ld_out + n0;
    for (const float* end = c + m * 32; c < end; c += 32, at += g.ld_out) {
        load(lo, c, 16), load(hi, c + 16, 16);
        if (scaled) lo = lo * g.scale_a * g.scale_b, hi = hi * g.scale_a * g.scale_b;
        if (g.bias) lo += bias_lo, hi += bias_hi;
        if (g.accumulate) {
            load_out(old, g.out, g.out_elem, at, n_lo), lo = old + lo;
            load_out(old, g.out, g.out_elem, at + 16, n_hi), hi = old + hi;
        }
        if (g.out_elem == Elem::bf16) {
            H32 both;
            round_to_bf16(both, lo, hi);
            memcpy((uint16_t*)g.out + at, &both, FULL ? sizeof(both) : 2 * n);
        } else {
            store((float*)g.out + at, lo, n_lo), store((float*)g.out + at + 16, hi, n_hi);
        }
    }
}
FLAT void finish(const Gemm& g, const float* c, size_t m0, size_t n0, int m, int n) {
    if (n == 32) finish_rows<true>(g, c, m0, n0, m, n);
    else finish_rows<false>(g, c, m0, n0, m, n);
}

// --- one tile of out ---------------------------------------------------------------------------------------------------
// Two levels, as far as K goes: a stretch of ks chunks, over which a's rows stay packed in L2, and in it blocks of kc, for
// which nb rows of b are packed into L1 right before they meet all of a's rows. Most often one stretch is all of K; then
// a's rows are packed once for a whole row of tiles (`a_held`), and b once per tile.
struct Plan {
    int mt, nt; // tiles of out
    int mc, nc; // their size, multiples of 32
    int ks, kc; // chunks
    int nb;     // more than 32 only if kc is all of K
};
constexpr int A_CHUNKS = 512, B_CHUNKS = 12; // of a in L2 (512 KB); of 16 rows of b in L1
constexpr int TILE_FLOATS = 131072;          // accumulators at rest: 512 KB
struct Workspace {
    alignas(64) uint32_t a[A_CHUNKS * CHUNK], b[2 * B_CHUNKS * CHUNK];
    alignas(64) float c[TILE_FLOATS];
    int64_t a_held; // which rows of a are packed, in all of their K; or -1
};
static Workspace& workspace() { // pages that are never touched cost nothing
    thread_local std::unique_ptr<Workspace> w(new Workspace);
    w->a_held = -1;
    return *w;
}
template <Multiply multiply, Pack pack, bool PAIRS>
FLAT void tile(const Gemm& g, const Plan& p, Workspace& w, int64_t index) {
    constexpr int CK = PAIRS ? 32 : 16;
    const int64_t ti = index / p.nt, tj = index % p.nt;
    const size_t m0 = ti * p.mc, n0 = tj * p.nc;
    const int m = (int)std::min<size_t>(p.mc, g.M - m0), n = (int)std::min<size_t>(p.nc, g.N - n0);
    const int total = ceil_div(g.K, CK);
    for (int s = 0; s == 0 || s < total; s += p.ks) {
        const int stretch = std::min(p.ks, total - s);
        const size_t a_panel = (size_t)stretch * CHUNK;
        if (w.a_held != ti) pack({w.a, false, m0, m, g.K, (size_t)s * CK, stretch}, g.a);
        w.a_held = p.ks >= total ? ti : -1;
        for (int j0 = 0; j0 < n; j0 += p.nb)
            for (int k = 0; k == 0 || k < stretch; k += p.kc) {
                const int chunks = std::min(p.kc, stretch - k), n1 = std::min(n - j0, p.nb);
                pack({w.b, true, n0 + j0, n1, g.K, (size_t)(s + k) * CK, chunks}, g.b);
                const bool first = s + k == 0, last = s + k + chunks == total;
                for (int i = 0; i < m; i += 32)
                    for (int j = 0; j < n1; j += 32) {
                        // Unfinished sums rest where no other block comes by before they are taken up again.
                        float* c = w.c + (first && last ? 0 : p.ks >= total ? i : (j0 + j) / 32 * p.mc + i) * 32;
                        const int mi = std::min(m - i, 32), nj = std::min(n1 - j, 32);
                        multiply(c, w.a + i / 16 * a_panel + k * CHUNK, a_panel, w.b + j / 16 * chunks * CHUNK,
                                 chunks * CHUNK, chunks, first, mi, nj);
                        if (last) finish(g, c, m0 + i, n0 + j0 + j, mi, nj);
                    }
            }
    }
}
using Tile = void(const Gemm&, const Plan&, Workspace&, int64_t index);
static void pack_plain(const Rows& p, const Operand& o) { pack<false, false>(p, o); }
static void tile_plain(const Gemm& g, const Plan& p, Workspace& w, int64_t i) {
    tile<multiply_plain, pack_plain, false>(g, p, w, i);
}
#ifdef __x86_64__
#define AVX512 "avx512f,avx512bw,avx512vl,avx512dq"
TARGET("avx2,fma") static void pack_avx2(const Rows& p, const Operand& o) { pack<false, false>(p, o); }
TARGET(AVX512) static void pack_avx512(const Rows& p, const Operand& o) { pack<false, true>(p, o); }
TARGET(AVX512) static void pack_pairs(const Rows& p, const Operand& o) { pack<true, true>(p, o); }
TARGET("avx2,fma") static void tile_avx2(const Gemm& g, const Plan& p, Workspace& w, int64_t i) {
    tile<multiply_avx2, pack_avx2, false>(g, p, w, i);
}
TARGET(AVX512) static void tile_avx512(const Gemm& g, const Plan& p, Workspace& w, int64_t i) {
    tile<multiply_avx512, pack_avx512, false>(g, p, w, i);
}
TARGET(AVX512) static void tile_dot(const Gemm& g, const Plan& p, Workspace& w, int64_t i) {
    tile<multiply_dot, pack_pairs, true>(g, p, w, i);
}
TARGET(AVX512 ",amx-tile,amx-bf16") static void tile_amx(const Gemm& g, const Plan& p, Workspace& w, int64_t i) {
    tile_begin(); // about 0.2 us with the release, without which context switches carry 8 KB more
    tile<multiply_amx, pack_pairs, true>(g, p, w, i);
    tile_end();
}
// Few rows of a: memory decides, for each element of b is read for them alone. So out^T = b a^T, where b is what tiles
// take from memory as it is, 32 rows at a time, and only a is packed, once. The products and their order are the same.
static bool is_thin(const Gemm& g) {
    return g.M <= 16 && g.b.elem == Elem::bf16 && g.b.k_contiguous && g.K > 0 && g.K <= A_CHUNKS / 2 * 32;
}
TARGET(AVX512 ",amx-tile,amx-bf16") static void tile_thin(const Gemm& g, const Plan& p, Workspace& w, int64_t index) {
    const int total = ceil_div(g.K, 32), whole = g.K / 32;
    if (w.a_held != 0) pack_pairs({w.a, true, 0, g.M, g.K, 0, total}, g.a);
    w.a_held = 0;
    tile_begin();
    const size_t from = index * p.nc, to = std::min<size_t>(from + p.nc, g.N);
    for (size_t n0 = from; n0 < to; n0 += 32) {
        const int n = (int)std::min<size_t>(to - n0, 32);
        alignas(64) float sums[32][16], c[16][32];
        tile_zero<0>(), tile_zero<1>();
        for (int k = 0; k < total; k++) {
            const uint16_t* b = (const uint16_t*)g.b.data + n0 * g.b.ld + k * 32;
            size_t half = 16 * g.b.ld, bytes = 2 * g.b.ld;
            if (n < 32 || k >= whole) { // ragged
                pack_pairs({w.b, false, n0, n, g.K, (size_t)k * 32, 1}, g.b);
                b = (const uint16_t*)w.b, half = 2 * CHUNK, bytes = 64;
            } else
                for (int i = 0; i < 32; i++)
                    __builtin_prefetch(b + (i + 32) * g.b.ld, 0, 2); // hardware follows fewer streams
            tile_load<4>(b, bytes), tile_load<6>(w.a + k * CHUNK, 64);
            tile_dot_bf16<0, 4, 6>();
            tile_load<5>(b + half, bytes);
            tile_dot_bf16<1, 5, 6>();
        }
        tile_store<0>(sums[0], 64), tile_store<1>(sums[16], 64);
        for (int m = 0; m < g.M; m++)
            for (int i = 0; i < 32; i++) c[m][i] = sums[i][m];
        finish(g, c[0], 0, n0, g.M, n);
    }
    tile_end();
}
#endif

// --- which kernel ----------------------------------------------------------------------------------------------------
struct Kernel {
    const char* name;
    bool pairs;           // BF16 operands only, a dword holds two
    Tile* tile;           // null: this machine lacks it
    Tile* thin = nullptr; // for is_thin(), if that is faster
};
static bool has_amx() { // the instructions, and the system's leave to use their 8 KB of registers
#if defined(__x86_64__) && defined(__linux__)
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (~d & (1u << 22 | 1u << 24))) return false;
    return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) == 0;
#else
    return false;
#endif
}
static const Kernel& kernel_for(CpuKernel which) {
    using enum CpuKernel;
    static const auto table = [] {
        struct {
            Kernel of[7];
        } t{};
        auto at = [&](CpuKernel k) -> Kernel& { return t.of[(int)k]; };
        at(plain) = {"plain FP32", false, tile_plain};
#ifdef __x86_64__
        at(avx2) = {"AVX2 FP32", false,
                    __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? tile_avx2 : nullptr};
        const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
        at(avx512) = {"AVX-512 FP32", false, wide ? tile_avx512 : nullptr};
        at(dot) = {"AVX-512 BF16 dot product", true, wide && __builtin_cpu_supports("avx512bf16") ? tile_dot : nullptr};
        at(amx) = {"AMX BF16", true, wide && has_amx() ? tile_amx : nullptr, tile_thin};
        const bool prefer_dot = __builtin_cpu_is("amd"); // twice the rate of FP32 fma there, half of it on Intel
#else
        at(avx2).name = "AVX2 FP32", at(avx512).name = "AVX-512 FP32", at(dot).name = "AVX-512 BF16 dot product";
        at(amx).name = "AMX BF16";
        const bool prefer_dot = false;
#endif
        at(portable) = at(avx512).tile ? at(avx512) : at(avx2).tile ? at(avx2) : at(plain);
        at(fast) = at(amx).tile ? at(amx) : at(dot).tile && prefer_dot ? at(dot) : at(portable);
        return t;
    }();
    return table.of[(int)which];
}
bool cpu_kernel_available(CpuKernel kernel) { return kernel_for(kernel).tile; }
const char* cpu_kernel_name(CpuKernel kernel) { return kernel_for(kernel).name; }

// --- the driver ------------------------------------------------------------------------------------------------------
static int round_up(int a, int b) { return ceil_div(a, b) * b; }
static Plan plan(const Gemm& g, int chunk_k, int threads) {
    Plan p;
    const int total = std::max(1, ceil_div(g.K, chunk_k));
    const int rows = std::min(1024, A_CHUNKS / total / 2 * 32); // of a that fit with all of their K
    const bool whole = rows >= std::min(g.M, 256);
    p.ks = whole ? total : ceil_div(total, ceil_div(total, A_CHUNKS / 16));
    p.kc = ceil_div(p.ks, ceil_div(p.ks, B_CHUNKS));
    p.nb = std::max(1, B_CHUNKS / p.kc) * 32;
    // Cut until every thread has something to do, and until the last round of tiles does not leave threads idle.
    int mc = whole ? rows : 256, nc = whole ? 1 << 30 : TILE_FLOATS / 256;
    mc = std::min(mc, round_up(g.M, 32)), nc = (int)std::min<int64_t>(nc, (g.N + 31ll) / 32 * 32);
    for (;;) {
        p.mt = ceil_div(g.M, mc), p.nt = ceil_div(g.N, nc);
        const int64_t tiles = (int64_t)p.mt * p.nt;
        if ((tiles >= threads && (tiles % threads == 0 || tiles >= 8 * threads)) || (mc == 32 && nc == 32)) break;
        if (mc >= nc) mc = std::min(mc - 32, round_up(ceil_div(g.M, p.mt + 1), 32)); // what is larger is above 32
        else nc = std::min(nc - 32, round_up(ceil_div(g.N, p.nt + 1), 32));
    }
    p.mc = mc, p.nc = nc;
    return p;
}

static void check(const char* name, const Operand& o) {
    const bool codes = o.elem > Elem::f32, bytes = o.scale_elem != Elem::f32;
    auto refuse = [&](const char* why) { fail("matmul_cpu: operand %s %s", name, why); };
    if (o.elem == Elem::e8m0) refuse("is of e8m0. hint: that is a type of scales");
    if (codes && !o.values) refuse("is of codes but has no table of their values");
    if (o.elem == Elem::e2m1 && !o.k_contiguous)
        refuse("is of e2m1, and not contiguous along k. hint: cast it that way");
    if (o.elem == Elem::e2m1 && o.ld % 2) refuse("is of e2m1 with an odd ld, so that rows begin inside a byte");
    if (!o.scales) return;
    if (!codes) refuse("has block scales but no codes");
    if (!o.k_contiguous) refuse("has block scales, and is not contiguous along k. hint: cast it that way");
    if (bytes && o.scale_elem != Elem::e8m0 && o.scale_elem != Elem::e4m3)
        refuse("has scales that are not e8m0, e4m3, f32");
    if (bytes && !o.scale_values) refuse("has byte scales but no table of their values");
    if (o.block < 16 || o.block % 16 || (o.scale_rows != 1 && (o.scale_rows < 16 || o.scale_rows % 16)))
        fail("matmul_cpu: operand %s has blocks of %d rows x %d along k. hint: rows are 1 or a multiple of 16, the "
             "others a "
             "multiple of 16",
             name, o.scale_rows, o.block);
}
void matmul_cpu(const Gemm& g, CpuKernel which) {
    if (g.M < 0 || g.N < 0 || g.K < 0) fail("matmul_cpu: a size is negative: M %d, N %d, K %d", g.M, g.N, g.K);
    check("a", g.a), check("b", g.b);
    if (g.out_elem > Elem::f32) fail("matmul_cpu: out is of codes. hint: it can be BF16 or FP32");
    const bool f32 = g.a.elem == Elem::f32 || g.b.elem == Elem::f32;
    const Kernel& kernel = kernel_for(kernel_for(which).pairs && f32 ? CpuKernel::portable : which);
    if (!kernel.tile) fail("matmul_cpu: this machine has no %s. hint: --kernels fast picks what it has", kernel.name);
    if (g.M == 0 || g.N == 0) return;
    int threads = 1;
#ifdef _OPENMP
    const double flop = 2.0 * g.M * g.N * std::max(g.K, 16);
    const double work = std::max(flop / 2e6, (double)g.N * g.K / 4e5); // of either a thread does about 20 us
    if (!omp_in_parallel()) threads = (int)std::clamp(work, 1.0, (double)omp_get_max_threads());
#endif
    const bool thin = kernel.thin && is_thin(g);
    Plan p;
    if (thin) p.mt = 1, p.nc = round_up(ceil_div(g.N, threads == 1 ? 1 : 4 * threads), 32), p.nt = ceil_div(g.N, p.nc);
    else p = plan(g, kernel.pairs ? 32 : 16, threads);
    const int64_t tiles = (int64_t)p.mt * p.nt;
    Tile* const tile = thin ? kernel.thin : kernel.tile;
    if (threads == 1) { // a parallel region of one costs 0.5 us
        Workspace& w = workspace();
        for (int64_t i = 0; i < tiles; i++) tile(g, p, w, i);
        return;
    }
#pragma omp parallel num_threads(threads)
    {
        Workspace& w = workspace();
#pragma omp for schedule(dynamic) nowait
        for (int64_t i = 0; i < tiles; i++) tile(g, p, w, i);
    }
}
