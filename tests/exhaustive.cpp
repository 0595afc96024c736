// make test-exhaustive: encode() on all 2^32 floats, for every format. The oracle is NVIDIA's own conversion where the
// CUDA toolkit is installed and has one, and otherwise the definition, in double. Takes minutes; make test does not run
// it. Exit status 1 if a code differs.
#include "fp8.cuh"
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <vector>
#if __has_include(<cuda_fp8.h>)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp4.h>
#include <cuda_fp6.h>
#include <cuda_fp8.h>
#define NVIDIA(F, conversion) "NVIDIA's", [](float x) -> uint32_t { return conversion; }
#else
#define NVIDIA(F, conversion) DEFINED(F)
#endif
#define DEFINED(F) "defined", [](float x) -> uint32_t { return F == E8M0 ? defined_e8m0(x) : defined(F, x); }

// The nearest multiple of the step of x's binade. The codes of a binade count its steps, and binades follow each other
// without a gap. FP32's subnormals are normal in double.
static double two_to(int e) { return bits_as<double>((uint64_t)(1023 + e) << 52); }
INLINE uint32_t defined(Format f, float x) {
    uint32_t sign = std::signbit(x) ? 1u << (f.bits() - 1) : 0, infinity = ((1u << f.ebits) - 1) << f.mbits;
    double a = std::fabs((double)x);
    if (std::isnan(x)) return f.nan;
    if (f.bits() <= 8) a = std::min(a, (double)f.max); // saturates; the others overflow
    else if (std::isinf(x)) return infinity | sign;
    int lowest = 1 - f.bias, binade = std::max((int)(bits_as<uint64_t>(a) >> 52) - 1023, lowest);
    uint32_t steps = (uint32_t)std::nearbyint(a * two_to(f.mbits - binade)); // ties to even, the default
    uint32_t code = ((uint32_t)(binade - lowest) << f.mbits) + steps;
    if (f.bits() > 8) code = std::min(code, infinity);
    return f.specials == Specials::fnuz && code == 0 ? 0 : code | sign; // which has no -0
}
INLINE uint32_t defined_e8m0(float x) { // the next power of two, upwards
    double a = std::fabs((double)x);
    if (!(a <= two_to(127))) return 255;
    int binade = (int)(bits_as<uint64_t>(a) >> 52) - 1023;
    return (uint32_t)std::max(binade + (a > two_to(binade)) + 127, 0);
}
template <const Format& F, class Oracle> long walk(const char* source, Oracle expected) {
    auto start = std::chrono::steady_clock::now();
    constexpr uint32_t piece = 1 << 16;
    long wrong = 0;
    uint32_t example = 0;
#pragma omp parallel for schedule(dynamic, 16) reduction(+ : wrong) reduction(max : example)
    for (uint32_t p = 0; p < 1u << 16; p++) {
        std::vector<uint32_t> code(piece);
        for (uint32_t i = 0; i < piece; i++) code[i] = encode(F, bits_as<float>(p * piece + i));
        for (uint32_t i = 0; i < piece; i++)
            if (code[i] != expected(bits_as<float>(p * piece + i))) wrong++, example = std::max(example, p * piece + i);
    }
    double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    printf("%-9s %ld floats compared with %-9s %ld mismatches %6.1f s\n", F.name, 1l << 32, source, wrong, seconds);
    if (wrong) {
        float x = bits_as<float>(example);
        printf("    such as %a: %x where %s has %x\n", x, encode(F, x), source, expected(x));
    }
    fflush(stdout);
    return wrong;
}
int main() {
    long wrong = 0;
    wrong += walk<E4M3>(NVIDIA(E4M3, __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3)));
    wrong += walk<E5M2>(NVIDIA(E5M2, __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E5M2)));
    wrong += walk<E3M2>(NVIDIA(E3M2, __nv_cvt_float_to_fp6(x, __NV_E3M2, cudaRoundNearest)));
    wrong += walk<E2M3>(NVIDIA(E2M3, __nv_cvt_float_to_fp6(x, __NV_E2M3, cudaRoundNearest)));
    wrong += walk<E2M1>(NVIDIA(E2M1, __nv_cvt_float_to_fp4(x, __NV_E2M1, cudaRoundNearest)));
    wrong += walk<E8M0>(NVIDIA(E8M0, __nv_cvt_float_to_e8m0(x, __NV_NOSAT, cudaRoundPosInf)));
    wrong += walk<E4M3_FNUZ>(DEFINED(E4M3_FNUZ));
    wrong += walk<E5M2_FNUZ>(DEFINED(E5M2_FNUZ));
    wrong += walk<BF16>(NVIDIA(BF16, __nv_bfloat16_raw(__float2bfloat16_rn(x)).x));
    wrong += walk<FP16>(NVIDIA(FP16, __half_raw(__float2half_rn(x)).x));
    printf("%ld mismatches\n", wrong);
    return wrong != 0;
}
