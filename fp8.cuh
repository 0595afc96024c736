// Number formats, exact to the last bit, and the casts that turn a matrix of BF16 or FP32 into codes and scales.
//
// A code is sign | exponent | mantissa. Its value is 1.mantissa * 2^(exponent - bias); with exponent 0 it is
// 0.mantissa * 2^(1 - bias), the subnormals, which close the gap around zero in even steps. What people get wrong:
//
// - E4M3 has no infinity. Its top binade holds numbers: 1111.110 is 1.75 * 2^8 = 448, the largest, and 1111.111 alone
//   is NaN. By the IEEE rule, which gives the whole top exponent away, it would end at 240.
// - Casts saturate: 449, 1000 and infinity become 448. E5M2 saturates too, although it has codes for infinity.
//   NaN stays NaN where the format has one (0x7f in FP8); FP6 and FP4 have none, and it becomes their largest value.
// - Ties go to the even code: 2^-10, half of E4M3's smallest step 2^-9, becomes 0, and anything above it 2^-9.
// - Rounding happens in one line of encode(), the addition marked there. Scaling comes before it, one FP32
//   multiplication. A scale places the range of a tensor on the range of a format; the rounding error stays.
// - The scale multiplies: code = cast(x * scale), scale = format's max / amax. scale_inv = 1 / scale leads back.
// - A block's scale runs along the contraction of the GEMM that reads the codes. In MX a matrix and its transpose are
//   therefore different numbers, each cast from the source, never one from the other.
// - FP4 packs two codes into a byte, the even element in the low half. FP6 takes a whole byte for each code.
#pragma once
#include "ops/lanes.cuh"
#include <cfloat>

// What the chip has: FP8 conversions since 8.9; FP6, FP4 and E8M0 on 10.x and 12.x, in targets such as 100f and 120f.
#ifdef __CUDA_ARCH__
#define ULP_CVT_FP8 (__CUDA_ARCH__ >= 890)
#ifdef __CUDA_ARCH_FAMILY_SPECIFIC__
#define ULP_CVT_FP4 (__CUDA_ARCH__ >= 1000)
#endif
#endif

// --- 1. formats are values ---------------------------------------------------------------------------------------
enum class Specials {
    none,  // every code is a number
    ocp,   // all ones is NaN, with either sign; no infinity
    ieee,  // the top exponent holds infinity (mantissa 0) and NaN
    fnuz,  // the code of -0 is NaN; no infinity, no -0
    scale, // no sign, no zero, only powers of two; all ones is NaN
};
struct Format {
    const char* name;
    int ebits, mbits, bias;
    float max;    // the largest finite value; up to 8 bits, casts saturate to it; wider formats overflow to infinity
    uint32_t nan; // the code of a NaN
    Specials specials;
    const char* use;

    HD constexpr int bits() const { return ebits + mbits + (specials != Specials::scale); }
    HD INLINE int emax() const { return (int)(bits_as<uint32_t>(max) >> 23) - 127; } // 2^emax <= max < 2^(emax+1)
    HD constexpr bool operator==(Format f) const {
        return ebits == f.ebits && mbits == f.mbits && bias == f.bias;
    }
};
// clang-format off
//                        name        e  m   bias max                NaN         specials         typical use
constexpr Format E4M3 =      {"e4m3",     4, 3,  7,   448,             0x7f,       Specials::ocp,   "FP8 weights, activations"};
constexpr Format E5M2 =      {"e5m2",     5, 2,  15,  57344,           0x7f,       Specials::ieee,  "FP8 gradients"};
constexpr Format E3M2 =      {"e3m2",     3, 2,  3,   28,              0x1f,       Specials::none,  "MXFP6 gradients"};
constexpr Format E2M3 =      {"e2m3",     2, 3,  1,   7.5,             0x1f,       Specials::none,  "MXFP6 weights, activations"};
constexpr Format E2M1 =      {"e2m1",     2, 1,  1,   6,               0x07,       Specials::none,  "MXFP4 and NVFP4 elements"};
constexpr Format E8M0 =      {"e8m0",     8, 0,  127, 0x1p127f,        0xff,       Specials::scale, "MX scales"};
constexpr Format E4M3_FNUZ = {"e4m3fnuz", 4, 3,  8,   240,             0x80,       Specials::fnuz,  "AMD MI300, not portable"};
constexpr Format E5M2_FNUZ = {"e5m2fnuz", 5, 2,  16,  57344,           0x80,       Specials::fnuz,  "AMD MI300, not portable"};
constexpr Format BF16 =      {"bf16",     8, 7,  127, 0x1.fep127f,     0x7fff,     Specials::ieee,  "activations"};
constexpr Format FP16 =      {"fp16",     5, 10, 15,  65504,           0x7fff,     Specials::ieee,  "activations before BF16"};
constexpr Format FP32 =      {"fp32",     8, 23, 127, 0x1.fffffep127f, 0x7fffffff, Specials::ieee,  "sums, master weights"};
// clang-format on
constexpr Format ALL_FORMATS[] = {E4M3, E5M2, E3M2, E2M3, E2M1, E8M0, E4M3_FNUZ, E5M2_FNUZ, BF16, FP16, FP32};

// go<F>() for the one of Fs that is f, so that every cast is compiled once per format, with its bits as constants.
template <const Format&... Fs, class Go> void for_format(const char* name, Format f, Go go) {
    if (!((f == Fs && (go.template operator()<Fs>(), true)) || ...))
        fail("%s: %s is not a format it casts. hint: %s", name, f.name, (std::string() + ... + (std::string(Fs.name) + " ")).c_str());
}

// --- 2. one number -----------------------------------------------------------------------------------------------
constexpr uint32_t INF_BITS = 0x7f800000;
HD INLINE uint32_t magnitude(float x) { return bits_as<uint32_t>(x) & 0x7fffffff; } // orders as |x| does, NaN on top
HD INLINE float exp2i(int e) { // 2^e, -149 <= e <= 128 (infinity)
    return bits_as<float>(e >= -126 ? (uint32_t)(e + 127) << 23 : 1u << (e + 149));
}

