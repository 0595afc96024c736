// One number at a time, where the inputs can be exhausted: every code, every BF16, every midpoint between neighbours and
// the floats beside it. The oracles are a brute-force search for the nearest value and, where the CUDA toolkit is
// installed, NVIDIA's own conversions (their headers compile as plain C++).
#include "check.h"
#include "fp8.cuh"
#include <algorithm>
#include <cmath>
#if __has_include(<cuda_fp8.h>)
#include <cuda_fp4.h>
#include <cuda_fp6.h>
#include <cuda_fp8.h>
#define ORACLE 1
#endif

namespace { // test files share one program

const Format SMALL_FORMATS[] = {E4M3, E5M2, E3M2, E2M3, E2M1, E4M3_FNUZ, E5M2_FNUZ};

struct Code {
    double value;
    uint32_t code;
};
std::vector<Code> values_of(Format f) { // non-negative finite values, ascending
    std::vector<Code> all;
    for (uint32_t c = 0; c < 1u << (f.bits() - 1); c++)
        if (std::isfinite(decode(f, c))) all.push_back({decode(f, c), c});
    std::sort(all.begin(), all.end(), [](auto& a, auto& b) { return a.value < b.value; });
    return all;
}
uint32_t nearest_code(Format f, const std::vector<Code>& all, float x) { // by search: nearest, ties to even, saturating
    double a = std::min(std::fabs((double)x), (double)f.max);            // saturates
    uint32_t sign = std::signbit(x) ? 1u << (f.bits() - 1) : 0;
    if (std::isnan(x)) return f.nan;
    size_t best = 0;
    for (size_t i = 1; i < all.size(); i++) {
        double nearer = std::fabs(all[best].value - a) - std::fabs(all[i].value - a);
        if (nearer > 0 || (nearer == 0 && all[i].code % 2 == 0)) best = i;
    }
    if (f.specials == Specials::fnuz && best == 0) return 0; // there is no -0
    return all[best].code | sign;
}
std::vector<float> inputs(Format f) { // all BF16; every value and midpoint, with the floats beside it; both signs
    std::vector<float> x;
    for (uint32_t b = 0; b < 65536; b++) x.push_back(bits_as<float>(b << 16));
    auto all = values_of(f);
    for (size_t i = 0; i < all.size(); i++)
        for (double v : {all[i].value, i ? (all[i].value + all[i - 1].value) / 2 : 1.0625 * f.max})
            for (float y : {(float)v, std::nextafterf((float)v, INFINITY), std::nextafterf((float)v, -INFINITY)})
                x.push_back(y), x.push_back(-y);
    return x;
}

TEST_CASE("every code of every small format decodes to a value that encodes back to it") {
    for (Format f : SMALL_FORMATS)
        for (uint32_t c = 0; c < 1u << f.bits(); c++) {
            float v = decode(f, c);
            INFO(f.name << " code " << c << " = " << v);
            if (std::isnan(v)) CHECK(encode(f, v) == f.nan);
            else if (std::isinf(v)) CHECK(decode(f, encode(f, v)) == std::copysign(f.max, v)); // casts saturate
            else CHECK(encode(f, v) == c);
        }
    for (uint32_t c = 0; c < 255; c++) CHECK(encode_e8m0(decode_e8m0(c)) == c);
    CHECK(std::isnan(decode_e8m0(255)));
}

TEST_CASE("the table says what decoding finds: largest value and number of values") {
    const struct {
        Format f;
        size_t values;
    } table[] = {{E4M3, 127}, {E5M2, 124}, {E3M2, 32}, {E2M3, 32}, {E2M1, 8}};
    for (auto& t : table) { // non-negative ones: 253, 247, 63, 63 and 15 with both signs and one zero
        auto all = values_of(t.f);
        CHECK(all.size() == t.values);
        CHECK(all.back().value == t.f.max);
    }
}

TEST_CASE("encode finds the nearest value, ties to even, saturating, over every BF16 and around every midpoint") {
    long compared = 0;
    for (Format f : SMALL_FORMATS) {
        auto all = values_of(f);
        for (float x : inputs(f)) {
            compared++;
            if (encode(f, x) != nearest_code(f, all, x)) {
                INFO(f.name << " of " << x);
                CHECK(encode(f, x) == nearest_code(f, all, x));
            }
        }
    }
    MESSAGE("compared with a search for the nearest value: " << compared << " casts");
    CHECK(compared > 450000);
}

TEST_CASE("encode and decode agree with NVIDIA's conversions") {
#ifdef ORACLE
    long compared = 0, wrong = 0;
    auto same = [&](uint32_t a, uint32_t b) { compared++, wrong += a != b; };
    for (Format f : SMALL_FORMATS)
        if (f.specials != Specials::fnuz)
            for (float x : inputs(f)) {
                if (f == E4M3) same(encode(f, x), __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3));
                if (f == E5M2) same(encode(f, x), __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E5M2));
                if (f == E3M2) same(encode(f, x), __nv_cvt_float_to_fp6(x, __NV_E3M2, cudaRoundNearest));
                if (f == E2M3) same(encode(f, x), __nv_cvt_float_to_fp6(x, __NV_E2M3, cudaRoundNearest));
                if (f == E2M1) same(encode(f, x), __nv_cvt_float_to_fp4(x, __NV_E2M1, cudaRoundNearest));
                same(encode_e8m0(x), __nv_cvt_float_to_e8m0(x, __NV_NOSAT, cudaRoundPosInf));
            }
    for (uint32_t c = 0; c < 256; c++) {
        __half_raw a = __nv_cvt_fp8_to_halfraw((__nv_fp8_storage_t)c, __NV_E4M3),
                   b = __nv_cvt_fp8_to_halfraw((__nv_fp8_storage_t)c, __NV_E5M2);
        float x = decode(E4M3, c), y = decode(E5M2, c);
        if (!std::isnan(x)) same(encode(FP16, x), a.x);
        if (!std::isnan(y)) same(encode(FP16, y), b.x);
    }
    MESSAGE("compared with NVIDIA's conversions: " << compared << ", mismatches: " << wrong);
    CHECK(wrong == 0);
