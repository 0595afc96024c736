#include "ops/cast_cpu.h"
#include "fp8.cuh"

#ifdef __AVX512BW__ // shifts by a count per lane
typedef int16_t Lanes16 __attribute__((vector_size(64)));
typedef uint16_t Bits16 __attribute__((vector_size(64)));
typedef uint32_t Bits32 __attribute__((vector_size(64)));
typedef uint8_t Bytes __attribute__((vector_size(32)));
typedef uint8_t HalfBytes __attribute__((vector_size(16)));

// What is added to the bits of |x|, so that its exponent field becomes that of the code. A block of zeros moves down.
INLINE int16_t shift_of(Format f, float multiplier, uint32_t amax) {
    int field = amax ? (int)(bits_as<uint32_t>(multiplier) >> 23) : 0;
    return (int16_t)((field - 254 + f.bias) * 128);
}
static bool fits(Format f, const float* multiplier, const uint32_t* amax, int n) {
    int bad = 0, highest = 126 - f.bias - f.mbits + 127; // to which 2^-126 is less than half the smallest subnormal
    for (int i = 0; i < n; i++)
        bad |= (amax[i] >= INF_BITS) | ((amax[i] > 0) & ((int)(bits_as<uint32_t>(multiplier[i]) >> 23) > highest));
    return !bad;
}
template <const Format& F> INLINE Bits16 encode16(Bits16 x, Lanes16 shift) {
    const Lanes16 zero = {}, one = zero + 1,
                  top = zero + (int16_t)((bits_as<uint32_t>(F.max) >> 16) - (127 - F.bias) * 128);
    Lanes16 t = (Lanes16)(x & 0x7fff) + shift, lost = zero + 9; // exponent | mantissa; more than 9 bits lost leave 0
    t = t < top ? t : top;                                      // saturates
    Lanes16 exponent = t >> 7, binade = exponent > one ? exponent : one, below = binade - exponent;
    Bits16 drop = (Bits16)(below < lost ? below : lost) + (uint16_t)(7 - F.mbits),
           significand = ((Bits16)t & 127) | 128;
    Bits16 half = ((Bits16)one << (drop - 1)) - 1 + (significand >> drop & 1); // to nearest, ties to even
    Bits16 code = ((Bits16)(binade - 1) << F.mbits) + ((significand + half) >> drop);
    return code | (x >> (16 - F.bits()) & (uint16_t)(1 << (F.bits() - 1)));
}
INLINE Bits16 load(const bf16* x) {
    Bits16 v;
    memcpy(&v, x, sizeof v);
    return v;
}
bool cast_rows_by_powers(uint8_t* codes, const bf16* x, const Format& f, const float* multiplier, const uint32_t* amax,
                         int blocks) {
    if (!fits(f, multiplier, amax, blocks)) return false;
    for_format<E4M3, E5M2, E3M2, E2M3, E2M1>("cast", f, [&]<const Format & F>() {
        for (int b = 0; b < blocks; b++) {
            Bits16 code = encode16<F>(load(x + b * 32), Lanes16{} + shift_of(F, multiplier[b], amax[b]));
            if (F.bits() == 4) {
                Bits32 pair = (Bits32)code;
                auto packed = __builtin_convertvector(pair | pair >> 12, HalfBytes);
                memcpy(codes + b * 16, &packed, 16);
            } else {
                auto bytes = __builtin_convertvector(code, Bytes);
                memcpy(codes + b * 32, &bytes, 32);
            }
        }
    });
    return true;
}
bool cast_columns_by_powers(uint32_t* words, const bf16* x, const Format& f, const float* multiplier,
                            const uint32_t* amax) {
    constexpr int W = 64;
    if (!fits(f, multiplier, amax, W)) return false;
    for_format<E4M3, E5M2, E3M2, E2M3, E2M1>("cast", f, [&]<const Format & F>() {
        constexpr int E = F.bits() == 4 ? 8 : 4, width = 32 / E;
        alignas(64) int16_t shift[W];
        for (int w = 0; w < W; w++) shift[w] = shift_of(F, multiplier[w], amax[w]);
        for (int k = 0; k < 32; k += E, words += W)
            for (int w = 0; w < W; w += 32) {
                Lanes16 by;
                memcpy(&by, shift + w, sizeof by);
                alignas(64) uint16_t half[2][32]; // words' lower and upper halves
                for (int h = 0; h < 2; h++) {
                    Bits16 codes = {};
#pragma GCC unroll 4
                    for (int e = 0; e < E / 2; e++)
                        codes |= encode16<F>(load(x + (k + h * E / 2 + e) * W + w), by) << (uint16_t)(e * width);
                    memcpy(half[h], &codes, sizeof codes);
                }
                for (int i = 0; i < 32; i++) words[w + i] = half[0][i] | (uint32_t)half[1][i] << 16;
            }
    });
    return true;
}
#else
bool cast_rows_by_powers(uint8_t*, const bf16*, const Format&, const float*, const uint32_t*, int) { return false; }
bool cast_columns_by_powers(uint32_t*, const bf16*, const Format&, const float*, const uint32_t*) { return false; }
#endif