// E8M0 is the exponent field of an FP32, rounded up: all up to 2^-127 give 0; above 2^127, and NaN, 255.
HD INLINE uint32_t encode_e8m0(float x) {
    uint32_t u = magnitude(x), up = (u + 0x7fffff) >> 23;
    return u <= 0x00400000 ? 0 : up < 255 ? up : 255;
}
HD INLINE float decode_e8m0(uint32_t code) { return code == 255 ? NAN : exp2i((int)code - 127); }

// Sign and NaN, the same for both ways of rounding.
HD INLINE uint32_t finish(Format f, float x, uint32_t code) {
    uint32_t sign = bits_as<uint32_t>(x) >> 31 << (f.bits() - 1);
    sign = f.specials == Specials::fnuz && code == 0 ? 0 : sign;
    uint32_t is_nan = 0u - (uint32_t)(magnitude(x) > INF_BITS); // as a mask: a branch here would not vectorize
    return ((code | sign) & ~is_nan) | (f.nan & is_nan);
}

// The chip's own conversions to nearest even, saturating. They convert pairs; the upper half is 0 here. Their twin in
// plain C++ is the rest of encode() and encode_e8m0(), and what runs where the chip has none.
#if ULP_CVT_FP8
#define CVT(what, type) __device__ inline uint32_t cvt_##type(float x) { uint16_t d; asm(what : "=h"(d) : "f"(0.0f), "f"(x)); return d; }
CVT("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;", e4m3)
CVT("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;", e5m2)
#endif
#if ULP_CVT_FP4
CVT("cvt.rn.satfinite.e2m3x2.f32 %0, %1, %2;", e2m3)
CVT("cvt.rn.satfinite.e3m2x2.f32 %0, %1, %2;", e3m2)
CVT("{ .reg .b8 t; cvt.rn.satfinite.e2m1x2.f32 t, %1, %2; cvt.u16.u8 %0, t; }", e2m1)
CVT("cvt.rp.ue8m0x2.f32 %0, %1, %2;", e8m0)
#endif

// The code nearest to x, ties to even.
HD INLINE uint32_t encode(Format f, float x) {
    if (f == E8M0) return encode_e8m0(x);
    if (f == BF16) return bf16(x).bits;
    if (f == FP32) return finish(f, x, magnitude(x));
#if ULP_CVT_FP8
    if (f == E4M3) return cvt_e4m3(x);
    if (f == E5M2) return cvt_e5m2(x);
#endif
#if ULP_CVT_FP4
    if (f == E2M3) return cvt_e2m3(x);
    if (f == E3M2) return cvt_e3m2(x);
    if (f == E2M1) return cvt_e2m1(x);
#endif
    uint32_t u = magnitude(x), top = bits_as<uint32_t>(f.bits() > 8 ? exp2i(f.emax() + 1) : f.max); // FP16: inf's code
    u = u < top ? u : top;                            // saturates
    uint32_t lowest = (uint32_t)(128 - f.bias) << 23; // exponent field of the lowest normal binade; the subnormals
    uint32_t binade = u & INF_BITS;                   // continue its steps down to zero
    binade = binade > lowest ? binade : lowest;
    uint32_t grid = binade + ((uint32_t)(23 - f.mbits) << 23);   // 2^23 steps of that binade, where an FP32's last bit
    float sum = bits_as<float>(u) + bits_as<float>(grid);        // is one step: THE ROUNDING, to nearest, ties to even
    uint32_t steps = bits_as<uint32_t>(sum) - grid;
    return finish(f, x, ((binade - lowest) >> (23 - f.mbits)) + steps); // added, so that a carry bumps the exponent
}

// x's lower neighbour on the grid (towards zero) or its upper one, with the chance that makes the mean x: up when the
// fraction of a step, times 2^24, exceeds draw < 2^24. Values on the grid never move.
HD INLINE uint32_t encode_stochastic(Format f, float x, uint32_t draw) {
    uint32_t u = magnitude(x), top = bits_as<uint32_t>(f.max);
    u = u < top ? u : top;
    uint32_t lowest = (uint32_t)(128 - f.bias) << 23, binade = u & INF_BITS;
    binade = binade > lowest ? binade : lowest;
    float position = bits_as<float>(u) * bits_as<float>(((uint32_t)(254 + f.mbits) << 23) - binade); // in steps, exact
    int steps = (int)position;
    steps += (position - (float)steps) * 0x1p24f > (float)(int)draw;
    return finish(f, x, ((binade - lowest) >> (23 - f.mbits)) + (uint32_t)steps);
}

HD INLINE float decode(Format f, uint32_t code) {
    if (f == E8M0) return decode_e8m0(code);
    uint32_t all_ones = (1u << (f.bits() - 1)) - 1, m = code & all_ones, inf = all_ones >> f.mbits << f.mbits;
    float normal = bits_as<float>((m << (23 - f.mbits)) + ((uint32_t)(127 - f.bias) << 23));
    float a = m >> f.mbits ? normal : (float)(int)m * exp2i(1 - f.bias - f.mbits);
    if (f.specials == Specials::ocp) a = m == all_ones ? NAN : a;
    if (f.specials == Specials::ieee) a = m < inf ? a : m == inf ? INFINITY : NAN;
    if (f.specials == Specials::fnuz) a = code == f.nan ? NAN : a;
    return bits_as<float>(bits_as<uint32_t>(a) | code >> (f.bits() - 1) << 31);
}

// --- 3. random bits for stochastic rounding ----------------------------------------------------------------------
// Counter-based, so that both machines and any number of threads draw the same: a 64-bit key per tensor copy, mixed
// from words that name it (seed, step, microbatch, layer, operand, copy) and the row of codes; then 24 bits per element
// of that row, from its index.
HD INLINE uint64_t mix(uint64_t key, uint64_t word) { // the finalizer of SplitMix64 (Steele, Lea, Flood 2014)
    uint64_t z = (key ^ word) + 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}