#else
    SKIP("no CUDA toolkit, so NVIDIA's conversions were not compared with");
#endif
}

TEST_CASE("stochastic rounding takes a neighbour, never moves a value of the format, and is right on average") {
    for (Format f : {E4M3, E5M2, E3M2, E2M3, E2M1}) {
        auto all = values_of(f);
        for (auto& v : all)
            for (uint32_t draw : {0u, 1u, 0x7fffffu, 0xffffffu})
                CHECK(encode_stochastic(f, (float)v.value, draw) == v.code);
        for (size_t i = 1; i < all.size(); i += all.size() / 7 + 1) {
            double lo = all[i - 1].value, hi = all[i].value, fraction = 0.3;
            float x = (float)(lo + fraction * (hi - lo));
            fraction = (x - lo) / (hi - lo);
            const int draws = 1 << 16; // every 256th of the 2^24 draws: the mean is right to one part in 2^16 of a step
            double sum = 0;
            for (int d = 0; d < draws; d++) {
                uint32_t code = encode_stochastic(f, x, (uint32_t)d << 8);
                REQUIRE((code == all[i - 1].code || code == all[i].code));
                sum += decode(f, code);
            }
            CHECK(std::fabs(sum / draws - x) <= (hi - lo) / draws + 1e-12 * hi);
        }
    }
}

TEST_CASE("MX scale bytes: the four rules on their vectors") {
    const struct {
        float amax;
        uint32_t byte;
    } rceil[] = {{0, 0},
                 {0x1p-149f, 0},
                 {448 * 0x1p-127f, 0},
                 {448 * 0x1p-126f, 1},
                 {1e-30f, 19},
                 {0x1p-9f, 110},
                 {0.5f, 118},
                 {1, 119},
                 {1.75f, 119},
                 {1.7578125f, 120},
                 {3.5f, 120},
                 {6, 121},
                 {7, 121},
                 {7.03125f, 122},
                 {448, 127},
                 {450, 128},
                 {896, 128},
                 {1e4f, 132},
                 {65504, 135},
                 {0x1.fep127f, 247},
                 {0x1.fffffep127f, 247}};
    for (auto& v : rceil) {
        INFO(v.amax);
        CHECK(mx_scale(ScaleRule::rceil, E4M3, v.amax) == v.byte);
    }
    CHECK(mx_scale(ScaleRule::floor, E4M3, 0x1.fffffep127f) == 246);
    CHECK(mx_scale(ScaleRule::floor, E4M3, 480) == 127);
    CHECK(mx_scale(ScaleRule::rceil, E4M3, 480) == 128);
    for (auto rule : {ScaleRule::rceil, ScaleRule::floor, ScaleRule::ceil, ScaleRule::even})
        for (float bad : {INFINITY, NAN}) CHECK(mx_scale(rule, E4M3, bad) == 255);
}

TEST_CASE("NVFP4 scales on their vectors") {
    CHECK(nvfp4_encode_scale(0) == 1);
    CHECK(nvfp4_encode_scale(1) == 2688);
    Scaled one = nvfp4_scale(1, nvfp4_encode_scale(1));
    CHECK(one.code == 0x7e);
    CHECK(one.multiplier == 6);
    CHECK(nvfp4_encode_scale(1e-37f) == FLT_MAX);
    CHECK(decode(E4M3, nvfp4_scale(1e-37f, FLT_MAX).code) == 5.5f);
    CHECK(nvfp4_scale(0, 1).code == 0);
}

} // namespace
