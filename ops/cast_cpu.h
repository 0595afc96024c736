// Casts of BF16 by powers of two in 16-bit lanes, bit-equal to encode(x * multiplier): such a product only moves the
// exponent, so it needs no FP32, and 32 elements fit a vector of AVX-512. Twice as fast as FP32's lanes.
#pragma once
#include <cstdint>
struct Format;
struct bf16;
// False, and nothing is done, where this processor has no such lanes or a block needs FP32: one that holds infinity or
// NaN, or that is so small that BF16's subnormals would not all become 0. amax: bits, as of an FP32.
// Rows: `blocks` of 32 elements, one after the other, into as many codes, FP4 packed.
bool cast_rows_by_powers(uint8_t* codes, const bf16* x, const Format& f, const float* multiplier, const uint32_t* amax,
                         int blocks);
// Columns: x (32, 64), a multiplier each; words (32 / E, 64) of E codes each, 4 or, of FP4, 8.
bool cast_columns_by_powers(uint32_t* words, const bf16* x, const Format& f, const float* multiplier,
                            const uint32_t* amax);