template <class... Words> HD INLINE uint64_t draw_key(uint64_t seed, Words... words) {
    uint64_t key = mix(0, seed);
    ((key = mix(key, (uint64_t)words)), ...);
    return key;
}
HD INLINE uint32_t draw24(uint32_t row_key, uint32_t row_key2, uint32_t i) { // constants: "triple32" (Wellons 2018)
    uint32_t h = i ^ row_key;
    h = (h ^ h >> 17) * 0xed5ad4bb;
    h = (h ^ h >> 11) * 0xac4c1b51 + row_key2;
    h = (h ^ h >> 15) * 0x31848bab;
    return h >> 8;
}

// --- 4. scales ---------------------------------------------------------------------------------------------------
enum class Scaling { none, unit, delayed, current, blockwise, mx, nvfp4 };
enum class ScaleRule { rceil, floor, ceil, even };
enum class Rounding { rne, sr };
struct Block { int rows, cols; }; // elements that share a scale: rows x cols, cols along the contraction; 0, 0: all

// How one operand is cast. What a field means is said where the casts are, in section 5.
struct Cast {
    Format elem = BF16;
    Scaling scaling = Scaling::none;
    Block block = {0, 0};
    ScaleRule rule = ScaleRule::rceil; // MX
    Rounding round = Rounding::rne;
    bool pow2_scales = false; // current and blockwise
    bool rht = false;         // column copies go through hadamard() first
};

struct Scaled { uint32_t code; float multiplier; }; // a block's scale as stored, and what its elements are multiplied by

// max / amax, the scale that moves amax onto max; `otherwise` for an amax that tells nothing (0, infinity, NaN).
HD INLINE float scale_for(float max, float amax, float otherwise) {
    float s = max / amax;
    return !(amax > 0 && amax < INFINITY) ? otherwise : s < FLT_MAX ? s : FLT_MAX;
}
HD INLINE float power_of_two_below(float scale) { return bits_as<float>(bits_as<uint32_t>(scale) & INF_BITS); }

// The E8M0 byte of an MX block (OCP MX v1.0, section 6.3 is `floor`; rceil is NVIDIA's, the others torchao's). Of the
// four rules only rceil and ceil never clip the block's maximum.
HD INLINE uint32_t mx_scale(ScaleRule rule, Format f, float amax) {
    uint32_t u = magnitude(amax);
    if (u >= INF_BITS) return 255;
    if (rule == ScaleRule::rceil) { // ceil(log2(amax / max))
        float v = amax * (1 / f.max);
#if ULP_CVT_FP4
        return cvt_e8m0(v);
#endif
        return encode_e8m0(v);
    }
    uint32_t round = rule == ScaleRule::floor ? 0 : rule == ScaleRule::ceil ? 0x7fffff : 1u << (22 - f.mbits);
    int byte = (int)((u + round) >> 23) - f.emax();
    return byte < 0 ? 0 : byte < 254 ? byte : 254;
}

// NVFP4: E4M3 scales of blocks of 16, below one FP32 scale per tensor that moves the tensor's amax onto 6 * 448. The
// order of operations decides ties; it is TransformerEngine's.
HD INLINE Scaled nvfp4_scale(float amax, float encode_scale) {
    float decode_scale = 1 / encode_scale, s = amax * (encode_scale * (1 / E2M1.max));
    uint32_t code = encode(E4M3, s < FLT_MAX ? s : FLT_MAX);
    float m = 1 / (decode(E4M3, code) * decode_scale);
    m = m < FLT_MAX ? m : FLT_MAX;
    return {amax < INFINITY ? code : E4M3.nan, amax < INFINITY ? m : 1};
}
HD INLINE float nvfp4_encode_scale(float amax_tensor) { return scale_for(E4M3.max * E2M1.max, amax_tensor, 1); }

// Where cuBLASLt looks for the scale of block kb of row o (of the operand whose rows run along the contraction): tiles
// of 128 rows by 4 blocks, 512 bytes each, so rows are padded to 128 and blocks to 4, with zeros.
HD INLINE size_t tiled_scale(size_t o, size_t kb, size_t KB) {
    return (o / 128 * ((KB + 3) / 4) + kb / 4) * 512 + o % 32 * 16 + o % 128 / 32 * 4 + kb % 4;
}
HD INLINE size_t tiled_scale_bytes(size_t O, size_t KB) { return (O + 127) / 128 * 128 * ((KB + 3) / 4 * 4); }

// --- 5. casts of matrices ----------------------------------------------------------------------------------------
// Every cast takes x (R, C) row-major, BF16 or FP32. transpose = false: O = R rows of codes along K = C. transpose =
// true: O = C rows of codes along K = R. Codes are (O, code_bytes(elem, K)), contiguous along K, the contraction; a row
// of blocks has KB = blocks(K, N) scales, (O, KB). A ragged last block is cast as if zeros followed.
// `key` is the draw_key() of this copy under stochastic rounding; an element's draw depends on its row and index alone.
HD INLINE size_t code_bytes(Format f, size_t K) { return f.bits() == 4 ? (K + 1) / 2 : K; }
HD INLINE size_t blocks(size_t n, int N) { return (n + N - 1) / N; }

