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
//             name         e  m  bias max              NaN         specials          typical use
constexpr Format
    E4M3{      "e4m3",      4, 3,  7,   448,             0x7f,       Specials::ocp,   "FP8 weights, activations"},
    E5M2{      "e5m2",      5, 2,  15,  57344,           0x7f,       Specials::ieee,  "FP8 gradients"},
    E3M2{      "e3m2",      3, 2,  3,   28,              0x1f,       Specials::none,  "MXFP6 gradients"},
    E2M3{      "e2m3",      2, 3,  1,   7.5,             0x1f,       Specials::none,  "MXFP6 weights, activations"},
    E2M1{      "e2m1",      2, 1,  1,   6,               0x07,       Specials::none,  "MXFP4, NVFP4 elements"},
    E8M0{      "e8m0",      8, 0,  127, 0x1p127f,        0xff,       Specials::scale, "MX scales"},
    E4M3_FNUZ{ "e4m3fnuz",  4, 3,  8,   240,             0x80,       Specials::fnuz,  "AMD MI300, not portable"},
    E5M2_FNUZ{ "e5m2fnuz",  5, 2,  16,  57344,           0x80,       Specials::fnuz,  "AMD MI300, not portable"},
    BF16{      "bf16",      8, 7,  127, 0x1.fep127f,     0x7fff,     Specials::ieee,  "activations"},
    FP16{      "fp16",      5, 10, 15,  65504,           0x7fff,     Specials::ieee,  "activations before BF16"},
    FP32{      "fp32",      8, 23, 127, 0x1.fffffep127f, 0x7fffffff, Specials::ieee,  "sums, master weights"};
constexpr Format ALL_FORMATS[] = {E4M3, E5M2, E3M2, E2M3, E2M1, E8M0, E4M3_FNUZ, E5M2_FNUZ, BF16, FP16, FP32};

