// The packed CPU product. It is a twin of matmul_row (matmul.cuh) with a contract on the order of its sums, because the
// order is what decides the bits:
// - Pair order (portable and dot kernels): one accumulator per output runs through all of K from +0, and for each pair
//   of neighbours acc = fma(a[k], b[k], fma(a[k+1], b[k+1], acc)), the odd element first. That is what vdpbf16ps does.
// - Tile order (AMX): for each 32 values of k, even and odd elements are summed apart from +0 by fma, then
//   acc += even + odd.
// Neither depends on the number of threads or of rows, or on how the product is cut into tiles. How far apart can they be? Products
// of two BF16 are exact in FP32, so only additions round (u = 2^-24), and an addition to the initial 0 does not. In pair
// order an element passes K - 1 roundings at most; in tile order 15 (its chain of 16), 1 (even + odd), ceil(K/32) - 1
// (acc). With g(n) = n u / (1 - n u) and A = sum |a[k] b[k]|, each is within g(its roundings) A of the exact sum, so
//     |tile - pair| <= (g(K - 1) + g(15 + ceil(K/32))) A
// on normal numbers. AMX and vdpbf16ps read subnormal inputs as 0 and write subnormal sums as 0; the portable kernel
// keeps both. Infinities and NaN propagate in all of them, though not the payload of a NaN.
#pragma once
#include <cstddef>
#include <cstdint>

// e2m1: two codes to a byte, the even element in the low half; the other codes take a byte each. e8m0: scales only.
enum class Elem : uint8_t { bf16, f32, e4m3, e5m2, e3m2, e2m3, e2m1, e8m0 };

// A matrix (rows, K): element (r, k) is data[r * ld + k] if k_contiguous, else data[k * ld + r]. It need not be aligned.
// Of codes, it stands for values[code] * scale[r / scale_rows][k / block] in FP32, rounded to BF16 (to nearest even);
// every kernel multiplies these BF16. Block scales, and e2m1, want k_contiguous.
struct Operand {
    const void* data;
    Elem elem;
    bool k_contiguous;
    size_t ld; // in elements; even for e2m1
    // The BF16 bits of all codes: 256, 64 (e3m2, e2m3) or 16 (e2m1). Where a code has 8 bits the upper half may go unread:
    // a code with the top bit set must be that of the other half with the sign flipped, NaN excepted.
    const uint16_t* values = nullptr;    // 64-byte aligned
    const void* scales = nullptr;        // (ceil(rows / scale_rows), ld_scales); null: 1
    Elem scale_elem = Elem::f32;         // or e8m0 or e4m3: a byte each
    const float* scale_values = nullptr; // of the 256 codes of a byte scale
    int block = 0, scale_rows = 1;       // elements along k (a multiple of 16) and rows (1, or one too) of a scale
    // From one row of scales, and one block, to the next; the second is 1 but on a GPU.
    size_t ld_scales = 0, scale_step = 1;
    bool swizzled = false; // byte scales lie in tiles, as cuBLASLt reads them (tiled_scale() in fp8.cuh); on a GPU only
    const float* factor = nullptr; // of the whole operand: the caller folds it into scale_a or scale_b; not read here
    bool exact = true;             // values times scales are; else scales multiply sums of blocks, which is not done here
};

// out[m, n] = (accumulate ? out[m, n] : 0) + (sum over k of a[m, k] b[n, k]) * scale_a * scale_b + bias[n]
// in FP32, in the order ((acc * scale_a) * scale_b), + bias, + out; then one rounding if out is BF16 (to nearest even,
// NaN becomes 0x7fff). Any M, N, K >= 0; out must not overlap an operand.
struct Gemm {
    void* out; // (M, N), row m at out + m * ld_out
    Elem out_elem;
    size_t ld_out;
    int M, N, K;
    Operand a; // (M, K)
    Operand b; // (N, K)
    float scale_a = 1, scale_b = 1;
    const void* bias = nullptr; // (N), stored as out's elements are
    bool accumulate = false;
    bool fast_accum = false; // FP8 tensor cores of sm_89 and sm_90 may keep sums to fewer bits
};

// fast: the fastest here. portable: FP32 fma only, in the best of its three forms (the last three names, for tests).
// An FP32 operand takes the portable kernel whatever is asked for: the others multiply BF16.
enum class CpuKernel { fast, portable, dot, amx, plain, avx2, avx512 };
bool cpu_kernel_available(CpuKernel kernel);
const char* cpu_kernel_name(CpuKernel kernel); // "fast" and "portable" give the name of what they stand for

// Runs on all OpenMP threads, or on the calling one alone inside a parallel region. Throws Error on a negative size, an
// operand that breaks a rule above and a kernel this machine lacks. Each thread keeps a workspace of 2 MB at most.
void matmul_cpu(const Gemm& gemm, CpuKernel kernel = CpuKernel::fast);