// *to = the larger of *to and m >= 0, whatever the order of the callers.
HD INLINE void record_max(float* to, float m) {
#ifdef __CUDA_ARCH__
    if (m > *to) atomicMax((int*)to, bits_as<int>(m)); // floats >= 0 order as their bits do
#else
    int old = __atomic_load_n((int*)to, __ATOMIC_RELAXED), bits = bits_as<int>(m);
    while (bits > old && !__atomic_compare_exchange_n((int*)to, &old, bits, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
#endif
}

// What all casts share. scale(o, kb, amax) says what block kb of row o is multiplied by, scale.put() stores its scale.
template <const Format& F, bool SR, int N, class Scale> struct BlockCast {
    static constexpr bool FP4 = F.bits() == 4;
    Scale scale;
    uint64_t key;
    size_t K;

    HD INLINE void add(uint32_t& amax, float x) const {
        uint32_t m = magnitude(x);
        m &= 0u - (uint32_t)(Scale::keep_nan | (m <= INF_BITS)); // NaN orders above infinity
        amax = m > amax ? m : amax;
    }
    HD INLINE uint64_t row_key(size_t o) const { return SR ? mix(key, o) : 0; }
    HD INLINE uint32_t draw(uint32_t row_key, uint32_t row_key2, uint32_t i) const {
        return SR ? draw24(row_key, row_key2, i) : 0;
    }
    HD INLINE uint32_t code(float y, uint32_t draw) const { return SR ? encode_stochastic(F, y, draw) : encode(F, y); }
};

// G blocks from the j-th of the matrix: a GPU's lane casts one, a CPU's several, so that vectors span blocks. Blocks are
// numbered along memory: down a row or, with transpose, across columns. Returns the largest amax, as bits.
template <int N, int G, class T, class Cast>
HD INLINE uint32_t cast_group(uint8_t* codes, const T* x, const Cast& c, bool transpose, uint32_t O, int C, uint32_t j,
                              int count) {
    uint32_t KB = (uint32_t)blocks(c.K, N), o[G], kb[G], amax[G], s[G], draw[G * N], q[G * N], largest = 0;
    float m[G], m_of[G * N];
    struct alignas(16) { T v[G * N]; } gathered;
    struct alignas(8) { uint8_t v[Cast::FP4 ? G * N / 2 : G * N]; } packed;
    bool whole = count == G && c.K % N == 0; // then blocks and codes lie one after another
    bool in_place = whole && !transpose && !on_device();
    for (int b = 0; b < G; b++) {
        o[b] = transpose ? (j + b) % O : (j + b) / KB, kb[b] = transpose ? (j + b) / O : (j + b) % KB;
        const T* from = x + (transpose ? (size_t)kb[b] * N * C + o[b] : (size_t)o[b] * C + kb[b] * N);
        size_t n = b < count ? c.K - kb[b] * N : 0, stride = transpose ? C : 1;
        if (on_device() && G == 1 && whole && !transpose && (uintptr_t)from % 16 == 0)
            gathered = *(const decltype(gathered)*)from;
        else if (!in_place)
            for (int k = 0; k < N; k++) gathered.v[b * N + k] = (size_t)k < n ? from[k * stride] : T(0.0f);
    }
    const T* p = in_place ? x + (size_t)j * N : gathered.v;
    for (int b = 0; b < G; b++) {
        amax[b] = 0;
        for (int k = 0; k < N; k++) c.add(amax[b], (float)p[b * N + k]);
    }
    for (int b = 0; b < G; b++) {
        Scaled scaled = c.scale(o[b], kb[b], bits_as<float>(amax[b]));
        s[b] = scaled.code, m[b] = scaled.multiplier;
    }
    for (int b = 0; b < G; b++) {
        uint64_t row_key = c.row_key(o[b]);
        for (int k = 0; k < N; k++) {
            m_of[b * N + k] = m[b];
            draw[b * N + k] = c.draw((uint32_t)row_key, (uint32_t)(row_key >> 32), kb[b] * N + k);
        }
    }
    for (int i = 0; i < G * N; i++) q[i] = c.code((float)p[i] * m_of[i], draw[i]);
    for (int i = 0; i < (int)sizeof packed; i++)
        packed.v[i] = (uint8_t)(Cast::FP4 ? q[2 * i % (G * N)] | q[(2 * i + 1) % (G * N)] << 4 : q[i]);
    for (int b = 0; b < G && b < count; b++) {
        c.scale.put(o[b], kb[b], s[b]);
        largest = amax[b] > largest ? amax[b] : largest;
    }
    constexpr int bytes = sizeof packed / G; // of a block
    size_t row_bytes = Cast::FP4 ? (c.K + 1) / 2 : c.K;
    if (in_place)
        memcpy(codes + (size_t)j * bytes, packed.v, sizeof packed);
    else
        for (int b = 0; b < G && b < count; b++) {
            uint8_t* to = codes + o[b] * row_bytes + (size_t)kb[b] * bytes;
            int n = row_bytes - (size_t)kb[b] * bytes < bytes ? (int)(row_bytes - (size_t)kb[b] * bytes) : bytes;
            if (on_device() && n == bytes && (uintptr_t)to % alignof(decltype(packed)) == 0)
                *(decltype(packed)*)to = packed; // G == 1
            else
                for (int i = 0; i < n; i++) to[i] = packed.v[b * bytes + i];
        }
    return largest;
}
// One launch row casts RUN blocks and records the largest amax in *amax unless that is null.
constexpr int RUN = 64, TILE = 64;
template <int N, class T, class Cast>
HD INLINE void cast_run(Lanes g, uint8_t* codes, float* amax, const T* x, Cast c, bool transpose, int R, int C, int run) {
    c.scale.prepare();
    constexpr int G = 16;
    uint32_t O = transpose ? C : R, first = (uint32_t)run * RUN, left = O * (uint32_t)blocks(c.K, N) - first;
    uint32_t largest = 0;
    int count = left < RUN ? (int)left : RUN;
    if (on_device())
        g.each(count, [&](int i) __attribute__((always_inline)) {
            uint32_t a = cast_group<N, 1>(codes, x, c, transpose, O, C, first + i, 1);
            largest = a > largest ? a : largest;
        });
    else
        for (int i = 0; i < count; i += G) {
            uint32_t a = cast_group<N, G>(codes, x, c, transpose, O, C, first + i, count - i < G ? count - i : G);
            largest = a > largest ? a : largest;
        }
    if (!amax) return;
    float m = bits_as<float>(largest);
    for (int mask = LANES / 2; mask > 0; mask /= 2) {
        float other = shfl_xor(m, mask);
        m = other > m ? other : m;
    }
    if (g.first()) record_max(amax, m);
}
// The same for columns on the CPU, x times faster: a tile of S rows and W columns, vectors across the columns; then
// perfect shuffles, which transpose its codes (each rotates the bits of every index by one), as words of E of them.
template <int N, class T, class Cast>
HD INLINE void cast_tile(uint8_t* codes, float* amax, const T* x, Cast c, int R, int C, int tile) {
    c.scale.prepare();
    constexpr int W = TILE, S = TILE, E = Cast::FP4 ? 8 : 4, words = S / E;
    int top = tile / (int)blocks(C, W) * S, left = tile % (int)blocks(C, W) * W;
    int rows = R - top < S ? R - top : S, cols = C - left < W ? C - left : W;
    const T* p = x + (size_t)top * C + left;
    size_t ld = C;
    T padded[S * W];
    for (int r = 0; r < rows; r++) // the next tile's; its rows are too many for the hardware to follow
        for (size_t k = 0; k < W * sizeof(T); k += 64) __builtin_prefetch((const char*)(p + r * ld + W) + k);
    if (rows < S || cols < W) {
        for (int r = 0; r < S; r++)
            for (int w = 0; w < W; w++) padded[r * W + w] = r < rows && w < cols ? p[r * ld + w] : T(0.0f);
        p = padded, ld = W;
    }
    alignas(64) uint32_t a[words * W], b[words * W], *from = a, *to = b;
    uint32_t largest = 0, bits[W], s[W], row_key[W], row_key2[W];
    float m[W];
    for (int w = 0; w < W; w++) {
        uint64_t k = c.row_key(left + w);
        row_key[w] = (uint32_t)k, row_key2[w] = (uint32_t)(k >> 32);
    }
    for (int r = 0; r < rows; r += N) {
        size_t kb = (top + r) / N;
        for (int w = 0; w < W; w++) bits[w] = 0;
        for (int k = r; k < r + N; k++)
            for (int w = 0; w < W; w++) c.add(bits[w], (float)p[k * ld + w]);
        for (int w = 0; w < W; w++) {
            Scaled scaled = c.scale(left + w, kb, bits_as<float>(bits[w]));
            s[w] = scaled.code, m[w] = scaled.multiplier;
        }
        for (int w = 0; w < cols; w++) {
            c.scale.put(left + w, kb, s[w]);
            largest = bits[w] > largest ? bits[w] : largest;
        }
        for (int k = r; k < r + N; k += E) {
            uint32_t* word = a + k / E * W;
            for (int w = 0; w < W; w++) word[w] = 0;
            for (int e = 0; e < E; e++)
                for (int w = 0; w < W; w++) {
                    uint32_t draw = c.draw(row_key[w], row_key2[w], (uint32_t)(top + k + e));
                    word[w] |= c.code((float)p[(k + e) * ld + w] * m[w], draw) << e * (32 / E);
                }
        }
    }
    if (amax) record_max(amax, bits_as<float>(largest));
    for (int n = 1; n < words; n *= 2, std::swap(from, to))
        for (int i = 0; i < words * W / 2; i++) {
            uint32_t low = from[i], high = from[words * W / 2 + i];
            to[2 * i] = low, to[2 * i + 1] = high;
        }
    size_t row_bytes = Cast::FP4 ? ((size_t)R + 1) / 2 : R, at = (size_t)top * 4 / E;
    for (int w = 0; w < cols; w++)
        if (rows == S)
            memcpy(codes + (left + w) * row_bytes + at, from + w * words, 4 * words);
        else
            memcpy(codes + (left + w) * row_bytes + at, from + w * words, row_bytes - at);
}
template <int N, class T, class Cast>
void cast_as(const char* name, double bytes, uint8_t* codes, float* amax, const T* x, Cast c, bool transpose, int R, int C) {
    double runs = (double)blocks(c.K, N) * (transpose ? C : R) / RUN;
    if (runs * RUN > 4e9) fail("%s: a matrix of %d x %d has more than 4e9 blocks", name, R, C);
    bool tiles = transpose && !machine.gpu && machine.kernels != Kernels::reference;
    for_rows(name, bytes, tiles ? blocks(R, TILE) * blocks(C, TILE) : (size_t)ceil(runs), [=] HD(Lanes g, int i) {
        if (tiles && !on_device())
            cast_tile<N>(codes, amax, x, c, R, C, i);
        else
            cast_run<N>(g, codes, amax, x, c, transpose, R, C, i);
    });
}
template <int N, const Format&... Fs, class T, class Scale>
void cast_blocks(const char* name, uint8_t* codes, Scale scale, float* amax, const T* x, Cast c, bool transpose, int R,
                 int C, uint64_t key) {
    double bytes = (double)R * C * (sizeof(T) + c.elem.bits() / 8.0);
    size_t K = transpose ? R : C;
    for_format<Fs...>(name, c.elem, [&]<const Format& F>() {
        if (c.round == Rounding::sr)
            cast_as<N>(name, bytes, codes, amax, x, BlockCast<F, true, N, Scale>{scale, key, K}, transpose, R, C);
        else
            cast_as<N>(name, bytes, codes, amax, x, BlockCast<F, false, N, Scale>{scale, key, K}, transpose, R, C);
    });
}

// Per tensor: code = cast(x * *scale); scale null means 1. *amax becomes the larger of itself and max|x| of the
// unscaled x, NaN left out, in the same pass; null records nothing.
struct TensorScale {
    static constexpr bool keep_nan = false;
    const float* scale;
    float multiplier;
    HD INLINE void prepare() { multiplier = scale ? *scale : 1; }
    HD INLINE Scaled operator()(size_t, size_t, float) const { return {0, multiplier}; }
    HD INLINE void put(size_t, size_t, uint32_t) const {}
};
template <class T>
void cast_tensor(uint8_t* codes, float* amax, const T* x, const float* scale, Cast c, bool transpose, int R, int C, uint64_t key = 0) {
    cast_blocks<32, E4M3, E5M2>("cast_tensor", codes, TensorScale{scale, 1}, amax, x, c, transpose, R, C, key);
}

// *amax becomes the larger of itself and max|x| over n elements, NaN left out.
template <class T> void amax_tensor(float* amax, const T* x, size_t n) {
    constexpr size_t piece = 4096;
    for_rows("amax_tensor", (double)n * sizeof(T), (n + piece - 1) / piece, [=] HD(Lanes g, int i) {
        size_t at = i * piece;
        float m = (float)g.max((int)(n - at < piece ? n - at : piece), [](real x) { return x < 0 ? -x : x; }, x + at);
        if (g.first()) record_max(amax, m);
    });
}

// Float8 blocks (DeepSeek-V3, section 3.3): 1 x 128 along K, scale_inv (O, KB), or 128 x 128, (blocks(O, 128), KB).
// Three launches, with scale_inv for scratch: amax of each block; the cast, in pieces of 32; 1 / scale.
struct Float8Scale {
    static constexpr bool keep_nan = true;
    const float* amax;
    size_t KB;
    int rows; // of a block
    Format f;
    bool pow2;
    HD INLINE float of(float amax) const {
        float scale = scale_for(f.max, amax, 1);
        return pow2 ? power_of_two_below(scale) : scale;
    }
    HD INLINE void prepare() {}
    HD INLINE Scaled operator()(size_t o, size_t piece, float) const { return {0, of(amax[o / rows * KB + piece / 4])}; }
    HD INLINE void put(size_t, size_t, uint32_t) const {}
};
HD INLINE real max_keep_nan(real a, real b) { return b > a || b != b ? b : a; }
template <class T> HD INLINE void amax_block(Lanes g, float* amax, const T* x, int rows, int cols, size_t ld) {
    real m = 0;
    for (int r = 0; r < rows; r++)
        m = max_keep_nan(m, g.max_nan(cols, [](real x) { return x < 0 ? -x : x; }, x + r * ld));
    if (g.first()) *amax = (float)m;
}
template <int W, class T> HD INLINE void amax_columns(float* amax, size_t stride, const T* x, int rows, int cols, size_t ld) {
    uint32_t m[W];
    for (int w = 0; w < W; w++) m[w] = 0;
    for (int r = 0; r < rows; r++)
        for (int w = 0; w < (cols < W ? cols : W); w++) {
            uint32_t a = magnitude((float)x[r * ld + w]);
            m[w] = a > m[w] ? a : m[w];
        }
    for (int w = 0; w < W && w < cols; w++) amax[w * stride] = bits_as<float>(m[w]);
}
template <class T>
void cast_float8(uint8_t* codes, float* scale_inv, const T* x, Cast c, bool transpose, int R, int C, uint64_t key = 0) {
    constexpr int N = 128, W = 64;
    if (c.block.cols != N || (c.block.rows != 1 && c.block.rows != N))
        fail("cast_float8: blocks of %d x %d. hint: 1 x 128 and 128 x 128 are", c.block.rows, c.block.cols);
    size_t KB = blocks(transpose ? R : C, N), OB = blocks(transpose ? C : R, c.block.rows);
    int h = transpose ? N : c.block.rows, w = transpose ? c.block.rows : N; // of a block of x
    size_t across = blocks(C, w == 1 ? W : w);
    for_rows("amax_float8", (double)R * C * sizeof(T), blocks(R, h) * across, [=] HD(Lanes g, int i) {
        int r = (int)(i / across), c = (int)(i % across), rows = R - r * h < h ? R - r * h : h;
        const T* from = x + (size_t)r * h * C + (size_t)c * (w == 1 ? W : w);
        int cols = C - c * (w == 1 ? W : w);
        if (w > 1) // a group takes a block
            amax_block(g, scale_inv + (transpose ? c * KB + r : r * KB + c), from, rows, cols < w ? cols : w, C);
        else if (on_device())
            g.each(cols < W ? cols : W, [=](int k) { amax_columns<1>(scale_inv + (c * W + k) * KB + r, KB, from + k, rows, 1, C); });
        else
            amax_columns<W>(scale_inv + c * W * KB + r, KB, from, rows, cols, C);
    });
    Float8Scale scale = {scale_inv, KB, c.block.rows, c.elem, c.pow2_scales};
    cast_blocks<32, E4M3, E5M2>("cast_float8", codes, scale, nullptr, x, c, transpose, R, C, key);
    for_rows("invert", 8.0 * OB * KB, OB, [=] HD(Lanes g, int o) {
        g.map((int)KB, scale_inv + o * KB, [=](real amax) { return 1 / scale.of((float)amax); }, scale_inv + o * KB);
    });
}

// MX: blocks of 32, an E8M0 byte each. scales (O, KB). A block that holds infinity or NaN gets byte 0xff and decodes to
// NaN; its elements are cast as they are.
struct MxScale {
    static constexpr bool keep_nan = true;
    uint8_t* scales;
    size_t KB;
    Format f;
    ScaleRule rule;
    HD INLINE void prepare() {}
    HD INLINE Scaled operator()(size_t, size_t, float amax) const {
        uint32_t byte = mx_scale(rule, f, amax);
        return {byte, byte == 255 ? 1 : exp2i(127 - (int)byte)};
    }
    HD INLINE void put(size_t o, size_t kb, uint32_t code) const { scales[o * KB + kb] = (uint8_t)code; }
};
template <class T>
void cast_mx(uint8_t* codes, uint8_t* scales, const T* x, Cast c, bool transpose, int R, int C, uint64_t key = 0) {
    MxScale scale = {scales, blocks(transpose ? R : C, 32), c.elem, c.rule};
    cast_blocks<32, E4M3, E5M2, E3M2, E2M3, E2M1>("cast_mx", codes, scale, nullptr, x, c, transpose, R, C, key);
}

// NVFP4: blocks of 1 x 16 or, with amax_tiles() of x, 16 x 16, an E4M3 byte each. scales (O, KB), for tiles too: their
// rows repeat. *amax_tensor comes from amax_nvfp4(). A block that holds infinity or NaN gets byte 0x7f.
struct Nvfp4BlockScale {
    static constexpr bool keep_nan = true;
    uint8_t* scales;
    size_t KB;
    const float* amax_tensor;
    const float* tiles; // amax of the tile that holds block kb of row o, at [o / 16 * along_o + kb * along_k], or null
    size_t along_o, along_k;
    float encode_scale; // of *amax_tensor, which may lie on the device
    HD INLINE void prepare() { encode_scale = nvfp4_encode_scale(*amax_tensor); }
    HD INLINE Scaled operator()(size_t o, size_t kb, float amax) const {
        return nvfp4_scale(tiles ? tiles[o / 16 * along_o + kb * along_k] : amax, encode_scale);
    }
    HD INLINE void put(size_t o, size_t kb, uint32_t code) const { scales[o * KB + kb] = (uint8_t)code; }
};
template <class T>
void cast_nvfp4(uint8_t* codes, uint8_t* scales, const T* x, const float* amax_tensor, const float* tiles, Cast c,
                bool transpose, int R, int C, uint64_t key = 0) {
    if (c.block.cols != 16 || (c.block.rows != 1 && c.block.rows != 16) || (c.block.rows == 16) != (tiles != nullptr))
        fail("cast_nvfp4: blocks of %d x %d %s amax_tiles(). hint: 1 x 16 without, 16 x 16 with", c.block.rows, c.block.cols,
             tiles ? "with" : "without");
    size_t TC = blocks(C, 16);
    Nvfp4BlockScale scale = {scales, blocks(transpose ? R : C, 16), amax_tensor, tiles, transpose ? 1 : TC,
                             transpose ? TC : 1, 0};
    cast_blocks<16, E2M1>("cast_nvfp4", codes, scale, nullptr, x, c, transpose, R, C, key);
}
// amax (blocks(R, 16), blocks(C, 16)) of tiles of 16 x 16, NaN kept: for the casts of x and of its transpose.
template <class T> HD INLINE void amax_tile(float* amax, const T* x, int rows, int cols, size_t ld) {
    uint32_t m[16];
    for (int i = 0; i < 16; i++) m[i] = 0;
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < cols; i++) {
            uint32_t a = magnitude((float)x[r * ld + i]);
            m[i] = a > m[i] ? a : m[i];
        }
    for (int i = 1; i < 16; i++) m[0] = m[i] > m[0] ? m[i] : m[0];
    *amax = bits_as<float>(m[0]);
}
template <class T> void amax_tiles(float* amax, const T* x, int R, int C) {
    size_t TC = blocks(C, 16);
    for_rows("amax_tiles", (double)R * C * sizeof(T), blocks(R, 16), [=] HD(Lanes g, int t) {
        const T* row = x + (size_t)t * 16 * C;
        float* out = amax + t * TC;
        int rows = R - t * 16;
        g.each((int)TC, [=](int u) {
            int cols = C - u * 16;
            if (rows >= 16 && cols >= 16)
                amax_tile(out + u, row + u * 16, 16, 16, C); // constants: unrolled
            else
                amax_tile(out + u, row + u * 16, rows < 16 ? rows : 16, cols < 16 ? cols : 16, C);
        });
    });
}
// *amax_tensor becomes the larger of itself and the largest amax of a finite block; of the tiles, if amax is not null.
// Blocks matter only where something is not finite: then the panel (one row, or 16 for columns) is gone through again.
template <class T>
HD INLINE void amax_nvfp4_panel(Lanes g, float* amax_tensor, const T* x, int rows, int width, size_t C) {
    auto abs = [](real x) { return x < 0 ? -x : x; };
    real amax = 0;
    for (int r = 0; r < rows; r++) amax = max_keep_nan(amax, g.max_nan((int)C, abs, x + r * C));
    if (!(amax < (real)INFINITY)) {
        amax = 0;
        for (size_t c = 0; c < C; c += width) {
            real m = 0;
            for (int r = 0; r < rows; r++)
                m = max_keep_nan(m, g.max_nan(C - c < (size_t)width ? (int)(C - c) : width, abs, x + r * C + c));
            amax = m < (real)INFINITY && m > amax ? m : amax;
        }
    }
    if (g.first()) record_max(amax_tensor, (float)amax);
}
template <class T>
void amax_nvfp4(float* amax_tensor, const T* x, const float* amax, bool transpose, int R, int C) {
    size_t TC = blocks(C, 16);
    if (amax)
        return for_rows("amax_nvfp4", 4.0 * blocks(R, 16) * TC, blocks(R, 16), [=] HD(Lanes g, int t) {
            real m = g.max((int)TC, [](real x) { return x < (real)INFINITY ? x : 0; }, amax + t * TC);
            if (g.first()) record_max(amax_tensor, (float)m);
        });
    int rows = transpose ? 16 : 1, width = transpose ? 1 : 16;
    for_rows("amax_nvfp4", (double)R * C * sizeof(T), blocks(R, rows), [=] HD(Lanes g, int p) {
        int left = R - p * rows;
        amax_nvfp4_panel(g, amax_tensor, x + (size_t)p * rows * C, left < rows ? left : rows, width, C);
    });
}

// --- 6. and back -------------------------------------------------------------------------------------------------
// y (O, K) = codes times what scales says of each block, in FP32, then rounded to Y. BF16 holds every product of an
// element and an MX scale exactly, for bytes 3 .. 246, and of an E2M1 and an E4M3.
template <const Format& F, int N, class Y, class Scales>
HD INLINE void decode_run(Lanes g, Y* y, const uint8_t* codes, const Scales& scales, size_t O, size_t K, int run) {
    constexpr int bytes = F.bits() == 4 ? N / 2 : N;
    uint32_t KB = (uint32_t)blocks(K, N), first = (uint32_t)run * RUN, left = (uint32_t)O * KB - first;
    g.each(left < RUN ? (int)left : RUN, [&](int i) __attribute__((always_inline)) {
        size_t o = (first + i) / KB, kb = (first + i) % KB;
        int n = K - kb * N < N ? (int)(K - kb * N) : N;
        const uint8_t* from = codes + o * code_bytes(F, K) + kb * bytes;
        Y* to = y + o * K + kb * N;
        float s = scales(o, kb);
        uint8_t q[N];
        if (n < N)
            for (int i = 0; i < bytes; i++) q[i] = i < (int)code_bytes(F, n) ? from[i] : 0;
        const uint8_t* p = n < N ? q : from;
        if (F.bits() == 4) {
            uint8_t pairs[N];
            for (int i = 0; i < N / 2; i++) pairs[2 * i] = p[i] & 15, pairs[2 * i + 1] = p[i] >> 4;
            for (int i = 0; i < n; i++) to[i] = Y(decode(F, pairs[i]) * s);
        } else if (n == N)
            for (int i = 0; i < N; i++) to[i] = Y(decode(F, p[i]) * s);
        else
            for (int i = 0; i < n; i++) to[i] = Y(decode(F, p[i]) * s);
    });
}
template <const Format& F, int N, class Y, class Scales>
void decode_blocks_as(const char* name, Y* y, const uint8_t* codes, Scales scales, int O, int K) {
    size_t count = O * blocks(K, N);
    if (count > 4000000000) fail("%s: a matrix of %d x %d has %zu blocks; a launch takes at most 4e9", name, O, K, count);
    for_rows(name, (double)O * K * (sizeof(Y) + F.bits() / 8.0), (count + RUN - 1) / RUN,
             [=] HD(Lanes g, int run) { decode_run<F, N>(g, y, codes, scales, O, K, run); });
}
template <int N, const Format&... Fs, class Y, class Scales>
void decode_blocks(const char* name, Y* y, const uint8_t* codes, Scales scales, Format f, int O, int K) {
    for_format<Fs...>(name, f, [&]<const Format& F>() { decode_blocks_as<F, N>(name, y, codes, scales, O, K); });
}
struct TensorDecode {
    const float* scale_inv;
    HD INLINE float operator()(size_t, size_t) const { return scale_inv ? *scale_inv : 1; }
};
struct Float8Decode {
    const float* scale_inv;
    size_t KB;
    int rows;
    HD INLINE float operator()(size_t o, size_t kb) const { return scale_inv[o / rows * KB + kb / 4]; }
};
struct MxDecode {
    const uint8_t* scales;
    size_t KB;
    HD INLINE float operator()(size_t o, size_t kb) const { return decode_e8m0(scales[o * KB + kb]); }
};
struct Nvfp4Decode {
    const uint8_t* scales;
    size_t KB;
    const float* amax_tensor;
    HD INLINE float operator()(size_t o, size_t kb) const {
        float s = decode(E4M3, scales[o * KB + kb]);
        return amax_tensor ? s * *amax_tensor * (1 / (E4M3.max * E2M1.max)) : s;
    }
};
// scale_inv or amax_tensor null: that factor is left out, for a GEMM that applies it to its result.
template <class Y> void decode_tensor(Y* y, const uint8_t* codes, const float* scale_inv, Format f, int O, int K) {
    decode_blocks<32, E4M3, E5M2>("decode_tensor", y, codes, TensorDecode{scale_inv}, f, O, K);
}
template <class Y> void decode_float8(Y* y, const uint8_t* codes, const float* scale_inv, Cast c, int O, int K) {
    decode_blocks<32, E4M3, E5M2>("decode_float8", y, codes, Float8Decode{scale_inv, blocks(K, 128), c.block.rows}, c.elem, O, K);
}
template <class Y> void decode_mx(Y* y, const uint8_t* codes, const uint8_t* scales, Format f, int O, int K) {
    decode_blocks<32, E4M3, E5M2, E3M2, E2M3, E2M1>("decode_mx", y, codes, MxDecode{scales, blocks(K, 32)}, f, O, K);
}
template <class Y>
void decode_nvfp4(Y* y, const uint8_t* codes, const uint8_t* scales, const float* amax_tensor, int O, int K) {
    decode_blocks<16, E2M1>("decode_nvfp4", y, codes, Nvfp4Decode{scales, blocks(K, 16), amax_tensor}, E2M1, O, K);
}

// --- 7. the random Hadamard transform ----------------------------------------------------------------------------
// y (16 blocks(R, 16), C) = x' = H x down each 16 rows, zeros below row R. H = Hadamard matrix * diag(sign) / 4 is
// orthogonal, so a GEMM of two operands that went through it contracts to the same sums; before the cast it spreads an
// outlier over its block. In FP32, then rounded to Y.
template <int W> HD INLINE void hadamard16(float (*v)[W]) {
    for (int i = 0; i < 16; i++)
        for (int w = 0; w < W; w++) v[i][w] = 0xd7e8 >> i & 1 ? -v[i][w] : v[i][w]; // + + + - + - - - - - - + - + - -
    for (int stride = 1; stride < 16; stride *= 2)
        for (int i = 0; i < 16; i++)
            for (int w = 0; w < W && !(i & stride); w++) {
                float a = v[i][w], b = v[i + stride][w];
                v[i][w] = a + b, v[i + stride][w] = a - b;
            }
}
template <int W, class Y, class T> HD INLINE void hadamard_columns(Y* y, const T* x, int rows, int cols, size_t C) {
    float v[16][W];
    for (int i = 0; i < 16; i++)
        for (int w = 0; w < W; w++) v[i][w] = i < rows && w < cols ? (float)x[i * C + w] : 0.0f;
    hadamard16<W>(v);
    for (int i = 0; i < 16; i++)
        for (int w = 0; w < cols; w++) y[i * C + w] = Y(v[i][w] * 0.25f);
}
template <class Y, class T> void hadamard(Y* y, const T* x, int R, int C) {
    constexpr int W = 64;
    size_t groups = blocks(C, W);
    for_rows("hadamard", (double)R * C * (sizeof(Y) + sizeof(T)), blocks(R, 16) * groups, [=] HD(Lanes g, int j) {
        size_t r = j / groups * 16, c = j % groups * W, at = r * C + c;
        int rows = (int)(R - r), cols = (int)(C - c < W ? C - c : W);
        if (on_device())
            g.each(cols, [=](int i) { hadamard_columns<1>(y + at + i, x + at + i, rows, 1, C); });
        else
            hadamard_columns<W>(y + at, x + at, rows, cols, C);
    });
}