// go<F>() for the one of Fs that is f, so that every cast is compiled once per format, with its bits as constants.
template <const Format&... Fs, class Go> void for_format(const char* name, Format f, Go go) {
    if (((f == Fs && (go.template operator()<Fs>(), true)) || ...)) return;
    std::string known = (std::string() + ... + (std::string(" ") + Fs.name));
    fail("%s: %s is not a format it takes. hint: those are%s", name, f.name, known.c_str());
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
#define CVT(ptx, type)                                                                                                 \
    __device__ inline uint32_t cvt_##type(float x) { uint16_t d; asm(ptx : "=h"(d) : "f"(0.0f), "f"(x)); return d; }
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
struct RowKey { uint32_t a, b; };
HD INLINE RowKey row_key(uint64_t key, uint64_t row) {
    uint64_t k = mix(key, row);
    return {(uint32_t)k, (uint32_t)(k >> 32)};
}
HD INLINE uint32_t draw24(RowKey key, uint32_t i) { // constants: "triple32" (Wellons 2018)
    uint32_t h = i ^ key.a;
    h = (h ^ h >> 17) * 0xed5ad4bb;
    h = (h ^ h >> 11) * 0xac4c1b51 + key.b;
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

struct Scaled { uint32_t code; float multiplier; }; // a block's scale as stored; what its elements are multiplied by

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
// Bytes, one for each block of each row.
struct ScaleBytes {
    uint8_t* bytes;
    size_t KB;
    bool tiled;
    HD INLINE uint8_t& at(size_t o, size_t kb) const { return bytes[tiled ? tiled_scale(o, kb, KB) : o * KB + kb]; }
};

// --- 5. casts of matrices ----------------------------------------------------------------------------------------
// Every cast takes x (R, C) row-major, BF16 or FP32. transpose = false: O = R rows of codes along K = C. transpose =
// true: O = C rows of codes along K = R. Codes are (O, code_bytes(elem, K)), contiguous along K, the contraction;
// scales are (O, KB), KB = blocks(K, N) for blocks of N. A ragged last block is cast as if zeros followed. Where
// machine.layout says so, rows of codes are longer, and byte scales lie in tiles; what they are padded with is zero.
// `key` is the draw_key() of this copy under stochastic rounding; an element's draw depends on its row and index alone.
HD INLINE size_t code_bytes(Format f, size_t K) { return f.bits() == 4 ? (K + 1) / 2 : K; } // of a row of codes
// The same as this machine's GEMMs want them: elements from one row to the next, and bytes of O x KB byte scales.
inline size_t code_ld(Format f, size_t K) {
    size_t pad = machine.layout.pad > 1 ? machine.layout.pad : f.bits() == 4 ? 2 : 1;
    return (K + pad - 1) / pad * pad;
}
inline size_t scale_bytes(size_t O, size_t KB) { return machine.layout.tiled ? tiled_scale_bytes(O, KB) : O * KB; }
HD INLINE size_t blocks(size_t n, int N) { return (n + N - 1) / N; }
// Where FP32 numbers of O x KB blocks lie: that of row o and block kb at o * row + kb * k. So do scales of 128 on sm_90,
// where cuBLASLt wants those of 1 x 128 by columns, and those of 128 x 128 by rows, both padded to 4 with zeros.
struct Grid { size_t row, k, lines = 0, length = 0; }; // lines of so many, one after the other
inline Grid scale_grid(Block b, size_t O, size_t KB) {
    size_t OB = blocks(O, b.rows);
    if (!machine.layout.columns) return {KB, 1, OB, KB};
    if (b.rows == 1) return {1, (O + 3) / 4 * 4, KB, (O + 3) / 4 * 4};
    return {(KB + 3) / 4 * 4, 1, OB, (KB + 3) / 4 * 4};
}
#include "ops/cast.cuh" // the loops
inline ScaleBytes scale_bytes_of(uint8_t* scales, size_t O, size_t KB) { // about to be written
    if (scale_bytes(O, KB) > O * KB) fill_zero(scales, scale_bytes(O, KB));
    return {scales, KB, machine.layout.tiled};
}

// Per tensor: code = cast(x * *scale); scale null means 1. *amax becomes the larger of itself and max|x| of the
// unscaled x, NaN left out, in the same pass; null records nothing.
struct TensorScale {
    static constexpr bool keep_nan = false;
    bool powers() const { return false; }
    const float* scale; // may lie on the device
    float multiplier;
    HD INLINE void prepare() { multiplier = scale ? *scale : 1; }
    HD INLINE Scaled operator()(float) const { return {0, multiplier}; }
    HD INLINE void put(size_t, size_t, uint32_t) const {}
};
template <class T>
void cast_tensor(uint8_t* codes, float* amax, const T* x, const float* scale, Cast c, bool transpose, int R, int C,
                 uint64_t key = 0) {
    Job<T> job = {codes, x, transpose, R, C, key, amax};
    cast_blocks<32, E4M3, E5M2, E3M2, E2M3, E2M1>("cast_tensor", job, TensorScale{scale, 1}, c);
}
// to (C, R) = from (R, C), codes of a byte each; both with rows of code_ld() elements, what is behind them zero.
void transpose_codes(uint8_t* to, const uint8_t* from, Format f, int R, int C);
// MX: blocks of 32, an E8M0 byte each. A block that holds infinity or NaN gets byte 0xff and decodes to NaN; its
// elements are cast as they are.
struct MxScale {
    static constexpr bool keep_nan = true;
    bool powers() const { return true; }
    ScaleBytes scales;
    Format f;
    ScaleRule rule;
    HD INLINE void prepare() {}
    HD INLINE Scaled operator()(float amax) const {
        uint32_t byte = mx_scale(rule, f, amax);
        return {byte, byte == 255 ? 1 : exp2i(127 - (int)byte)};
    }
    HD INLINE void put(size_t o, size_t kb, uint32_t code) const { scales.at(o, kb) = (uint8_t)code; }
};
template <class T>
void cast_mx(uint8_t* codes, uint8_t* scales, const T* x, Cast c, bool transpose, int R, int C, uint64_t key = 0) {
    MxScale scale = {scale_bytes_of(scales, transpose ? C : R, blocks(transpose ? R : C, 32)), c.elem, c.rule};
    cast_blocks<32, E4M3, E5M2, E3M2, E2M3, E2M1>("cast_mx", Job<T>{codes, x, transpose, R, C, key}, scale, c);
}

inline void check_block(const char* name, Block b, int N) {
    if (b.cols != N || (b.rows != 1 && b.rows != N))
        fail("%s: blocks of %d x %d. hint: it casts 1 x %d and %d x %d", name, b.rows, b.cols, N, N, N);
}

// Float8 blocks (DeepSeek-V3, section 3.3): 1 x 128, scale_inv (O, KB), or 128 x 128, scale_inv (blocks(O, 128), KB),
// which lie as scale_grid() says.
// Three launches, with scale_inv for scratch: amax of each block; the cast, in pieces of 32; 1 / scale.
struct Float8Scale {
    static constexpr bool keep_nan = true;
    bool powers() const { return pow2; }
    Format f;
    bool pow2;
    HD INLINE float of(float amax) const {
        float scale = scale_for(f.max, amax, 1);
        return pow2 ? power_of_two_below(scale) : scale;
    }
    HD INLINE void prepare() {}
    HD INLINE Scaled operator()(float amax) const { return {0, of(amax)}; }
    HD INLINE void put(size_t, size_t, uint32_t) const {}
};
template <class T>
void cast_float8(uint8_t* codes, float* scale_inv, const T* x, Cast c, bool transpose, int R, int C, uint64_t key = 0) {
    check_block("cast_float8", c.block, 128);
    size_t O = transpose ? C : R, OB = blocks(O, c.block.rows), KB = blocks(transpose ? R : C, 128);
    Grid at = scale_grid(c.block, O, KB);
    amax_blocks(scale_inv, at, x, c.block, transpose, R, C);
    Float8Scale scale = {c.elem, c.pow2_scales};
    Job<T> job = {codes, x, transpose, R, C, key, nullptr, scale_inv, c.block.rows == 1 ? 0 : 7, 2, at};
    cast_blocks<32, E4M3, E5M2>("cast_float8", job, scale, c);
    int used = (int)(at.k == 1 ? KB : OB), length = (int)at.length; // of a line
    for_rows("invert", 8.0 * OB * KB, at.lines, [=] HD(Lanes g, int i) {
        float* line = scale_inv + (size_t)i * length;
        g.map(used, line, [=](real amax) { return 1 / scale.of((float)amax); }, line);
        g.each(length - used, [=](int k) { line[used + k] = 0; });
    });
}

// NVFP4: blocks of 1 x 16 or 16 x 16, an E4M3 byte for each 1 x 16 of either: scales (O, KB). *amax_tensor becomes the
// largest amax of a finite block; other blocks get byte 0x7f. Scratch: amax of the blocks, (blocks(O, block.rows), KB).
struct Nvfp4Scale {
    static constexpr bool keep_nan = true;
    bool powers() const { return false; }
    ScaleBytes scales;
    const float* amax_tensor; // may lie on the device
    float encode_scale;
    HD INLINE void prepare() { encode_scale = nvfp4_encode_scale(*amax_tensor); }
    HD INLINE Scaled operator()(float amax) const { return nvfp4_scale(amax, encode_scale); }
    HD INLINE void put(size_t o, size_t kb, uint32_t code) const { scales.at(o, kb) = (uint8_t)code; }
};
template <class T>
void cast_nvfp4(uint8_t* codes, uint8_t* scales, float* amax_tensor, float* scratch, const T* x, Cast c, bool transpose,
                int R, int C, uint64_t key = 0) {
    check_block("cast_nvfp4", c.block, 16);
    size_t OB = blocks(transpose ? C : R, c.block.rows), KB = blocks(transpose ? R : C, 16);
    amax_blocks(scratch, {KB, 1}, x, c.block, transpose, R, C);
    for_rows("zero", 4, 1, [=] HD(Lanes g, int) {
        if (g.first()) *amax_tensor = 0;
    });
    for_rows("amax_finite", 4.0 * OB * KB, OB, [=] HD(Lanes g, int o) {
        real m = g.max((int)KB, [](real x) { return x < (real)INFINITY ? x : 0; }, scratch + o * KB);
        record_max(g, amax_tensor, (float)m);
    });
    ScaleBytes to = scale_bytes_of(scales, transpose ? C : R, KB);
    Job<T> job = {codes, x, transpose, R, C, key, nullptr, scratch, c.block.rows == 1 ? 0 : 4, 0, {KB, 1}};
    cast_blocks<16, E2M1>("cast_nvfp4", job, Nvfp4Scale{to, amax_tensor, 1}, c);
}

// All of these for `act` are compiled once, in ops/cast.cu. For another T whoever calls them compiles them: on the CPU.
#define ULP_CASTS(EXTERN, T)                                                                                           \
    EXTERN template void cast_tensor(uint8_t*, float*, const T*, const float*, Cast, bool, int, int, uint64_t);        \
    EXTERN template void cast_mx(uint8_t*, uint8_t*, const T*, Cast, bool, int, int, uint64_t);                        \
    EXTERN template void cast_float8(uint8_t*, float*, const T*, Cast, bool, int, int, uint64_t);                      \
    EXTERN template void cast_nvfp4(uint8_t*, uint8_t*, float*, float*, const T*, Cast, bool, int, int, uint64_t);     \
    EXTERN template void hadamard(T*, const T*, int, int);                                                             \
    EXTERN template void amax_tensor(float*, const T*, size_t);
ULP_CASTS(extern, act)
